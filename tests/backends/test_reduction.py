"""Fewer image tokens through the backends: what is exported computes what the reduced torch model does."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from edgevlm_runner.contract import ModelSpec, from_json, to_json
from edgevlm_runner.generate import generate
from edgevlm_runner.inputs import Inputs
from edgevlm_runner.runtimes.onnxruntime import OnnxRuntime

from edgevlm_deploy import backends, plan, reduction, resources
from edgevlm_deploy.backends import onnxruntime
from edgevlm_deploy.backends import tensorrt as tensorrt_backend
from edgevlm_deploy.export import graph, onnx, tensorrt
from edgevlm_deploy.lint import tensorrt as lint
from edgevlm_deploy.lint.subject import Profile
from edgevlm_deploy.quantize.quantized_model import QuantizedModel
from edgevlm_deploy.quantize.table import QuantizedTable
from edgevlm_deploy.recipe import Reduction, ReductionMethod

TOKENS = 4


def asks_for(method: str) -> Reduction:
    return Reduction(method=ReductionMethod(method), keep=0.5, layer=1 if method == "fastv" else None)


def run(path: Path, pixels: torch.Tensor) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(str(path), options)
    half = session.get_inputs()[0].type == "tensor(float16)"
    return session.run(None, {"pixel_values": (pixels.half() if half else pixels).numpy()})[0]


def features(model: Any, pixels: torch.Tensor) -> Any:
    with torch.no_grad():
        made = model.model.get_image_features(pixels[None]).pooler_output
    return torch.stack(list(made)).reshape(len(pixels), -1, 64).numpy()


@pytest.fixture(scope="module")
def pixels() -> torch.Tensor:
    return torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize("method", ["visionzip", "tome"])
def test_the_vision_encoder_gives_the_reduced_tokens(
    load_source: Callable[[], Any], pixels: torch.Tensor, tmp_path: Path, method: str
) -> None:
    model = reduction.apply(load_source(), asks_for(method), TOKENS)
    graph.save(onnx.export_vision_encoder(model), tmp_path / "vision.onnx")
    found = run(tmp_path / "vision.onnx", pixels)
    assert found.shape == (2, 2, 64)
    np.testing.assert_allclose(found, features(model, pixels), atol=1e-5)


@pytest.mark.parametrize(("method", "board"), [("visionzip", "jetson-nano"), ("tome", "orin")])
def test_tensorrt_takes_the_reduced_encoder(
    load_source: Callable[[], Any], pixels: torch.Tensor, tmp_path: Path, method: str, board: str
) -> None:
    """In the operators of the board's release; fp32 on Nano, fp16 on Orin."""
    target = resources.target(board)
    dialect = tensorrt_backend.dialect(target, with_int4=False)
    model = reduction.apply(load_source(), asks_for(method), TOKENS)
    graph.save(tensorrt.export_vision_encoder(model, dialect), tmp_path / "vision.onnx")
    tile = (3, 32, 32)
    report = lint.lint(
        tmp_path / "vision.onnx", target, {"pixel_values": Profile((1, *tile), (1, *tile), (2, *tile))}
    )
    assert report.exit_code == 0, [one.message for one in report.findings]
    found = run(tmp_path / "vision.onnx", pixels)
    np.testing.assert_allclose(found, features(model, pixels), atol=1e-2 if dialect.half else 1e-5)


@pytest.mark.slow
def test_fastv_is_verified_token_by_token(
    load_source: Callable[[], Any],
    table: QuantizedTable,
    spec: ModelSpec,
    samples: list[Inputs],
    tmp_path: Path,
) -> None:
    """Pictures of two tiles, of one and none. Later layers hold fewer keys; a Selector looks on."""
    pruned = dataclasses.replace(reduction.reduced(spec, asks_for("fastv")), hidden=True)
    assert from_json(ModelSpec, to_json(pruned), "spec") == pruned
    made = onnxruntime.compile(load_source, QuantizedModel(table), pruned, samples, tmp_path)
    assert made.verification["tokens"] == 3 * 32
    assert made.verification["logits_difference"] <= 1e-5
    assert 0.0 < made.verification["hidden_difference"] <= 1e-5
    with OnnxRuntime(tmp_path, pruned) as runtime:
        runtime.start(pruned.max_context)
        picture = samples[0]
        once = generate(runtime, pruned, picture.pixel_values, picture.input_ids)
        assert generate(runtime, pruned, picture.pixel_values, picture.input_ids).token_ids == once.token_ids
        assert once.pooled is not None and once.pooled.shape == (3 * pruned.hidden_size,)
        length = picture.input_ids.shape[1] + len(once.token_ids) - 1
        first, last = (runtime._cache[0].numpy()[0, 0], runtime._cache[-1].numpy()[0, 0])
        assert np.count_nonzero(first.any(-1)) == length
        assert np.count_nonzero(last.any(-1)) == length - 4, "of eight image tokens four go on"


@pytest.mark.slow
def test_litert_gives_the_reduced_tokens(
    load_source: Callable[[], Any], spec: ModelSpec, samples: list[Inputs], tmp_path: Path
) -> None:
    wanted = asks_for("tome")
    phone = resources.target("snapdragon-8-gen3")
    recipe = resources.recipe("fp16")
    generation = recipe.generation.model_copy(update={"cache_lengths": (32,), "prefill_lengths": (8,)})
    made = plan.Plan(recipe.model_copy(update={"generation": generation}), phone, {})
    named = dataclasses.replace(spec, runtime="litert", graphs=backends.graph_names(phone.backend))
    fewer = reduction.reduced(named, wanted)
    ids = samples[1].input_ids
    shorter = ids[:, [n for n in range(ids.shape[1]) if n not in (2, 3)]]  # two of four image tokens
    compile_graphs = backends.compiler(made, list)
    found = compile_graphs(
        lambda: reduction.apply(load_source(), wanted, TOKENS),
        None,
        fewer,
        [Inputs(samples[1].pixel_values, shorter)],
        tmp_path,
    )
    assert found.verification["vision_difference"] <= 1e-5
    assert found.verification["tokens"] > 0
