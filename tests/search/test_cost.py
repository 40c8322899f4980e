"""What image tokens cost, counted by hand."""

from __future__ import annotations

import dataclasses

import pytest
from edgevlm_runner.contract import ModelSpec, Pruning

from edgevlm_deploy import backends, source
from edgevlm_deploy.recipe import Generation, Recipe
from edgevlm_deploy.search.cost import Cost, Shape, cost
from edgevlm_deploy.source import SourceModel
from edgevlm_deploy.target import Backend

GENERATION = Generation(max_context=256)
SHAPES = [Shape(1, 38, 4), Shape(1, 34, 10), Shape(1, 36, 2)]


@pytest.fixture(scope="module")
def spec(demo: SourceModel, base: Recipe) -> ModelSpec:
    made = source.model_spec(demo, base, "onnxruntime", backends.graph_names(Backend.ONNXRUNTIME))
    assert isinstance(made, ModelSpec)
    return dataclasses.replace(made, max_context=256)


def of(demo: SourceModel, spec: ModelSpec, shapes: list[Shape], backend: Backend) -> Cost:
    return cost(demo, spec, shapes, GENERATION, backend)


def test_the_cache_holds_the_longest_question_and_its_answer(demo: SourceModel, spec: ModelSpec) -> None:
    row = 2 * spec.layers * spec.kv_heads * spec.head_dim
    assert of(demo, spec, SHAPES, Backend.ONNXRUNTIME).cache_bytes == 44 * row * 4
    assert of(demo, spec, SHAPES, Backend.TENSORRT).cache_bytes == 44 * row * 2
    assert of(demo, spec, SHAPES, Backend.LITERT).cache_bytes == 64 * row * 4, "the shortest of 64 and 256"
    assert of(demo, spec, [Shape(1, 60, 10)], Backend.LITERT).cache_bytes == 256 * row * 4


def test_arithmetic_follows_tiles_and_tokens(demo: SourceModel, spec: ModelSpec) -> None:
    def macs(*shapes: Shape) -> int:
        return of(demo, spec, [*shapes], Backend.ONNXRUNTIME).first_token_macs

    decoder = sum(demo.shapes[name][0] * demo.shapes[name][1] for name in demo.modules["decoder"])
    vision = sum(demo.shapes[name][0] * demo.shapes[name][1] for name in demo.modules["vision_encoder"])
    (projector,) = (demo.shapes[name] for name in demo.modules["projector"])
    assert macs(Shape(1, 39, 4)) - macs(Shape(1, 38, 4)) == decoder
    assert macs(Shape(2, 38, 4)) - macs(Shape(1, 38, 4)) == 64 * vision + 16 * projector[0] * projector[1]
    assert macs(Shape(1, 38, 4), Shape(1, 40, 4)) == macs(Shape(1, 39, 4))


def test_pruned_tokens_cost_the_later_layers_nothing(demo: SourceModel, spec: ModelSpec) -> None:
    """FastV in front of layer 2 of 5, 16 image tokens to 4."""
    fewer = dataclasses.replace(spec, pruning=Pruning(2, 0.25))
    whole, less = (of(demo, one, SHAPES, Backend.ONNXRUNTIME) for one in (spec, fewer))
    assert whole.cache_bytes - less.cache_bytes == 2 * 3 * 12 * spec.kv_heads * spec.head_dim * 4
    decoder = sum(demo.shapes[name][0] * demo.shapes[name][1] for name in demo.modules["decoder"])
    assert whole.first_token_macs - less.first_token_macs == decoder * 3 // 5 * 12
    assert whole.prompt_tokens == less.prompt_tokens == 38
