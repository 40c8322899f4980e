"""Gather evidence on another machine: copy the bundle there, run its own runner, bring the answers back.

A device is reached by the command lines of `adb` or of `ssh` and `scp`; both come down to three commands
(`Device`). It needs no edgevlm, only Python 3.8 with NumPy, Pillow, tokenizers and the bundle's runtime.
A phone has no Python of its own: docs/devices.md says where one may come from.

    DEVICE_FOLDER/<digest of the bundle>/bundle/      the unpacked bundle, runner included
    DEVICE_FOLDER/<digest of the bundle>/evidence/    what `python3 -m edgevlm_runner` writes
"""

from __future__ import annotations

import contextlib
import json
import queue
import shlex
import shutil
import subprocess
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO

from edgevlm_runner.bundle import MANIFEST, Bundle
from edgevlm_runner.storage import file_digest, storage_errors

from edgevlm_deploy.errors import (
    BundleError,
    DeviceError,
    EdgeVlmError,
    ExecutionError,
    ImageError,
    PromptError,
    RuntimeUnavailable,
    StorageError,
)
from edgevlm_deploy.progress import Watcher

COMMAND_TIMEOUT_S = 120.0
"""For everything but copying and running."""
COPY_TIMEOUT_S = 3600.0
"""For one batch of files of one folder."""
COPY_BATCH = 64
"""Files: command lines have a longest length, and progress should be seen."""
LAST_WORDS = 20
"""Lines of a failed runner that the error repeats."""
EVIDENCE_FILES = ("answers.jsonl", "evidence.json")

_MODULES = {"onnxruntime": "onnxruntime", "litert": "ai_edge_litert", "tensorrt": "tensorrt"}
"""Runtime → the Python module that the runner imports for it."""
_PROBE = (
    "import importlib.util as u, json, sys; "
    "print(json.dumps([sys.version_info[:2], [n for n in sys.argv[1:] if u.find_spec(n) is None]]))"
)
_MENDING = {
    "unauthorized": "Unlock the device and accept the question whether this computer may debug it.",
    "no devices": "Connect one and switch on USB debugging; `adb devices` lists what is connected.",
    "not found": "`adb devices` lists the serial numbers of what is connected.",
    "more than one": "Say which one by --device adb:SERIAL; `adb devices` lists them.",
    "offline": "Connect it again; `adb devices` must call it `device`.",
    "ermission denied": "Check that this user may log in and write there without being asked.",
    "No space left": "Free some space on the device.",
}
"""What adb, ssh or scp said → what to do about it."""
_RUNNER_ERRORS = {
    one.exit_code: one
    for one in (BundleError, ImageError, PromptError, RuntimeUnavailable, ExecutionError, StorageError)
}


@dataclass(frozen=True)
class Device:
    """How to reach one device, and what to run there."""

    name: str
    """As the user wrote it, e.g. "adb:R5CT20XYZ"."""
    shell: tuple[str, ...]
    """Followed by one string, which the device's POSIX shell runs."""
    push: tuple[str, ...]
    """Followed by files of this machine and a folder there."""
    pull: tuple[str, ...]
    """Followed by files there and a folder of this machine."""
    prefix: str
    """Before paths there, in `push` and `pull`."""
    folder: str
    """Where bundles go: a folder that `shell` may write to."""
    python: str
    """The interpreter there."""
    silence_s: float
    """Seconds without a sign of life after which a run is given up."""


def named(name: str, python: str = "python3", silence_s: float = 1800.0) -> Device:
    """The device called `adb`, `adb:SERIAL` or `ssh:HOST`, HOST as in `ssh HOST`. Nothing is contacted yet.

    Raises DeviceError for any other name and when the command line tool is not installed.
    """
    kind, _, address = name.partition(":")
    if kind == "adb":
        adb = (_tool("adb"), *(("-s", address) if address else ()))
        return Device(
            name=name,
            shell=(*adb, "shell"),
            push=(*adb, "push"),
            pull=(*adb, "pull"),
            prefix="",
            folder="/data/local/tmp/edgevlm",
            python=python,
            silence_s=silence_s,
        )
    if kind == "ssh" and address and not address.startswith("-"):
        options = ("-o", "BatchMode=yes")
        scp = (_tool("scp"), "-q", *options)
        return Device(
            name=name,
            shell=(_tool("ssh"), *options, address),
            push=scp,
            pull=scp,
            prefix=f"{address}:",
            folder=".cache/edgevlm-device",
            python=python,
            silence_s=silence_s,
        )
    raise DeviceError(f"{name!r} is no device; expected adb, adb:SERIAL or ssh:[USER@]HOST.")


