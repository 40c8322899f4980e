"""Prepared pictures in the arguments that transformers' models take them in; families differ."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from edgevlm_runner.contract import ImageSpec, ModelSpec
from edgevlm_runner.inputs import Inputs

if TYPE_CHECKING:
    import torch


def pictures(batch: Sequence[Inputs], spec: ModelSpec) -> dict[str, torch.Tensor]:
    """The pictures of B questions, at most one each; empty where no question has one.

        pixel_values           float32  [B, tiles, 3, S, S]  of families that cut a picture into tiles
        pixel_attention_mask   bool     [B, tiles, S, S]     likewise
        pixel_values           float32  [pictures, 3, S, S]  of the others

    Absent tiles are all zero, which the model drops.
    """
    import torch

    given = [one.pixel_values for one in batch if one.pixel_values is not None]
    if not given:
        return {}
    if not isinstance(spec.image, ImageSpec):
        whole = np.ascontiguousarray(np.concatenate(given), np.float32)
        return {"pixel_values": torch.from_numpy(whole)}
    side, most = spec.image.tile_size, max(map(len, given))
    pixels = np.zeros((len(batch), most, 3, side, side), np.float32)
    seen = np.zeros((len(batch), most, side, side), bool)
    for row, one in enumerate(batch):
        if one.pixel_values is not None:
            tiles = len(one.pixel_values)
            pixels[row, :tiles], seen[row, :tiles] = one.pixel_values, True
    return {"pixel_values": torch.from_numpy(pixels), "pixel_attention_mask": torch.from_numpy(seen)}
