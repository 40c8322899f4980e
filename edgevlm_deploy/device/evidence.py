"""The bundle goes to the device, its runner runs there, answers and timings come back."""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import shlex
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from edgevlm_runner.bundle import MANIFEST, Bundle
from edgevlm_runner.contract import FEATURES, DualEncoderSpec
from edgevlm_runner.storage import CHUNK_BYTES, file_digest, storage_errors

from edgevlm_deploy.device.connection import COPY_TIMEOUT_S, Device, last_words
from edgevlm_deploy.device.process import follow
from edgevlm_deploy.errors import DeviceError
from edgevlm_deploy.progress import Watcher

COPY_BATCH = 256
"""Files: command lines have a longest length, and progress should be seen."""
EVIDENCE_FILES = ("answers.jsonl", "evidence.json")

_MODULES = {
    "onnxruntime": ("onnxruntime",),
    "litert": ("ai_edge_litert",),
    "tensorrt": ("tensorrt", "cuda"),
}
"""Runtime → the Python modules that the runner imports for it."""
_PACKAGES = {"PIL": "Pillow", "ai_edge_litert": "ai-edge-litert", "cuda": "cuda-python"}
"""Modules whose package has another name."""
_PROBE = (
    "import importlib.util as u, json, sys; "
    "print(json.dumps([sys.version_info[:2], [n for n in sys.argv[1:] if u.find_spec(n) is None]]))"
)


@dataclass(frozen=True)
class Found:
    """A file on the device."""

    sha256: str
    size: int
    """Bytes."""


def gather(to: Device, bundle: Bundle, out: Path, watch: Watcher) -> None:
    """Fill `out` with the evidence of `bundle`, gathered on the device.

    What lies on the device already is not copied again, a file that was cut off is continued, and answers of
    a run that was cut off are taken up by the runner. Raises DeviceError, or the runner's own error by its
    exit code.
    """
    watch.begin(f"Python on {to.name}")
    _check_python(to, bundle.model.runtime)
    folder = f"{to.folder}/{bundle.digest[:16]}"
    _copy(to, bundle, f"{folder}/bundle", watch)
    watch.begin(f"Evidence on {to.name}", len(bundle.items))
    with _stopped_on_failure(to, folder):
        follow(to.shell(_run_command(folder, to.python)), watch, to)
    with storage_errors(out):
        # Nothing of an earlier run on another machine may stay beside it.
        shutil.rmtree(out, ignore_errors=True)
        out.mkdir(parents=True)
    wanted = [*EVIDENCE_FILES]
    if isinstance(bundle.model, DualEncoderSpec) and bundle.model.feature_items:
        wanted.append(FEATURES)
    to.pull([f"{folder}/evidence/{name}" for name in wanted], out.resolve())


def _check_python(to: Device, runtime: str) -> None:
    modules = ["numpy", "PIL", "tokenizers", *_MODULES.get(runtime, (runtime,))]
    done = to.run(shlex.join([to.python, "-c", _PROBE, *modules]))
    try:
        version, missing = json.loads(done.stdout.strip().splitlines()[-1])
    except (IndexError, ValueError):
        if done.returncode not in (0, 126, 127):
            raise to.failure(done, "reach") from None
        raise DeviceError(
            f"{to.name} has no Python at {to.python!r} ({last_words(done)}). Phones bring none: install "
            "Python 3.8 or later there and give its path by --device-python; docs/devices.md says how."
        ) from None
    if tuple(version) < (3, 8):
        raise DeviceError(
            f"{to.name}: {to.python} is Python {version[0]}.{version[1]}; 3.8 or later is needed."
        )
    if missing:
        packages = ", ".join(_PACKAGES.get(name, name) for name in missing)
        raise DeviceError(f"{to.name}: {to.python} lacks {packages}; install them on the device.")


def _copy(to: Device, bundle: Bundle, folder: str, watch: Watcher) -> None:
    """What the manifest lists, except what is there with the right digest."""
    wanted = {name: entry["sha256"] for name, entry in bundle.manifest["files"].items()}
    wanted[MANIFEST] = file_digest(bundle.root / MANIFEST)
    found = _found(to, folder)
    missing = _missing(wanted, found)
    watch.begin(f"Copy to {to.name}", len(missing))
    if not missing:
        return
    root = bundle.root.resolve()
    folders: dict[str, list[str]] = {}
    for name in missing:
        folders.setdefault(str(PurePosixPath(folder, name).parent), []).append(name)
    to.require(to.run(shlex.join(["mkdir", "-p", *folders])), "make folders on")
    _check_room(to, folder, sum(_to_send(root / name, found.get(name)) for name in missing))
    begun = {root / name for name in missing if _is_begun(root / name, found.get(name))}
    for parent, names in folders.items():
        for first in range(0, len(names), COPY_BATCH):
            batch = names[first : first + COPY_BATCH]
            to.push([root / name for name in batch], begun, parent)
            watch.advance(len(batch))
    if damaged := _missing(wanted, _found(to, folder)):
        raise DeviceError(
            f"{to.name}: {', '.join(damaged[:3])} arrived with other bytes than were sent. The same command "
            "copies again what is wrong; if that does not help, the device's storage is not to be trusted."
        )


def _missing(wanted: Mapping[str, str], found: Mapping[str, Found]) -> list[str]:
    return [name for name, sha256 in wanted.items() if name not in found or found[name].sha256 != sha256]


def _found(to: Device, folder: str) -> dict[str, Found]:
    """What lies in a folder of the device, by name; empty when there is no folder."""
    each = "find . -type f -exec"
    command = f"cd {shlex.quote(folder)} && {each} sha256sum {{}} + && {each} stat -c '%s %n' {{}} +"
    lines = (line.split(maxsplit=1) for line in to.run(command, COPY_TIMEOUT_S).stdout.splitlines())
    values: dict[str, list[str]] = {}
    for value, name in (line for line in lines if len(line) == 2):
        values.setdefault(name.removeprefix("./"), []).append(value)
    return {name: Found(sha256=both[0], size=int(both[1])) for name, both in values.items() if len(both) == 2}


def _is_begun(path: Path, there: Found | None) -> bool:
    """Whether the device has the beginning of this file, and nothing but that."""
    if there is None or not 0 < there.size < path.stat().st_size:
        return False
    sha256 = hashlib.sha256()
    left = there.size
    with path.open("rb") as stream:
        while left and (chunk := stream.read(min(left, CHUNK_BYTES))):
            sha256.update(chunk)
            left -= len(chunk)
    return sha256.hexdigest() == there.sha256


def _to_send(path: Path, there: Found | None) -> int:
    """Bytes by which the device's disk gets fuller."""
    return max(0, path.stat().st_size - (there.size if there else 0))


def _check_room(to: Device, folder: str, needed: int) -> None:
    """Raises DeviceError before a copy that cannot fit is begun. A `df` of another form is passed over."""
    lines = to.run(f"df -Pk {shlex.quote(folder)}").stdout.splitlines()
    match = re.search(r"(\d+)\s+\d+%", lines[-1]) if lines else None
    if match and (free := int(match[1]) * 1024) < needed:
        raise DeviceError(
            f"{to.name}: the bundle needs {needed:,} more bytes in {folder}, {free:,} are free. "
            "Free some space on the device."
        )


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
            to.run(stop)
        raise
