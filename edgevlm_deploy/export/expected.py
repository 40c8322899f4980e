"""What the source model in torch computes on what a graph was given, through its own entry points."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from edgevlm_runner.contract import ModelSpec, kept_tokens
from edgevlm_runner.inputs import Inputs
from numpy.typing import NDArray

from edgevlm_deploy.calibration.tensors import pictures
from edgevlm_deploy.export.components import adding, layered
from edgevlm_deploy.reduction import fastv


def hidden(reference: Any, spec: ModelSpec, sample: Inputs, embeds: NDArray[np.float32]) -> Any:
    """float32 [1, T, D] of prompt and generated tokens in one pass; of pruned image tokens there is none."""
    text = reference.get_decoder()
    given = torch.from_numpy(embeds)
    if spec.prefix:
        mask = _prefix_mask(sample.input_ids.shape[1], embeds.shape[1])
        return text(inputs_embeds=given, attention_mask=mask, use_cache=False).last_hidden_state
    if spec.position_rows > 1:
        places = _positions(reference, spec, sample, embeds.shape[1])
        with adding(reference):
            return text(**layered(reference, given), position_ids=places, use_cache=False).last_hidden_state
    if spec.pruning is None:
        return text(inputs_embeds=given, use_cache=False).last_hidden_state
    tokens, asked = embeds.shape[1], sample.input_ids.shape[1]
    places = np.zeros((1, tokens), np.int64)
    places[:, :asked] = sample.input_ids == spec.image_token_id
    images = int(places.sum())
    left = tokens - images + kept_tokens(images, spec.pruning.keep)
    positions = torch.arange(tokens)[None]
    return fastv.layers(text, given, positions, torch.from_numpy(places), left, spec.pruning.layer, asked)


def _prefix_mask(asked: int, tokens: int) -> Any:
    """[1, 1, T, T], added to the scores: the prompt sees itself, each later token what is before it."""
    mask = torch.full((tokens, tokens), torch.finfo(torch.float32).min).triu(1)
    mask[:asked, :asked] = 0
    return mask[None, None]


def _positions(reference: Any, spec: ModelSpec, sample: Inputs, tokens: int) -> Any:
    """int64 [3, 1, T] by the source model's own rule, for the prompt and what follows it."""
    ids, pixels = torch.from_numpy(sample.input_ids), pictures([sample], spec)
    if not pixels:
        return torch.arange(tokens).expand(spec.position_rows, 1, -1)
    types, grids = pixels["mm_token_type_ids"], pixels["image_grid_thw"]
    prompt = reference.model.get_rope_index(ids, mm_token_type_ids=types, image_grid_thw=grids)[0]
    after = torch.arange(tokens - ids.shape[1]) + prompt.max() + 1
    return torch.cat([prompt, after.expand(spec.position_rows, 1, -1)], dim=-1)


def features(reference: Any, spec: ModelSpec, sample: Inputs) -> NDArray[np.float32] | None:
    """float32 [tiles, tokens per tile, D], or packed [1, tokens, D], through the source model's own entry
    point."""
    if sample.pixel_values is None:
        return None
    given = pictures([sample], spec)
    sizes = {name: given[name] for name in ("image_grid_thw", "image_sizes") if name in given}
    made = reference.model.get_image_features(given["pixel_values"], **sizes)
    # Qwen3-VL gives more of them, which follow on the last axis.
    parts = [made.pooler_output, *(getattr(made, "deepstack_features", None) or ())]
    wide = [torch.cat([one.flatten(end_dim=-2) for one in pieces]) for pieces in parts]  # each [tokens, D]
    features = torch.cat(wide, dim=-1)
    tiles = len(sample.pixel_values) if sample.size is None else 1
    result: NDArray[np.float32] = features.reshape(tiles, -1, features.shape[-1]).numpy()
    return result
