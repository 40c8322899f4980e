"""A bundle for a Jetson, run as on one: the real runner in its own process, on a stand-in for TensorRT and
CUDA.

The graphs are the real exporter's. Not run on hardware; see `tests/runner/test_tensorrt.py` for what the
stand-in is.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from edgevlm_runner.bundle import open_bundle
from edgevlm_runner.contract import Answer, read_jsonl

from edgevlm_deploy import pipeline, resources, validation
from edgevlm_deploy.export import graph
from edgevlm_deploy.progress import Silent
from edgevlm_deploy.report import terminal

pytestmark = pytest.mark.slow

STANDIN = Path(__file__).parents[1] / "standin"


@pytest.fixture(scope="module")
def for_orin(checkpoint: Path, recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("orin")
    own = folder / "jetson.yaml"
    text = recipe.read_text().replace("w4a16_g32", "w8a16").replace("w8a8", "w8a16")
    own.write_text(text.replace("gates:\n", "gates:\n  - {metric: peak_rss_bytes, max: 4.0e+9}\n"))
    order = pipeline.Order(model=str(checkpoint), target="orin", recipe=str(own), out=folder)
    return pipeline.compile(order, Silent())


def run(bundle: Path, out: Path, *options: str, **environment: str) -> dict[str, Any]:
    """Evidence of the runner in a process of its own; `environment` names the stand-in's release."""
    search = [str(STANDIN)] if environment else []
    command = [sys.executable, "-m", "edgevlm_runner", str(bundle), "--out", str(out), *options]
    settings = {"PYTHONPATH": os.pathsep.join([*search, *sys.path]), **environment}
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env={**os.environ, **settings}
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads((out / "evidence.json").read_text())
    return found


def test_the_board_answers_like_the_emulation_and_is_judged(for_orin: Path, tmp_path: Path) -> None:
    evidence = run(for_orin, tmp_path / "board", STANDIN_TENSORRT="10.3")
    emulated = run(for_orin, tmp_path / "host", "--emulate")
    assert evidence["runtime"]["versions"]["tensorrt"] == "10.3.0" and evidence["emulated"] is False
    assert evidence["runtime"]["versions"]["typing"] == "strong"
    assert evidence["device_bytes"] > 0 == emulated["device_bytes"]
    assert evidence["build_seconds"] > 0 == emulated["build_seconds"] and evidence["load_ms"] > 0
    here, there = (read_jsonl(tmp_path / name / "answers.jsonl", Answer) for name in ("host", "board"))
    assert [one.token_ids for one in there] == [one.token_ids for one in here]
    judged = validation.judge(open_bundle(for_orin), for_orin, tmp_path / "board")
    memory = next(gate for gate in judged.verdict.gates if gate.metric.value == "peak_rss_bytes")
    assert memory.value == evidence["peak_rss_bytes"] + evidence["device_bytes"]


def test_without_tensorrt_the_runner_says_what_to_install(for_orin: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "edgevlm_runner", str(for_orin), "--out", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 23 and "python3-libnvinfer" in done.stderr and "Traceback" not in done.stderr


def test_emulated_evidence_decides_answers_and_seals_nothing(for_orin: Path) -> None:
    done = validation.validate(for_orin, False, Silent(), emulate=True)
    outcomes = {gate.metric.value: gate for gate in done.verdict.gates}
    assert outcomes["divergence_rate"].outcome.value == "pass"
    assert outcomes["peak_rss_bytes"].outcome.value == "skipped"
    assert "at the profiles' largest shapes" in outcomes["peak_rss_bytes"].explanation
    assert done.verdict.exit_code == 4 and not done.sealed and open_bundle(for_orin).seal is None
    assert "Emulated: ONNX Runtime" in terminal.verdict_table(done)
    assert "Emulated: ONNX Runtime" in done.report.read_text()


def test_another_release_is_another_graph(for_orin: Path, checkpoint: Path) -> None:
    """Where recipe, shapes and profiles are the same, the board's TensorRT alone tells graphs apart."""
    target = for_orin.parent / "older.yaml"
    text = resources.target("orin").model_copy(update={"name": "older"}).model_dump_json()
    target.write_text(text.replace('"10.3"', '"8.6.2"'))
    own = for_orin.parent / "jetson.yaml"
    order = pipeline.Order(model=str(checkpoint), target=str(target), recipe=str(own), out=for_orin.parent)
    graphs = [
        graph.load(open_bundle(one).path("graphs/decoder.onnx"))
        for one in (for_orin, pipeline.compile(order, Silent()))
    ]
    assert [model.opset_imports[""] for model in graphs] == [20, 17]
