"""From a checkpoint to a bundle: what is inside, and what a second run repeats."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from edgevlm_runner.bundle import open_bundle
from edgevlm_runner.contract import TEMPERATURE

from edgevlm_deploy import pipeline
from edgevlm_deploy.errors import CheckpointError, DataError, StorageError
from edgevlm_deploy.progress import Silent

pytestmark = pytest.mark.slow


def order(checkpoint: Path, recipe: Path, out: Path, **more: Path) -> pipeline.Order:
    return pipeline.Order(model=str(checkpoint), target="host-cpu", recipe=str(recipe), out=out, **more)


def test_the_bundle_says_what_it_is(compiled: Path) -> None:
    bundle = open_bundle(compiled)
    assert bundle.seal is None
    assert len(bundle.items) == 12 + 2 * 4 + 8
    fitted_on = [item for item in bundle.items if item.condition == TEMPERATURE]
    judged = {item.image_id for item in bundle.items if item.condition != TEMPERATURE}
    assert len(fitted_on) == 8 and not judged & {item.image_id for item in fitted_on}
    manifest = bundle.manifest
    assert manifest["name"] == "untrained-host-cpu-small"
    assert manifest["source"]["family"] == "smolvlm"
    assert manifest["quantization"]["modules"]["decoder"] == {"w4a16_g32 rtn": 35}
    assert manifest["verification"]["logits_difference"] < 1e-5
    assert {"torch", "onnxruntime"} <= set(manifest["packages"])
    budgets = {gate["metric"] for gate in json.loads(bundle.path("gates.json").read_text())}
    assert budgets == {"divergence_rate"}, "target_budgets: report makes no gates"


def test_the_same_inputs_give_the_same_bytes(
    checkpoint: Path, recipe: Path, compiled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In another folder, which is given relative to the working directory."""
    monkeypatch.chdir(tmp_path)
    again = pipeline.compile(order(checkpoint, recipe, Path("build")), Silent())
    assert again.read_bytes() == compiled.read_bytes()


def test_finished_stages_are_not_made_again(checkpoint: Path, recipe: Path, compiled: Path) -> None:
    stages = compiled.parent / "stages"
    before = {path: path.stat().st_mtime_ns for path in stages.iterdir()}
    pipeline.compile(order(checkpoint, recipe, compiled.parent), Silent())
    assert {path: path.stat().st_mtime_ns for path in stages.iterdir()} == before


def test_another_gate_repeats_only_the_bundle(
    checkpoint: Path, recipe: Path, compiled: Path, tmp_path: Path
) -> None:
    out = tmp_path / "build"
    shutil.copytree(compiled.parent, out)
    stricter = tmp_path / "small.yaml"
    stricter.write_text(recipe.read_text().replace("max: 1.0", "max: 0.5"))
    before = {path.name for path in (out / "stages").iterdir()}
    pipeline.compile(order(checkpoint, stricter, out), Silent())
    made = {path.name for path in (out / "stages").iterdir()} - before
    assert {name.split("-")[0] for name in made} == {"bundle"}


def test_a_killed_compilation_goes_on_where_it_was(
    checkpoint: Path, recipe: Path, compiled: Path, tmp_path: Path
) -> None:
    """Killed while the reference answers are made; the next run gives the same bundle."""
    command = [sys.executable, "-m", "edgevlm_deploy.cli", "compile", str(checkpoint), "--target", "host-cpu"]
    command += ["--recipe", str(recipe), "--out", str(tmp_path), "--no-evidence"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not list((tmp_path / "stages").glob("reference-*.partial")):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert not list(tmp_path.glob("*.edgevlm"))
    finished = {path.name for path in (tmp_path / "stages").iterdir() if not path.name.endswith(".partial")}
    assert any(name.startswith("items-") for name in finished)
    assert (
        pipeline.compile(order(checkpoint, recipe, tmp_path), Silent()).read_bytes() == compiled.read_bytes()
    )


def test_truncated_weights_are_refused_before_they_are_loaded(
    checkpoint: Path, recipe: Path, tmp_path: Path
) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(checkpoint, broken)
    weights = broken / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    with pytest.raises(CheckpointError, match=r"model\.safetensors"):
        pipeline.compile(order(broken, recipe, tmp_path / "build"), Silent())


def test_a_corrupt_picture_among_the_items_is_named(checkpoint: Path, recipe: Path, tmp_path: Path) -> None:
    (tmp_path / "good.png").write_bytes(b"\x89PNG\r\n\x1a\n broken")
    (tmp_path / "items.jsonl").write_text(
        '{"image": "good.png", "question": "What is it?", "answers": ["x"]}\n'
    )
    with pytest.raises(DataError, match=r"items\.jsonl:1: .*good\.png"):
        pipeline.compile(
            order(checkpoint, recipe, tmp_path / "build", data=tmp_path / "items.jsonl"), Silent()
        )


def test_overlap_of_calibration_and_evaluation_is_refused(
    checkpoint: Path, recipe: Path, tmp_path: Path
) -> None:
    from edgevlm_deploy.demo.dataset import samples
    from edgevlm_deploy.demo.scenes import Split

    samples(Split.EVALUATION, 4, 2, tmp_path)
    data = tmp_path / "evaluation.jsonl"
    with pytest.raises(DataError, match="in the calibration and in the evaluation data"):
        pipeline.compile(order(checkpoint, recipe, tmp_path / "build", data=data, calibration=data), Silent())


def test_a_full_disk_is_a_sentence(checkpoint: Path, recipe: Path, tmp_path: Path) -> None:
    """On a file system of two megabytes, made for the purpose."""
    small = tmp_path / "small"
    small.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(small)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("mounting a small file system needs root")
    try:
        with pytest.raises(StorageError, match=r"(No space left|bytes are needed)"):
            pipeline.compile(order(checkpoint, recipe, small), Silent())
        assert not list(small.glob("*.edgevlm"))
    finally:
        subprocess.run(["umount", str(small)], check=True)