def gather(to: Device, bundle: Bundle, out: Path, watch: Watcher) -> None:
    """Fill `out` with the evidence of `bundle`, gathered on the device.

    Files that lie on the device already are not copied again, and answers of a run that was cut off are
    taken up by the runner. Raises DeviceError, or the runner's own error by its exit code.
    """
    watch.begin(f"Python on {to.name}")
    _check_python(to, bundle.model.runtime)
    folder = f"{to.folder}/{bundle.digest[:16]}"
    _copy(to, bundle, f"{folder}/bundle", watch)
    watch.begin(f"Evidence on {to.name}", len(bundle.items))
    with _stopped_on_failure(to, folder):
        follow([*to.shell, _run_command(folder, to.python)], watch, to)
    with storage_errors(out):
        # Nothing of an earlier run on another machine may stay beside it.
        shutil.rmtree(out, ignore_errors=True)
        out.mkdir(parents=True)
    remote = [f"{to.prefix}{folder}/evidence/{name}" for name in EVIDENCE_FILES]
    _say(to, [*to.pull, *remote, str(out.resolve())], "bring the evidence back from", COPY_TIMEOUT_S)


def follow(command: Sequence[str], watch: Watcher, to: Device | None = None) -> None:
    """Run `command`, which starts `edgevlm_runner` here or on the device `to`, and pass its progress on.

    Raises the runner's own error, found by exit code; for any other code EdgeVlmError here and DeviceError
    on a device, where it may be the connection's; DeviceError when a device is silent for too long.
    """
    silence_s = to.silence_s if to else None
    where = f"{to.name}: " if to else ""
    lines: queue.Queue[str | None] = queue.Queue()
    said: deque[str] = deque(maxlen=LAST_WORDS)
    answered = 0
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    )
    threading.Thread(target=_pump, args=(process.stdout, lines), daemon=True).start()
    try:
        while (line := lines.get(timeout=silence_s)) is not None:
            now = _answered(line)
            if now is None:
                said.append(line)
            else:
                watch.advance(now - answered)
                answered = now
        code = process.wait()
    except queue.Empty:
        raise DeviceError(
            f"{where}no sign of life for {silence_s:g} seconds, after {answered} answers. "
            "The same command goes on from there; --device-timeout waits longer."
        ) from None
    finally:
        process.kill()
        process.wait()
    if code:
        words = "".join(said).strip().removeprefix("error: ")
        kind = _RUNNER_ERRORS.get(code, DeviceError if to else EdgeVlmError)
        raise kind(where + (words or f"the runner ended with exit code {code} and no message"))


def _pump(stream: IO[str], lines: queue.Queue[str | None]) -> None:
    """Every line, then None; reading in a thread is what lets the other end wait with a limit."""
    with stream:
        for line in stream:
            lines.put(line)
    lines.put(None)


def _answered(line: str) -> int | None:
    """The number in a progress line, None for any other line."""
    try:
        return int(json.loads(line)["answered"])
    except (ValueError, TypeError, KeyError):
        return None


def _check_python(to: Device, runtime: str) -> None:
    modules = ["numpy", "PIL", "tokenizers", _MODULES.get(runtime, runtime)]
    command = shlex.join([to.python, "-c", _PROBE, *modules])
    done = _call(to, [*to.shell, command], COMMAND_TIMEOUT_S)
    try:
        version, missing = json.loads(done.stdout.strip().splitlines()[-1])
    except (IndexError, ValueError):
        if done.returncode not in (0, 126, 127):
            raise _failure(to, "reach", done) from None
        raise DeviceError(
            f"{to.name} has no Python at {to.python!r} ({_words(done)}). Phones bring none: install Python "
            "3.8 or later there and give its path by --device-python; docs/devices.md says how."
        ) from None
    if tuple(version) < (3, 8):
        raise DeviceError(
            f"{to.name}: {to.python} is Python {version[0]}.{version[1]}; 3.8 or later is needed."
        )
    if missing:
        packages = ", ".join("Pillow" if name == "PIL" else name for name in missing)
        raise DeviceError(f"{to.name}: {to.python} lacks {packages}; install them on the device.")


