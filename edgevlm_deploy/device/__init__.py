"""Gather evidence on another machine: copy the bundle there, run its own runner, bring the answers back.

A device is reached by the command lines of `adb` or of OpenSSH, so that keys, agents, jump hosts and
~/.ssh/config are the user's own; each comes down to three commands (`Device`). It needs no edgevlm, only
Python 3.8 with NumPy, Pillow, tokenizers and the bundle's runtime. A phone has no Python of its own:
docs/devices.md says where one may come from.

    DEVICE_FOLDER/<digest of the bundle>/bundle/      the unpacked bundle, runner included
    DEVICE_FOLDER/<digest of the bundle>/evidence/    what `python3 -m edgevlm_runner` writes
"""

from __future__ import annotations

from edgevlm_deploy.device import adb, ssh
from edgevlm_deploy.device.connection import Device
from edgevlm_deploy.device.evidence import gather
from edgevlm_deploy.device.process import follow
from edgevlm_deploy.errors import DeviceError

__all__ = ["Device", "follow", "gather", "named"]


def named(name: str, python: str = "python3", silence_s: float = 1800.0) -> Device:
    """The device called `adb`, `adb:SERIAL`, `ssh:HOST` (HOST as in `ssh HOST`) or `ssh://[USER@]HOST[:PORT]`.

    Nothing is contacted yet. Raises DeviceError for any other name and when the command line tool is not
    installed.
    """
    kind, _, address = name.partition(":")
    if kind == "adb":
        return adb.device(name, address, python, silence_s)
    if kind == "ssh" and address:
        return ssh.device(name, address, python, silence_s)
    raise DeviceError(
        f"{name!r} is no device; expected adb, adb:SERIAL, ssh:[USER@]HOST or ssh://[USER@]HOST[:PORT]."
    )
