"""Reducing the image tokens of a SigLIP encoder with a pixel shuffle, behind its connector.

Hooks do it, so that every module keeps its name: quantised tables and exported graphs are bound by names.
"""

from __future__ import annotations

from typing import Any

import torch

from edgevlm_deploy.recipe import Reduction, ReductionMethod
from edgevlm_deploy.reduction import tome, visionzip


def reduce(model: Any, reduction: Reduction, tokens: int) -> list[Any]:
    """Make `model` (Idefics3 or SmolVLM) give `tokens` image tokens per tile, in place.

    Returns the hooks' handles; removing them undoes it.
    """
    inner = model.model
    attention = inner.vision_model.encoder.layers[-1].self_attn
    seen: dict[str, Any] = {}

    def watch(name: str) -> Any:
        def hook(_: Any, args: Any, output: Any) -> None:
            seen[name] = output

        return hook

    def shorten(connector: Any, args: Any, features: Any) -> Any:
        """features [tiles, cells, D] → [tiles, tokens, D]"""
        query, key = (_heads(seen.pop(name), attention.num_heads) for name in ("query", "key"))
        keys = cells(key.mean(1), connector.scale_factor)  # [tiles, cells, head dim]
        if reduction.method is ReductionMethod.TOME:
            matrix = tome.merging(keys, tokens)
        else:
            received = received_attention(query, key, attention.scale)
            matrix = visionzip.merging(
                cells(received[..., None], connector.scale_factor)[..., 0], keys, tokens
            )
        return matrix.to(features.dtype) @ features

    return [
        attention.q_proj.register_forward_hook(watch("query")),
        attention.k_proj.register_forward_hook(watch("key")),
        inner.connector.register_forward_hook(shorten),
    ]


def received_attention(query: Any, key: Any, scale: float) -> Any:
    """float32 [tiles, heads, T, head dim] each → [tiles, T]: attention that a patch gets, averaged over heads
    and over the patches that look.
    """
    weights = torch.softmax(query @ key.transpose(-1, -2) * scale, dim=-1)
    return weights.mean((1, 2))


def cells(patches: Any, factor: int) -> Any:
    """[tiles, patches, D] → [tiles, patches / factor², D]: the mean of the patches that a pixel shuffle folds
    into one image token.
    """
    tiles, count, width = patches.shape
    side = round(count**0.5) // factor
    return patches.reshape(tiles, side, factor, side, factor, width).mean((2, 4)).reshape(tiles, -1, width)


def _heads(projected: Any, heads: int) -> Any:
    """[tiles, T, D] → float32 [tiles, heads, T, head dim]"""
    tiles, tokens, width = projected.shape
    return projected.float().reshape(tiles, tokens, heads, width // heads).transpose(1, 2)
