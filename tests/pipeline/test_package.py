"""Packages of a bundle: a folder that runs by itself, a .litertlm file that LiteRT-LM answers from."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from edgevlm_runner.bundle import open_bundle

from edgevlm_deploy import bundle, package
from edgevlm_deploy.errors import BundleError, ExportError, MissingExtraError, PlanError, StorageError
from edgevlm_deploy.export import litertlm, litertlm_check, qualcomm
from edgevlm_deploy.package import Form

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def litert(request: pytest.FixtureRequest, checkpoint: Path, recipe: Path, tmp_path_factory: Any) -> Path:
    from edgevlm_deploy import pipeline
    from edgevlm_deploy.progress import Silent

    out = tmp_path_factory.mktemp("litert")
    order = pipeline.Order(model=str(checkpoint), target="snapdragon-8-gen3", recipe=str(recipe), out=out)
    return pipeline.compile(order, Silent())


def edgevlm(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "edgevlm_deploy.cli", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_a_bundle_without_a_seal_is_not_packaged(compiled: Path, tmp_path: Path) -> None:
    out = tmp_path / "device"
    done = edgevlm("package", str(compiled), "--format", "folder", "--out", str(out))
    assert done.returncode == 20 and "has not passed its gates" in done.stderr and not out.exists()


def test_a_folder_runs_with_the_runner_in_it(compiled: Path, tmp_path: Path) -> None:
    out = tmp_path / "device"
    done = edgevlm("package", str(compiled), "--format", "folder", "--out", str(out), "--unsealed", "--json")
    assert done.returncode == 0, done.stderr
    made = json.loads(done.stdout)
    assert made["push"] == f"adb push {out} /data/local/tmp/edgevlm/device"
    assert open_bundle(out).digest == open_bundle(compiled).digest
    command = [sys.executable, "-m", "edgevlm_runner", ".", "--out", "../evidence"]
    subprocess.run(command, cwd=out, env={**os.environ, "PYTHONPATH": "runner"}, check=True)
    assert (tmp_path / "evidence" / "evidence.json").is_file()
    with pytest.raises(StorageError, match="exists"):
        package.package(compiled, Form.FOLDER, out, unsealed=True)


def test_litert_lm_reads_the_same_tokens_and_runs_the_package(litert: Path, tmp_path: Path) -> None:
    """Weights are random: answers hang on near ties, so few of them need to be equal here."""
    opened, out = open_bundle(litert), tmp_path / "demo.litertlm"
    tokenizer = opened.path("tokenizer/tokenizer.json")
    litertlm.write(
        opened.path("graphs/model.tflite"), opened.model, tokenizer, {"name": "x"}, opened.digest, out
    )
    found = litertlm_check.compare(out, opened, opened.model)
    assert found.text_questions == found.picture_questions == 12
    assert found.text_equal >= 10


def test_a_package_that_answers_otherwise_is_refused(litert: Path, tmp_path: Path) -> None:
    """Another prompt in the package gives other tokens, which is what the comparison is for."""
    opened, out = open_bundle(litert), tmp_path / "demo.litertlm"
    tokenizer = tmp_path / "tokenizer.json"
    vocabulary = json.loads(opened.path("tokenizer/tokenizer.json").read_text())
    vocabulary["model"]["merges"] = []
    tokenizer.write_text(json.dumps(vocabulary))
    litertlm.write(opened.path("graphs/model.tflite"), opened.model, tokenizer, {}, opened.digest, out)
    with pytest.raises(ExportError, match="as other tokens than the runner"):
        litertlm_check.compare(out, opened, opened.model)


def test_onnx_graphs_are_not_for_litert_lm(compiled: Path, tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="holds graphs for onnxruntime, this form needs LiteRT's"):
        package.package(compiled, Form.LITERTLM, tmp_path / "out.litertlm", unsealed=True)


def test_qualcomm_wants_an_npu_its_sdk_and_a_chip_it_knows(litert: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.edgevlm"
    with pytest.raises(BundleError, match="compiled for the cpu; Hexagon takes calibrated integers"):
        package.package(litert, Form.QUALCOMM, out, unsealed=True)
    model = open_bundle(litert).path("graphs/model.tflite")
    with pytest.raises(PlanError, match=r"knows the chips .*SM8650.*; the target has 'SM1'"):
        qualcomm.compile(model, "SM1", tmp_path / "out.tflite")
    if qualcomm_sdk_is_missing():
        with pytest.raises(MissingExtraError, match="pip install ai-edge-litert-sdk-qualcomm"):
            qualcomm.compile(model, "SM8650", tmp_path / "out.tflite")


def qualcomm_sdk_is_missing() -> bool:
    import importlib.util

    return importlib.util.find_spec("ai_edge_litert_sdk_qualcomm") is None


def test_a_package_whose_sdk_was_not_downloaded_says_so(
    litert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As pip leaves it: the package is there, Qualcomm's files are not."""
    (tmp_path / "ai_edge_litert_sdk_qualcomm.py").write_text("def path_to_sdk_libs(): return None\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    model = open_bundle(litert).path("graphs/model.tflite")
    with pytest.raises(MissingExtraError, match="its download failed"):
        qualcomm.compile(model, "SM8650", tmp_path / "out.tflite")


def test_a_revised_bundle_is_whole_and_has_no_seal(litert: Path, tmp_path: Path) -> None:
    folder = tmp_path / "bundle"
    bundle.unpack(litert, folder)
    model = folder / "graphs" / "model.tflite"
    model.write_bytes(model.read_bytes() + b"\0" * 16)
    bundle.revise(folder, ["graphs/model.tflite"], {"compiled_for": "SM8650"})
    revised = open_bundle(bundle.pack(folder, tmp_path / "revised.edgevlm"))
    assert revised.digest != open_bundle(litert).digest and revised.seal is None
    assert revised.manifest["verification"]["compiled_for"] == "SM8650"
    assert revised.manifest["verification"]["exact_modules"] > 60
