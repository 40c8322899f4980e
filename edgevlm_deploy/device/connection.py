"""What every way to a device can do, and what its complaints mean."""

from __future__ import annotations

import shutil
import subprocess
from abc import ABC, abstractmethod
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from edgevlm_deploy.errors import DeviceError

COMMAND_TIMEOUT_S = 120.0
"""For everything but copying and running."""
COPY_TIMEOUT_S = 3600.0
"""For one batch of files of one folder."""

_MENDING = {
    "unauthorized": "Unlock the device and accept the question whether this computer may debug it.",
    "no devices": "Connect one and switch on USB debugging; `adb devices` lists what is connected.",
    "not found": "`adb devices` lists the serial numbers of what is connected.",
    "more than one": "Say which one by --device adb:SERIAL; `adb devices` lists them.",
    "offline": "Connect it again; `adb devices` must call it `device`.",
    "Connection refused": "Start the SSH server there, or give its port: ssh://HOST:PORT.",
    "Could not resolve": "Check the name; an address or a Host of ~/.ssh/config does as well.",
    "No route to host": "Check that it is switched on and in the same network.",
    "onnection timed out": "Check that it is switched on and in the same network.",
    "Host key verification": "Connect once by hand with `ssh` and compare the fingerprint; if the device was "
    "set up anew, remove its old key with `ssh-keygen -R HOST`.",
    "ermission denied (": "It accepts none of your keys, and passwords are never asked for: "
    "`ssh-copy-id HOST` puts a key there.",
    "ermission denied": "Check that this user may log in and write there without being asked.",
    "No space left": "Free some space on the device.",
    ": Failure": "SFTP gives no reason; a full disk or a used up quota is the usual one: look at `df` there.",
    "onnection closed": "The same command goes on from there.",
    "onnection reset": "The same command goes on from there.",
    "without a word": "The connection was probably lost; the same command goes on from there.",
}
"""What adb, ssh or sftp said → what to do about it. The first that fits is told."""


@dataclass(frozen=True)
class Device(ABC):
    """How to reach one device, and what to run there."""

    name: str
    """As the user wrote it, e.g. "adb:R5CT20XYZ"."""
    folder: str
    """Where bundles go: a folder that the device's shell may write to."""
    python: str
    """The interpreter there."""
    silence_s: float
    """Seconds without a sign of life after which a run is given up."""

    @abstractmethod
    def shell(self, command: str) -> list[str]:
        """The command line here that has the device's POSIX shell run `command`."""

    @abstractmethod
    def push(self, files: Sequence[Path], begun: Collection[Path], folder: str) -> None:
        """Copy files of this machine into a folder there; of those in `begun` it has the beginning.

        Raises DeviceError.
        """

    @abstractmethod
    def pull(self, files: Sequence[str], out: Path) -> None:
        """Copy files there into a folder of this machine. Raises DeviceError."""

    def run(self, command: str, timeout_s: float = COMMAND_TIMEOUT_S) -> subprocess.CompletedProcess[str]:
        """Run `command` in the device's shell, whatever its exit code.

        Raises DeviceError when nothing answers.
        """
        return self.call(self.shell(command), timeout_s)

    def call(
        self, command: Sequence[str], timeout_s: float, lines: Sequence[str] = ()
    ) -> subprocess.CompletedProcess[str]:
        """Run a command line here, with `lines` as its standard input."""
        try:
            return subprocess.run(
                command,
                input="".join(f"{line}\n" for line in lines),
                capture_output=True,
                text=True,
                errors="replace",
                timeout=timeout_s,
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            raise DeviceError(
                f"{self.name} did not answer within {timeout_s:g} seconds. "
                "Check the connection and try again."
            ) from error

    def require(self, done: subprocess.CompletedProcess[str], doing: str) -> None:
        """Raises DeviceError unless `done` succeeded; `doing` is e.g. "copy the bundle to"."""
        if done.returncode:
            raise self.failure(done, doing)

    def failure(self, done: subprocess.CompletedProcess[str], doing: str) -> DeviceError:
        last = last_words(done)
        said = f"{done.stderr}{done.stdout}{last}"
        hints = [hint for words, hint in _MENDING.items() if words in said]
        return DeviceError(f"cannot {doing} {self.name}: {last} {' '.join(hints[:1])}".rstrip())


def last_words(done: subprocess.CompletedProcess[str]) -> str:
    """What a command said last, errors first."""
    said = (done.stderr.strip() or done.stdout.strip()).splitlines()
    lines = [line.strip() for line in said if not line.startswith("sftp>")]  # sftp's echo of its commands
    if not lines:
        return f"it ended with exit code {done.returncode} without a word."
    return lines[-1].removeprefix("error: ")


def tool(name: str, package: str) -> str:
    """The path of a command line tool. Raises DeviceError when it is not installed."""
    found = shutil.which(name)
    if found is None:
        raise DeviceError(f"{name} is not installed on this machine; it is part of {package}.")
    return found
