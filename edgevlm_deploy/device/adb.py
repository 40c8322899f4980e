"""Phones, through Android's debug bridge."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from edgevlm_deploy.device.connection import COPY_TIMEOUT_S, Device, tool


@dataclass(frozen=True)
class Adb(Device):
    command: tuple[str, ...]
    """`adb`, with the serial number if one was given."""

    def shell(self, command: str) -> list[str]:
        return [*self.command, "shell", command]

    def push(self, files: Sequence[Path], begun: Collection[Path], folder: str) -> None:
        """`adb` copies whole files only."""
        done = self.call([*self.command, "push", *map(str, files), f"{folder}/"], COPY_TIMEOUT_S)
        self.require(done, "copy the bundle to")

    def pull(self, files: Sequence[str], out: Path) -> None:
        done = self.call([*self.command, "pull", *files, str(out)], COPY_TIMEOUT_S)
        self.require(done, "bring the evidence back from")


def device(name: str, serial: str, python: str, silence_s: float) -> Adb:
    """The device with this serial number, or the only one for an empty one."""
    adb = tool("adb", "Android's platform tools (Debian: apt-get install adb)")
    return Adb(
        name=name,
        folder="/data/local/tmp/edgevlm",
        python=python,
        silence_s=silence_s,
        command=(adb, *(("-s", serial) if serial else ())),
    )
