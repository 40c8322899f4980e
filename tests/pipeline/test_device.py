"""Evidence from a device: a stand-in `adb` whose device is a folder, and the real runner in it.

No phone takes part. What is tested is this side of the cable, and the commands that go through it.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from edgevlm_runner.bundle import open_bundle

from edgevlm_deploy import device, validation
from edgevlm_deploy.device import Device
from edgevlm_deploy.errors import DeviceError, ExecutionError
from edgevlm_deploy.progress import Silent
from edgevlm_deploy.verdict import Outcome

pytestmark = pytest.mark.slow

ADB = """#!{python}
import os, pathlib, shutil, subprocess, sys

arguments = sys.argv[1:]
with open({log!r}, "a") as log:
    print(*arguments, sep="\\t", file=log)
if arguments[0] == "-s":
    if arguments[1] != "PHONE":
        sys.exit(f"error: device '{{arguments[1]}}' not found")
    arguments = arguments[2:]
here = lambda path: path.replace("/data/local/tmp", {disk!r})
said = os.environ.get("ADB_" + arguments[0].upper())
if said:
    sys.exit(said)
if arguments[0] == "shell":
    (command,) = arguments[1:]
    environment = dict(os.environ, PYTHONPATH="", PATH="/usr/bin:/bin")
    sys.exit(subprocess.run(["sh", "-c", here(command)], env=environment).returncode)
*sources, target = [here(one) for one in arguments[1:]]
assert pathlib.Path(target).is_dir(), target
for source in sources:
    shutil.copy(source, target)
"""


@pytest.fixture
def phone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder that is the device's /data/local/tmp; the calls of adb are in `calls` beside it."""
    disk, tools = tmp_path / "phone" / "disk", tmp_path / "tools"
    disk.mkdir(parents=True)
    tools.mkdir()
    text = ADB.format(python=sys.executable, log=str(disk.parent / "calls"), disk=str(disk))
    (tools / "adb").write_text(text)
    (tools / "adb").chmod(0o755)
    monkeypatch.setenv("PATH", str(tools), prepend=os.pathsep)
    return disk


@pytest.fixture
def bundle(compiled: Path, tmp_path: Path) -> Path:
    return Path(shutil.copy(compiled, tmp_path / compiled.name))


def on(name: str = "adb:PHONE", python: str = sys.executable, silence_s: float = 120.0) -> Device:
    return device.named(name, python, silence_s)


def calls(phone: Path, verb: str) -> list[list[str]]:
    lines = (phone.parent / "calls").read_text().splitlines()
    return [words for line in lines if (words := line.split("\t")[2:])[0] == verb]


def test_the_bundle_is_copied_run_there_judged_here_and_sealed(phone: Path, bundle: Path) -> None:
    done = validation.validate(bundle, False, Silent(), on())
    assert done.verdict.outcome is Outcome.PASS and done.sealed
    (folder,) = (phone / "edgevlm").iterdir()
    assert open_bundle(folder / "bundle").digest == open_bundle(bundle).digest
    there = json.loads((folder / "evidence" / "evidence.json").read_text())
    assert there == done.evidence
    assert set(open_bundle(bundle).seal["evidence"]) == {  # type: ignore[index]
        "answers.jsonl",
        "evidence.json",
        "metrics.json",
        "verdict.json",
    }


def test_the_same_through_ssh(board: Path, bundle: Path) -> None:
    done = validation.validate(bundle, False, Silent(), on("ssh:board"))
    assert done.sealed
    (folder,) = (board / ".cache" / "edgevlm-device").iterdir()
    assert json.loads((folder / "evidence" / "evidence.json").read_text()) == done.evidence


def test_what_lies_there_is_not_copied_again_and_damage_is(phone: Path, bundle: Path) -> None:
    validation.validate(bundle, False, Silent(), on())
    assert (
        sum(len(words) - 2 for words in calls(phone, "push"))
        == len(open_bundle(bundle).manifest["files"]) + 1
    )
    (phone.parent / "calls").unlink()
    (folder,) = (phone / "edgevlm").iterdir()
    (folder / "bundle" / "items.jsonl").write_text("{}\n")
    (folder / "bundle" / "gates.json").unlink()
    validation.validate(bundle, False, Silent(), on())
    (pushed,) = calls(phone, "push")
    assert sorted(Path(name).name for name in pushed[1:-1]) == ["gates.json", "items.jsonl"]


