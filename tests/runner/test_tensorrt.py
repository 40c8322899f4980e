"""The TensorRT executor, every line of it, against a stand-in for TensorRT and CUDA (`tests/standin`).

The stand-in offers the names of one real release each, refuses all others, keeps memory bounds and works
only when waited for. It says nothing about TensorRT's numerics, speed or memory: not run on hardware.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_tensorrt
from edgevlm_runner.contract import ModelSpec
from edgevlm_runner.errors import BundleError, ExecutionError, RuntimeUnavailable
from edgevlm_runner.generate import generate
from edgevlm_runner.runtimes import OnAccelerator, load
from tiny_tensorrt import CONTEXT, PREFILL, SIDE, D

STANDIN = Path(__file__).parents[1] / "standin"
RELEASES = ("8.6", "10.3", "10.16", "11.1")
FORMS = [(release, release in ("10.16", "11.1")) for release in RELEASES]
FORMS += [("10.13", False), ("10.16", False)]

Install = Callable[..., Any]


def prompt(tokens: int) -> tuple[np.ndarray, np.ndarray]:
    """(pixel values of three tiles, ids with their image tokens)."""
    rng = np.random.default_rng(3)
    ids = rng.integers(6, tiny_tensorrt.V, (1, tokens))
    ids[0, 1:10] = tiny_tensorrt.IMAGE_TOKEN
    return rng.standard_normal((3, 3, SIDE, SIDE)).astype(np.float32), ids


def embeds(tokens: int) -> np.ndarray:
    return np.random.default_rng(tokens).standard_normal((1, tokens, D)).astype(np.float16).astype(np.float32)


@pytest.mark.parametrize(("release", "updates"), FORMS)
def test_greedy_tokens_are_those_of_the_model(
    install: Install, graphs: Callable[[str, bool], Path], release: str, updates: bool
) -> None:
    """A prompt of several prefill runs, then decoding across two bucket borders, twice."""
    device = install(release)
    spec = tiny_tensorrt.spec(updates)
    pixels, ids = prompt(100)
    wanted = generate(tiny_tensorrt.Reference(), spec, pixels, ids)  # type: ignore[arg-type]
    with load(graphs(release, updates), spec, 1) as runtime:
        found = generate(runtime, spec, pixels, ids)
        again = generate(runtime, spec, pixels, ids)
        assert runtime.versions()["decoding"] == "CUDA graphs"
        assert runtime.versions()["gpu"] == "Orin (SM 8.7)"
        assert isinstance(runtime, OnAccelerator)
        assert runtime.device_bytes() > 2 * 2 * CONTEXT * D * 2
    assert found.token_ids == wanted.token_ids == again.token_ids
    assert len(set(found.token_ids)) > 3
    np.testing.assert_allclose(found.token_logprobs, wanted.token_logprobs, atol=0.05)
    assert device.launches == 2 * (spec.max_new_tokens - 1)
    assert not device.blocks, "memory is left allocated"


@pytest.mark.parametrize(("release", "updates"), [("8.6", False), ("10.16", True)])
def test_logits_do_not_depend_on_how_tokens_arrive(
    install: Install, graphs: Callable[[str, bool], Path], release: str, updates: bool
) -> None:
    install(release)
    spec, x = tiny_tensorrt.spec(updates), embeds(PREFILL + 3)
    whole_model = tiny_tensorrt.Reference()
    reference = whole_model.step(x)
    with load(graphs(release, updates), spec, 1) as runtime:
        whole = runtime.step(x)
        runtime.reset()
        for part in (x[:, :1], x[:, 1:7], x[:, 7:8], x[:, 8:]):
            in_pieces = runtime.step(part)
        if spec.hidden:
            np.testing.assert_allclose(runtime.hidden(), whole_model.hidden(), atol=5e-2)
    np.testing.assert_allclose(in_pieces, whole, atol=2e-2)
    np.testing.assert_allclose(whole, reference, atol=5e-2)


def test_new_rows_are_kept_by_one_strided_copy_a_step(
    install: Install, graphs: Callable[[str, bool], Path]
) -> None:
    device = install("10.3")
    with load(graphs("10.3", False), tiny_tensorrt.spec(False), 1) as runtime:
        before = device.strided
        runtime.step(embeds(5))
        runtime.step(embeds(1))
        assert device.strided == before + 2


def test_without_cuda_graphs_it_answers_the_same_and_says_so(
    install: Install, graphs: Callable[[str, bool], Path]
) -> None:
    device = install("10.3", "capture")
    spec = tiny_tensorrt.spec(False)
    pixels, ids = prompt(60)
    wanted = generate(tiny_tensorrt.Reference(), spec, pixels, ids)  # type: ignore[arg-type]
    with load(graphs("10.3", False), spec, 1) as runtime:
        assert generate(runtime, spec, pixels, ids).token_ids == wanted.token_ids
        assert "no CUDA graph: CUDA: cudaErrorStreamCaptureInvalidated" in runtime.versions()["decoding"]
    assert device.launches == 0


def test_before_8_6_a_profile_serves_one_context(
    install: Install, graphs: Callable[[str, bool], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The lists begin with 8.6: its stand-in, whose profiles are not shared, taken for 8.5."""
    device = install("8.6", "sharing")
    spec = tiny_tensorrt.spec(False)
    pixels, ids = prompt(60)
    wanted = generate(tiny_tensorrt.Reference(), spec, pixels, ids)  # type: ignore[arg-type]
    with pytest.raises(ExecutionError, match="refuses profile 1 of the decoder"):
        load(graphs("8.6", False), spec, 1)
    monkeypatch.setattr("edgevlm_runner.runtimes.tensorrt.release_of", lambda trt: (8, 5))
    with load(graphs("8.6", False), spec, 1) as runtime:
        assert generate(runtime, spec, pixels, ids).token_ids == wanted.token_ids
        assert runtime.versions()["decoding"] == "enqueue (one context for each profile)"
    assert device.launches == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda p: {**p, "decoder": []}, "no optimisation profile for the decoder"),
        (
            lambda p: {**p, "embedding": [{"input_ids": [[1, 4], [1, 2], [1, 8]]}]},
            "smallest ≤ typical ≤ largest",
        ),
    ],
)
def test_profiles_that_make_no_sense(
    install: Install, graphs: Callable[[str, bool], Path], change: Callable[[Any], Any], message: str
) -> None:
    install("10.3")
    spec = tiny_tensorrt.spec(False)
    with pytest.raises(BundleError, match=message):
        load(graphs("10.3", False), dataclasses.replace(spec, profiles=change(spec.profiles)), 1)


