"""Fewer image tokens: FastV, VisionZip and ToMe as changes of the torch model that graphs are made of.

The reduced model is what is quantised, exported and compared with the graphs. Reference answers come from
the model as it was, so that gates see what reduction costs.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from edgevlm_runner.contract import ModelSpec

from edgevlm_deploy.recipe import Reduction, ReductionMethod
from edgevlm_deploy.source.model import Architecture

__all__ = ["apply", "kept_tokens", "problems", "reduced"]


def kept_tokens(tokens: int, reduction: Reduction) -> int:
    """How many of `tokens` are left: at least one."""
    return max(1, round(tokens * reduction.keep))


def problems(reduction: Reduction | None, architecture: Architecture | None) -> list[str]:
    """Why it cannot be had, a sentence each; `architecture` None leaves out what depends on the model."""
    if reduction is None:
        return []
    if reduction.method is ReductionMethod.FASTV:
        return [
            "image.reduction: fastv is not exported by any backend, because it prunes inside the decoder; "
            "visionzip and tome are."
        ]
    tokens = architecture.tokens_per_tile if architecture is not None else None
    if tokens is not None and kept_tokens(tokens, reduction) == tokens:
        return [
            f"image.reduction: keep {reduction.keep:g} of {tokens} image tokens a tile takes none away; "
            "lower it or leave the reduction out."
        ]
    return []


def reduced(spec: ModelSpec, reduction: Reduction | None) -> ModelSpec:
    """What the device must know once tokens are taken away."""
    if reduction is None:
        return spec
    tokens = kept_tokens(spec.prompt.tokens_per_tile, reduction)
    return dataclasses.replace(spec, prompt=dataclasses.replace(spec.prompt, tokens_per_tile=tokens))


def apply(model: Any, reduction: Reduction | None, tokens_per_tile: int) -> Any:
    """Turn the source model into the reduced one, in place; returns it.

    tokens_per_tile: of the source model.
    """
    if reduction is None:
        return model
    from edgevlm_deploy.reduction import encoder

    return encoder.reduce(model, reduction, kept_tokens(tokens_per_tile, reduction))
