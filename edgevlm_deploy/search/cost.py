"""What image tokens cost: room in the key-value cache, and arithmetic before the first token.

Bytes of weights do not tell a prompt of a thousand image tokens from one of a hundred.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from edgevlm_runner.contract import Model, ModelSpec, kept_tokens

from edgevlm_deploy.export import footprint
from edgevlm_deploy.recipe import Component, Generation
from edgevlm_deploy.source import Architecture, SourceModel
from edgevlm_deploy.target import Backend


@dataclass(frozen=True)
class Shape:
    """What one question becomes."""

    tiles: int
    prompt_tokens: int
    answer_tokens: int


@dataclass(frozen=True, order=True)
class Cost:
    cache_bytes: int = 0
    """Keys and values of the longest question with its answer."""
    first_token_macs: int = 0
    """Multiply-adds with weights for the usual question, up to its first token; attention comes on top."""
    prompt_tokens: int = 0
    """Of the longest question."""


def cost(
    source: SourceModel, spec: Model, shapes: Sequence[Shape], generation: Generation, backend: Backend
) -> Cost:
    """Of questions with those shapes; a dual encoder has no cache and reads its classes once."""
    if not isinstance(spec, ModelSpec):
        return Cost(first_token_macs=_weights(source, Component.VISION_ENCODER) * _patches(source))
    longest = max(shapes, key=lambda one: one.prompt_tokens + one.answer_tokens)
    each = [_first_token_macs(source, spec, one) for one in shapes]
    return Cost(
        _cache_bytes(spec, longest, generation, backend),
        round(sum(each) / len(each)),
        max(one.prompt_tokens for one in shapes),
    )


def _cache_bytes(spec: ModelSpec, asked: Shape, generation: Generation, backend: Backend) -> int:
    tokens = asked.prompt_tokens + asked.answer_tokens
    if backend is Backend.LITERT:  # graphs with caches of a few lengths
        lengths, _ = generation.static_lengths(spec.max_context)
        tokens = next((one for one in lengths if one >= tokens), lengths[-1])
    rows = spec.layers * tokens - _later_layers(spec) * _pruned(spec, asked)
    each = footprint.HALF if backend is Backend.TENSORRT else footprint.SINGLE
    return 2 * rows * spec.kv_heads * spec.head_dim * each


def _first_token_macs(source: SourceModel, spec: ModelSpec, asked: Shape) -> int:
    assert isinstance(source.architecture, Architecture)
    decoder = _weights(source, Component.DECODER)
    pruned = decoder * _later_layers(spec) // spec.layers * _pruned(spec, asked)
    return (
        _weights(source, Component.VISION_ENCODER) * _patches(source) * asked.tiles
        + _weights(source, Component.PROJECTOR) * source.architecture.tokens_per_tile * asked.tiles
        + decoder * asked.prompt_tokens
        - pruned
        + _weights(source, Component.HEAD)
    )


def _later_layers(spec: ModelSpec) -> int:
    """Layers that FastV spares the pruned tokens."""
    return 0 if spec.pruning is None else spec.layers - spec.pruning.layer


def _pruned(spec: ModelSpec, asked: Shape) -> int:
    """Image tokens that the later layers do not see."""
    images = asked.tiles * spec.prompt.tokens_per_tile
    return 0 if spec.pruning is None else images - kept_tokens(images, spec.pruning.keep)


def _weights(source: SourceModel, component: Component) -> int:
    return sum(rows * columns for rows, columns in map(source.shapes.__getitem__, _names(source, component)))


def _names(source: SourceModel, component: Component) -> Sequence[str]:
    return source.modules.get(component.value, ())


def _patches(source: SourceModel) -> int:
    return (source.architecture.image_size // source.architecture.patch_size) ** 2
