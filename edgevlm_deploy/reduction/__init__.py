"""Fewer image tokens: FastV, VisionZip and ToMe.

The reduced model is what is quantised, exported and compared with the graphs. Reference answers come from
the model as it was, so that gates see what reduction costs.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from edgevlm_runner import contract
from edgevlm_runner.contract import ModelSpec

from edgevlm_deploy.recipe import Reduction, ReductionMethod
from edgevlm_deploy.source.model import AnyArchitecture, Architecture
from edgevlm_deploy.target import Backend, Target

__all__ = ["applied", "apply", "kept_tokens", "problems", "reduced"]

FASTV_LAYER = 2
"""Published: two layers see all tokens."""


def kept_tokens(tokens: int, reduction: Reduction) -> int:
    """How many of `tokens` are left: at least one."""
    return contract.kept_tokens(tokens, reduction.keep)


def problems(reduction: Reduction | None, target: Target, architecture: AnyArchitecture | None) -> list[str]:
    """Why it cannot be had, a sentence each; `architecture` None leaves out what depends on the model."""
    if reduction is None:
        return []
    if architecture is not None and not isinstance(architecture, Architecture):
        return ["image.reduction: this model gives no image tokens to a decoder; leave the reduction out."]
    found = []
    is_fastv = reduction.method is ReductionMethod.FASTV
    if is_fastv and target.backend is not Backend.ONNXRUNTIME:
        found.append(
            f"image.reduction: fastv is not exported for {target.backend.value}: its key-value cache has one "
            "length for all layers, and later layers would need a shorter one. Take visionzip or tome."
        )
    if architecture is None:
        return found
    if architecture.cell:
        return [
            f"image.reduction: {reduction.method.value} is not implemented for models that keep a picture's "
            "own resolution; lower image.max_pixels instead."
        ]
    if architecture.prefix:
        found.append(
            "image.reduction: in this model every token of the prompt sees every other, which no method here "
            "reckons with; leave the reduction out."
        )
    elif architecture.shuffle == 1 and not is_fastv:
        found.append(
            f"image.reduction: {reduction.method.value} works behind a pixel shuffle (Idefics3, SmolVLM), "
            "which this model does not have. Take fastv or leave the reduction out."
        )
    layer = reduction.layer or FASTV_LAYER
    if is_fastv and layer >= architecture.layers:
        found.append(
            f"image.reduction: fastv prunes in front of layer {layer}, the decoder has layers 0 to "
            f"{architecture.layers - 1}."
        )
    tokens = architecture.tokens_per_tile
    if kept_tokens(tokens, reduction) == tokens:
        found.append(
            f"image.reduction: keep {reduction.keep:g} of {tokens} image tokens a tile takes none away; "
            "lower it or leave the reduction out."
        )
    return found


def reduced(spec: ModelSpec, reduction: Reduction | None) -> ModelSpec:
    """What the device must know once tokens are taken away."""
    if reduction is None:
        return spec
    if reduction.method is ReductionMethod.FASTV:
        pruning = contract.Pruning(reduction.layer or FASTV_LAYER, reduction.keep)
        return dataclasses.replace(spec, pruning=pruning)
    tokens = kept_tokens(spec.prompt.tokens_per_tile, reduction)
    return dataclasses.replace(spec, prompt=dataclasses.replace(spec.prompt, tokens_per_tile=tokens))


def apply(model: Any, reduction: Reduction | None, tokens_per_tile: int) -> Any:
    """Turn the source model into one with fewer image tokens in front of its decoder, in place; returns it.

    FastV changes nothing here: its decoder is pruned where it is exported, as `ModelSpec.pruning` says.
    tokens_per_tile: of the source model.
    """
    _install(model, reduction, tokens_per_tile)
    return model


@contextmanager
def applied(model: Any, reduction: Reduction | None, tokens_per_tile: int) -> Iterator[Any]:
    """`apply`, undone when the block ends."""
    handles = _install(model, reduction, tokens_per_tile)
    try:
        yield model
    finally:
        for handle in handles:
            handle.remove()


def _install(model: Any, reduction: Reduction | None, tokens_per_tile: int) -> list[Any]:
    """The handles of what was hooked to the model."""
    if reduction is None or reduction.method is ReductionMethod.FASTV:
        return []
    from edgevlm_deploy.reduction import encoder

    return encoder.reduce(model, reduction, kept_tokens(tokens_per_tile, reduction))