def test_a_run_that_was_cut_off_goes_on(phone: Path, bundle: Path) -> None:
    """The answers that the device has already are kept: one of them, changed here, comes back changed."""
    validation.validate(bundle, False, Silent(), on())
    (folder,) = (phone / "edgevlm").iterdir()
    evidence = json.loads((folder / "evidence" / "evidence.json").read_text())
    origin = {key: evidence[key] for key in ("format_version", "bundle", "runtime", "threads", "emulated")}
    first = json.loads((folder / "evidence" / "answers.jsonl").read_text().splitlines()[0])
    rows = [origin, {**first, "text": "kept"}]
    (folder / "evidence" / "answers.partial.jsonl").write_text(
        "".join(json.dumps(row) + "\n" for row in rows)
    )
    validation.validate(bundle, False, Silent(), on())
    answers = bundle.with_suffix(".evidence") / "answers.jsonl"
    assert json.loads(answers.read_text().splitlines()[0])["text"] == "kept"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: on("adb:OTHER"), "'OTHER' not found .*`adb devices`"),
        (lambda: on("usb"), "'usb' is no device; expected adb, adb:SERIAL, ssh:"),
        (lambda: on("ssh:-oProxyCommand=x"), "'ssh:-oProxyCommand=x' is no device; expected ssh:"),
        (lambda: on("ssh:board:22"), "expected .* ssh://.*:PORT with a port"),
        (lambda: on("ssh://board:port"), "'ssh://board:port' is no device: Port could not be cast"),
        (lambda: on("ssh://user:secret@board"), "takes no password: use a key"),
        (lambda: on("ssh://board/folder"), "expected ssh://.* and nothing after it"),
        (lambda: on(python="python3.99"), "no Python at 'python3.99' .*docs/devices.md"),
    ],
)
def test_a_device_that_cannot_run_it_is_a_sentence(
    phone: Path, bundle: Path, make: Callable[[], Device], message: str
) -> None:
    with pytest.raises(DeviceError, match=message):
        validation.validate(bundle, False, Silent(), make())


@pytest.mark.parametrize(
    ("verb", "said", "message"),
    [
        ("SHELL", "error: no devices/emulators found", "no devices.*USB debugging"),
        ("SHELL", "error: device unauthorized.", "unauthorized.*accept the question"),
        ("SHELL", "error: more than one device/emulator", "more than one.*--device adb:SERIAL"),
        ("PUSH", "adb: error: failed to copy: No space left on device", "cannot copy.*Free some space"),
        ("PULL", "adb: error: device offline", "cannot bring the evidence back.*offline"),
    ],
)
def test_what_adb_complains_of_is_passed_on_with_a_way_out(
    phone: Path, bundle: Path, monkeypatch: pytest.MonkeyPatch, verb: str, said: str, message: str
) -> None:
    monkeypatch.setenv(f"ADB_{verb}", said)
    with pytest.raises(DeviceError, match=message):
        validation.validate(bundle, False, Silent(), on())
    assert open_bundle(bundle).seal is None


def test_a_python_without_the_packages_is_told_which(phone: Path, bundle: Path, tmp_path: Path) -> None:
    bare = tmp_path / "bare"
    bare.write_text(f'#!/bin/sh\nexec {sys.executable} -I -S "$@"\n')
    bare.chmod(0o755)
    with pytest.raises(DeviceError, match="lacks numpy, Pillow, tokenizers, onnxruntime"):
        validation.validate(bundle, False, Silent(), on(python=str(bare)))


def wrapped(tmp_path: Path, instead: str) -> str:
    """A Python that passes the check for packages, and does something else in place of the runner."""
    path = tmp_path / "python"
    path.write_text(f'#!/bin/sh\n[ "$1" = -c ] && exec {sys.executable} "$@"\n{instead}\n')
    path.chmod(0o755)
    return str(path)


@pytest.mark.parametrize(
    ("instead", "error", "message"),
    [
        ("echo 'error: refuses this graph' >&2; exit 24", ExecutionError, "adb:PHONE: .*refuses this graph"),
        ("exit 137", DeviceError, "exit code 137"),
        ("exit 0", DeviceError, "cannot bring the evidence back"),
    ],
)
def test_a_runner_that_fails_there(
    phone: Path, bundle: Path, tmp_path: Path, instead: str, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        validation.validate(bundle, False, Silent(), on(python=wrapped(tmp_path, instead)))


def test_a_silent_device_is_given_up_and_its_runner_ended(phone: Path, bundle: Path, tmp_path: Path) -> None:
    silent = f"exec {sys.executable} -c 'import time; time.sleep(600)' edgevlm_runner"
    with pytest.raises(DeviceError, match="no sign of life for 2 seconds"):
        validation.validate(bundle, False, Silent(), on(python=wrapped(tmp_path, silent), silence_s=2))
    (folder,) = (phone / "edgevlm").iterdir()
    process = Path("/proc") / (folder / "pid").read_text().strip()
    for _ in range(100):
        if not process.exists() or (process / "cmdline").read_text() == "":  # gone, or a zombie
            return
        time.sleep(0.1)
    pytest.fail("the runner is still at work on the device")


def test_adb_that_is_not_installed(bundle: Path, tmp_path: Path) -> None:
    """Through the command line: one sentence and the exit code of its cause."""
    command = [sys.executable, "-m", "edgevlm_deploy.cli", "validate", str(bundle), "--device", "adb"]
    done = subprocess.run(
        command, capture_output=True, text=True, env={**os.environ, "PATH": str(tmp_path)}, check=False
    )
    assert done.returncode == DeviceError.exit_code
    assert "adb is not installed" in done.stderr and "Traceback" not in done.stderr