def _copy(to: Device, bundle: Bundle, folder: str, watch: Watcher) -> None:
    """What the manifest lists, except what is there with the right digest. The runner checks it all again."""
    wanted = {name: entry["sha256"] for name, entry in bundle.manifest["files"].items()}
    wanted[MANIFEST] = file_digest(bundle.root / MANIFEST)
    there = _digests(to, folder)
    missing: dict[PurePosixPath, list[str]] = {}
    for name, sha256 in wanted.items():
        if there.get(name) != sha256:
            missing.setdefault(PurePosixPath(folder, name).parent, []).append(
                str(bundle.root.resolve() / name)
            )
    watch.begin(f"Copy to {to.name}", sum(map(len, missing.values())))
    if not missing:
        return
    _say(
        to, [*to.shell, shlex.join(["mkdir", "-p", *map(str, missing)])], "make folders on", COMMAND_TIMEOUT_S
    )
    for parent, files in missing.items():
        for first in range(0, len(files), COPY_BATCH):
            batch = files[first : first + COPY_BATCH]
            _say(to, [*to.push, *batch, f"{to.prefix}{parent}/"], "copy the bundle to", COPY_TIMEOUT_S)
            watch.advance(len(batch))


def _digests(to: Device, folder: str) -> dict[str, str]:
    """name → SHA-256 of what lies in a folder of the device; empty when there is no folder."""
    command = f"cd {shlex.quote(folder)} && find . -type f -exec sha256sum {{}} +"
    done = _call(to, [*to.shell, command], COPY_TIMEOUT_S)
    pairs = (line.split(maxsplit=1) for line in done.stdout.splitlines())
    return {name.removeprefix("./"): sha256 for sha256, name in (pair for pair in pairs if len(pair) == 2)}


def _run_command(folder: str, python: str) -> str:
    """For the device's shell. The process id is kept so that an abandoned run can be ended."""
    return (
        f"cd {shlex.quote(folder)} && rm -f evidence/evidence.json && echo $$ > pid && "
        "export PYTHONPATH=$PWD/bundle/runner PYTHONDONTWRITEBYTECODE=1 EDGEVLM_CACHE=$PWD/cache && "
        f"exec {shlex.quote(python)} -m edgevlm_runner bundle --out evidence"
    )


@contextlib.contextmanager
def _stopped_on_failure(to: Device, folder: str) -> Iterator[None]:
    """Ending adb or ssh does not end what it started; a second run must not find the first one at work."""
    try:
        yield
    except BaseException:
        # The number may belong to another process by now.
        stop = (
            f"pid=$(cat {shlex.quote(folder)}/pid) && grep -q edgevlm_runner /proc/$pid/cmdline && kill $pid"
        )
        with contextlib.suppress(DeviceError):
            _call(to, [*to.shell, stop], COMMAND_TIMEOUT_S)
        raise


def _say(to: Device, command: Sequence[str], doing: str, timeout_s: float) -> None:
    done = _call(to, command, timeout_s)
    if done.returncode:
        raise _failure(to, doing, done)


def _call(to: Device, command: Sequence[str], timeout_s: float) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=timeout_s, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise DeviceError(
            f"{to.name} did not answer within {timeout_s:g} seconds. Check the connection and try again."
        ) from error


def _failure(to: Device, doing: str, done: subprocess.CompletedProcess[str]) -> DeviceError:
    words = _words(done)
    hints = [hint for said, hint in _MENDING.items() if said in words]
    return DeviceError(f"cannot {doing} {to.name}: {words} {' '.join(hints[:1])}".rstrip())


def _words(done: subprocess.CompletedProcess[str]) -> str:
    """What a command said last, errors first."""
    lines = (done.stderr.strip() or done.stdout.strip()).splitlines()
    return lines[-1].removeprefix("error: ") if lines else f"exit code {done.returncode}, no message"


def _tool(name: str) -> str:
    found = shutil.which(name)
    if found is None:
        package = "Android's platform tools (Debian: apt-get install adb)" if name == "adb" else "OpenSSH"
        raise DeviceError(f"{name} is not installed on this machine; it is part of {package}.")
    return found
