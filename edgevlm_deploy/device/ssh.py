"""Boards, through OpenSSH's `ssh` and `sftp`.

OpenSSH rather than a library: what `ssh HOST` reaches is reached, with the user's keys, agents, jump hosts
and ~/.ssh/config. The environment variable EDGEVLM_SSH_CONFIG names another configuration file (`ssh -F`),
which a build server needs that has no home of its own.
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from edgevlm_deploy.device.connection import COPY_TIMEOUT_S, Device, tool
from edgevlm_deploy.errors import DeviceError

_HOST = re.compile(r"([^@:\s-][^@:\s]*@)?[^@:\s-][^@:\s]*")
"""[USER@]HOST; nothing that a command line could take for an option."""


@dataclass(frozen=True)
class Ssh(Device):
    ssh: tuple[str, ...]
    """`ssh` with options and destination."""
    sftp: tuple[str, ...]
    """`sftp` likewise; it reads its commands from standard input and stops at the first that fails."""

    def shell(self, command: str) -> list[str]:
        return [*self.ssh, command]

    def push(self, files: Sequence[Path], begun: Collection[Path], folder: str) -> None:
        """`reput` sends what the device lacks of a file, `put` replaces it."""
        lines = [
            f"{'reput' if one in begun else 'put'} {_quoted(str(one))} {_quoted(f'{folder}/{one.name}')}"
            for one in files
        ]
        self.require(self.call(self.sftp, COPY_TIMEOUT_S, lines), "copy the bundle to")

    def pull(self, files: Sequence[str], out: Path) -> None:
        lines = [f"get {_quoted(one)} {_quoted(str(out))}" for one in files]
        self.require(self.call(self.sftp, COPY_TIMEOUT_S, lines), "bring the evidence back from")


def device(name: str, address: str, python: str, silence_s: float) -> Ssh:
    """The device at [USER@]HOST or //[USER@]HOST[:PORT]. Raises DeviceError for any other address."""
    if address.startswith("//"):
        _check_url(name)
        ssh, sftp = f"ssh:{address}", f"sftp:{address}"
    elif _HOST.fullmatch(address):
        ssh = sftp = address
    else:
        raise DeviceError(
            f"{name!r} is no device; expected ssh:[USER@]HOST, or ssh://[USER@]HOST:PORT with a port."
        )
    own = os.environ.get("EDGEVLM_SSH_CONFIG")
    # BatchMode: never a question for a password or an unknown key that nobody sees.
    options = (*(("-F", own) if own else ()), "-o", "BatchMode=yes")
    return Ssh(
        name=name,
        folder=".cache/edgevlm-device",
        python=python,
        silence_s=silence_s,
        ssh=(tool("ssh", "OpenSSH"), *options, ssh),
        sftp=(tool("sftp", "OpenSSH"), "-q", *options, "-b", "-", sftp),
    )


def _check_url(url: str) -> None:
    """Raises DeviceError unless `url` is ssh://[USER@]HOST[:PORT]."""
    parts = urlsplit(url)
    try:
        port = parts.port
    except ValueError as error:
        raise DeviceError(f"{url!r} is no device: {error}.") from error
    if parts.password is not None:
        raise DeviceError(
            "An ssh:// address takes no password: use a key (`ssh-copy-id HOST` puts it there)."
        )
    if not parts.hostname or port == 0 or parts.path not in ("", "/") or parts.query or parts.fragment:
        raise DeviceError(f"{url!r} is no device; expected ssh://[USER@]HOST[:PORT] and nothing after it.")


def _quoted(path: str) -> str:
    """One argument of an sftp command; in quotes its wildcards are ordinary characters."""
    return '"' + path.replace("\\", "\\\\").replace('"', '\\"') + '"'