def _narrowed(spec: ModelSpec, most: int) -> ModelSpec:
    """Decoder profiles that end at `most` rows of past."""
    profiles = json.loads(json.dumps(dict(spec.profiles)))
    for profile in profiles["decoder"]:
        tokens = profile["inputs_embeds"][2][1]
        for name, shapes in profile.items():
            if name.startswith("past"):
                shapes[1][1], shapes[2][1] = 64, most
        profile["mask"][1][3], profile["mask"][2][3] = 64 + profile["mask"][1][2], most + tokens
    return dataclasses.replace(spec, profiles=profiles)


def test_a_profile_that_ends_before_the_context(
    install: Install, graphs: Callable[[str, bool], Path]
) -> None:
    install("10.3")
    spec = _narrowed(tiny_tensorrt.spec(False), 64)
    with pytest.raises(ExecutionError, match=r"decoder was built for past_key.0 of shape .*64.*got \[1, 128"):
        load(graphs("10.3", False), spec, 1)


def test_more_tokens_than_the_context(install: Install, graphs: Callable[[str, bool], Path]) -> None:
    install("10.3")
    with load(graphs("10.3", False), tiny_tensorrt.spec(False), 1) as runtime:
        with pytest.raises(ExecutionError, match=f"{CONTEXT + 1} tokens do not fit the cache of {CONTEXT}"):
            runtime.step(embeds(CONTEXT + 1))
        runtime.step(embeds(CONTEXT))
        with pytest.raises(ExecutionError, match=f"{CONTEXT + 1} tokens"):
            runtime.step(embeds(1))


@pytest.mark.parametrize(
    ("release", "change", "message"),
    [
        ("10.3", {"hidden_size": 32}, "image_features of the vision_encoder"),
        ("10.3", {"vocab_size": 25}, "logits of the decoder"),
        ("10.3", {"layers": 3}, "past_key.2 of the decoder is None|new_keys_values"),
        ("10.16", {"kv_heads": 1}, "past_key.0 of the decoder"),
    ],
)
def test_graphs_of_another_model(
    install: Install,
    graphs: Callable[[str, bool], Path],
    release: str,
    change: dict[str, int],
    message: str,
) -> None:
    install(release)
    updates = release == "10.16"
    spec = dataclasses.replace(tiny_tensorrt.spec(updates), **change)
    with pytest.raises(ExecutionError, match=message):
        load(graphs(release, updates), spec, 1)


def test_an_update_that_is_not_in_place_is_refused(
    install: Install, graphs: Callable[[str, bool], Path]
) -> None:
    install("10.16", "alias")
    with pytest.raises(ExecutionError, match=r"does not write present_key.0 into past_key.0"):
        load(graphs("10.16", True), tiny_tensorrt.spec(True), 1)


def test_memory_that_is_short(install: Install, graphs: Callable[[str, bool], Path]) -> None:
    install("10.3", "malloc")
    with pytest.raises(ExecutionError, match="cudaErrorMemoryAllocation while allocating"):
        load(graphs("10.3", False), tiny_tensorrt.spec(False), 1)


def test_without_the_packages(
    install: Install, graphs: Callable[[str, bool], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    install("10.3")
    monkeypatch.setitem(sys.modules, "cuda", None)
    with pytest.raises(RuntimeUnavailable, match="cuda-python cannot be imported"):
        load(graphs("10.3", False), tiny_tensorrt.spec(False), 1)
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(RuntimeUnavailable, match="apt install python3-libnvinfer"):
        load(graphs("10.3", False), tiny_tensorrt.spec(False), 1)


@pytest.mark.parametrize("release", RELEASES)
def test_the_stand_in_refuses_what_a_release_lacks(install: Install, release: str) -> None:
    install(release)
    import tensorrt as trt

    assert hasattr(trt.BuilderFlag, "FP16") == (release != "11.1")
    assert hasattr(trt, "ExecutionContextAllocationStrategy") == (release != "8.6")
    config = trt.IBuilderConfig()
    with pytest.raises(AttributeError, match="IBuilderConfig has no builder_optimisation_level"):
        config.builder_optimisation_level = 3
    with pytest.raises(AttributeError, match="has no set_memory_pool_limits"):
        config.set_memory_pool_limits(None, 0)
