"""Engines on a stand-in for TensorRT: built, typed, kept, and never used when they are not ours."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import tiny_tensorrt
from edgevlm_runner.errors import ExecutionError
from edgevlm_runner.runtimes import OnAccelerator, load, tensorrt_engines

Install = Callable[..., Any]


def embeds(tokens: int) -> np.ndarray:
    shape = (1, tokens, tiny_tensorrt.D)
    return np.random.default_rng(tokens).standard_normal(shape).astype(np.float16).astype(np.float32)


def test_a_second_start_finds_the_engines(install: Install, graphs: Callable[[str, bool], Path]) -> None:
    install("10.3")
    root, spec = graphs("10.3", False), tiny_tensorrt.spec(False)
    with load(root, spec, 1) as runtime:
        assert isinstance(runtime, OnAccelerator) and runtime.build_seconds() > 0
    cache = Path(os.environ["EDGEVLM_CACHE"]) / "tensorrt"
    plans = {path: path.stat().st_mtime_ns for path in cache.glob("*.plan")}
    assert len(plans) == 3 and (cache / "timings.bin").read_bytes().startswith(b"timings")
    assert not list(cache.glob("*.tmp"))
    install("10.3", "build")  # a build would fail now
    with load(root, spec, 1) as runtime:
        assert isinstance(runtime, OnAccelerator) and runtime.build_seconds() == 0
    assert {path: path.stat().st_mtime_ns for path in cache.glob("*.plan")} == plans


@pytest.mark.parametrize("damage", ["plan", "note", "cut", "foreign"])
def test_a_damaged_or_foreign_engine_is_built_anew(
    install: Install, graphs: Callable[[str, bool], Path], damage: str
) -> None:
    install("10.3")
    root, spec = graphs("10.3", False), tiny_tensorrt.spec(False)
    load(root, spec, 1).close()
    cache = Path(os.environ["EDGEVLM_CACHE"]) / "tensorrt"
    notes = {json.loads(note.read_text())["plan_sha256"]: note for note in cache.glob("*.json")}
    victim, other = sorted(cache.glob("*.plan"))[:2]
    whole = victim.read_bytes()
    if damage == "plan":
        victim.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    elif damage == "note":
        victim.with_suffix(".json").write_text("{}")
    elif damage == "cut":
        victim.write_bytes(whole[:100])
    else:  # another engine with its own matching note, under this name
        victim.write_bytes(other.read_bytes())
        victim.with_suffix(".json").write_bytes(other.with_suffix(".json").read_bytes())
    with load(root, spec, 1) as runtime:
        assert np.isfinite(runtime.step(embeds(3))).all()
    assert victim.read_bytes() == whole and len(notes) == 3


def test_an_engine_that_another_user_put_there_is_not_used(
    install: Install, graphs: Callable[[str, bool], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    install("10.3")
    root, spec = graphs("10.3", False), tiny_tensorrt.spec(False)
    load(root, spec, 1).close()
    plan = next((Path(os.environ["EDGEVLM_CACHE"]) / "tensorrt").glob("*.plan"))
    note, stranger = plan.with_suffix(".json"), os.getuid() + 1
    name = json.loads(note.read_text())["key"]
    assert tensorrt_engines._whole(plan, note, name) is not None
    if os.getuid() == 0:
        os.chown(plan, stranger, -1)
    else:
        monkeypatch.setattr(os, "getuid", lambda: stranger)
    assert tensorrt_engines._whole(plan, note, name) is None


def test_the_key_is_of_everything_that_an_engine_depends_on(
    tmp_path: Path, graphs: Callable[[str, bool], Path]
) -> None:
    board = tensorrt_engines.Board("10.3.0", "Orin (SM 8.7)", "12.6", "12.6")
    profiles = tiny_tensorrt.spec(False).profiles["decoder"]
    names = {tensorrt_engines.key("a", profiles, board), tensorrt_engines.key("b", profiles, board)}
    names.add(tensorrt_engines.key("a", profiles[:1], board))
    for field in dataclasses.fields(board):
        names.add(tensorrt_engines.key("a", profiles, dataclasses.replace(board, **{field.name: "other"})))
    assert len(names) == 3 + len(dataclasses.fields(board))
    for path in graphs("10.3", False).iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    before = tensorrt_engines.graph_digest(tmp_path / "decoder.onnx")
    weights = tmp_path / "decoder.data"
    weights.write_bytes(bytes([weights.read_bytes()[0] ^ 1]) + weights.read_bytes()[1:])
    assert tensorrt_engines.graph_digest(tmp_path / "decoder.onnx") != before
    vision = tensorrt_engines.graph_digest(tmp_path / "vision_encoder.onnx")
    weights.write_bytes(b"")
    assert tensorrt_engines.graph_digest(tmp_path / "vision_encoder.onnx") == vision


@pytest.mark.parametrize("release", ["10.3", "10.16"])
def test_a_strongly_typed_build_that_fails_is_tried_weakly_and_said(
    install: Install, graphs: Callable[[str, bool], Path], release: str
) -> None:
    install(release, "strong")
    root, spec = graphs(release, False), tiny_tensorrt.spec(False)
    with load(root, spec, 1) as runtime:
        typing = runtime.versions()["typing"]
        assert "decoder weak: strongly typed the build failed: decoder.onnx" in typing
        assert "Could not find any implementation" in typing and str(root) not in typing
        np.testing.assert_allclose(
            runtime.step(embeds(4)), tiny_tensorrt.Reference().step(embeds(4)), atol=5e-2
        )
    cache = Path(os.environ["EDGEVLM_CACHE"]) / "tensorrt"
    flags = [json.loads(plan.read_bytes().partition(b"\n")[0])["flags"] for plan in cache.glob("*.plan")]
    assert sorted(flags) == [["FP16"], ["FP16"], ["FP16", "INT8"]]
    install(release)  # the cache remembers why
    with load(root, spec, 1) as runtime:
        assert runtime.versions()["typing"] == typing


def test_tensorrt_11_has_no_weak_typing_to_fall_back_to(
    install: Install, graphs: Callable[[str, bool], Path]
) -> None:
    device = install("11.1", "strong")
    with pytest.raises(
        ExecutionError, match=r"vision_encoder.onnx: TensorRT 11.1.0 cannot build.*ForeignNode"
    ):
        load(graphs("11.1", True), tiny_tensorrt.spec(True), 1)
    assert not device.blocks


def test_8_6_is_typed_weakly_and_says_so(install: Install, graphs: Callable[[str, bool], Path]) -> None:
    install("8.6")
    with load(graphs("8.6", False), tiny_tensorrt.spec(False), 1) as runtime:
        assert runtime.versions()["typing"] == "weak: TensorRT 8.6.2 has no strongly typed networks"


def test_an_operator_that_the_release_lacks(install: Install, graphs: Callable[[str, bool], Path]) -> None:
    install("10.3")
    with pytest.raises(ExecutionError, match=r"decoder.onnx: TensorRT 10.3.0 does not read.*TensorScatter"):
        load(graphs("10.3", True), tiny_tensorrt.spec(True), 1)


def test_inputs_that_the_manifest_does_not_name(
    install: Install, graphs: Callable[[str, bool], Path], tmp_path: Path
) -> None:
    install("10.3")
    for path in graphs("10.3", False).iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    model = onnx.load(tmp_path / "embedding.onnx")
    model.graph.input[0].name = model.graph.node[0].input[1] = "tokens"
    onnx.save(model, tmp_path / "embedding.onnx")
    with pytest.raises(ExecutionError, match="graph and profiles differ: input_ids, tokens"):
        load(tmp_path, tiny_tensorrt.spec(False), 1)
    (tmp_path / "embedding.onnx").unlink()
    with pytest.raises(ExecutionError, match=r"embedding \(embedding.onnx\) is missing"):
        load(tmp_path, tiny_tensorrt.spec(False), 1)


def test_the_builder_reports_like_every_part_of_edgevlm(install: Install, tmp_path: Path) -> None:
    install("10.3")
    request = {
        "graph": str(tmp_path / "none.onnx"),
        "profiles": [],
        "plan": str(tmp_path / "a.plan"),
        "timing_cache": str(tmp_path / "timings.bin"),
        "free_bytes": 1 << 30,
    }
    done = subprocess.run(
        [sys.executable, "-m", "edgevlm_runner.runtimes.tensorrt_build"],
        input=json.dumps(request),
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == ExecutionError.exit_code
    assert done.stderr.startswith("error: ") and "Traceback" not in done.stderr
