"""A checkpoint through LiteRT: bundle, evidence, verdict, seal and answer, as with ONNX Runtime."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from edgevlm_runner.bundle import open_bundle

from edgevlm_deploy import ask, pipeline, validation
from edgevlm_deploy.progress import Silent
from edgevlm_deploy.report import inventory
from edgevlm_deploy.verdict import Outcome

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def compiled(checkpoint: Path, recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    order = pipeline.Order(
        model=str(checkpoint),
        target="snapdragon-8-gen3",
        recipe=str(recipe),
        out=tmp_path_factory.mktemp("litert"),
    )
    return pipeline.compile(order, Silent())


def test_the_bundle_proves_its_integers(compiled: Path) -> None:
    bundle = open_bundle(compiled)
    verification = bundle.manifest["verification"]
    quantized = sum(
        count for kinds in bundle.manifest["quantization"]["modules"].values() for count in kinds.values()
    )
    assert verification["exact_modules"] == quantized > 60
    assert verification["logits_difference"] <= 1e-4
    assert {"litert-torch", "ai-edge-quantizer", "ai-edge-litert"} <= set(bundle.manifest["packages"])
    assert bundle.model.runtime == "litert"
    assert inventory.sizes(bundle)["model"] == (bundle.root / "graphs" / "model.tflite").stat().st_size


def test_it_is_run_judged_sealed_and_asked(compiled: Path, repository: Path) -> None:
    before = subprocess.run(
        [sys.executable, "-m", "edgevlm_deploy.cli", "run", str(compiled), "--prompt", "How many?"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert before.returncode == 20 and "edgevlm validate" in before.stderr
    done = validation.validate(compiled, False, Silent())
    assert done.verdict.outcome is Outcome.PASS and done.sealed
    assert done.evidence["runtime"]["name"] == "litert"
    assert done.evidence["runtime"]["versions"]["executor"] == "CompiledModel"
    assert "model.tflite" in done.report.read_text() or "litert" in done.report.read_text()
    reply = ask.answer(compiled, "How many cubes?", repository / "docs" / "scene.png", False, lambda _: None)
    assert reply["deployable"] and reply["tokens"] > 0


def test_a_damaged_graph_is_found_before_it_runs(compiled: Path, tmp_path: Path) -> None:
    data = bytearray(compiled.read_bytes())
    data[len(data) // 3] ^= 1
    (tmp_path / "damaged.edgevlm").write_bytes(data)
    # A cache of its own: where the sound bundle was unpacked before, that copy would be run.
    own_cache = {**os.environ, "EDGEVLM_CACHE": str(tmp_path / "cache")}
    done = subprocess.run(
        [sys.executable, "-m", "edgevlm_runner", str(tmp_path / "damaged.edgevlm"), "--out", str(tmp_path)],
        env=own_cache,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 20 and "not a whole bundle" in done.stderr
