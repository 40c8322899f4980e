"""Prepared pictures in the arguments that transformers' models take them in; families differ."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from edgevlm_runner import native
from edgevlm_runner.contract import AnyresSpec, ImageSpec, ModelSpec, NativeSpec
from edgevlm_runner.inputs import Inputs
from numpy.typing import NDArray

if TYPE_CHECKING:
    import torch


def pictures(batch: Sequence[Inputs], spec: ModelSpec) -> dict[str, torch.Tensor]:
    """The pictures of B questions, at most one each; empty where no question has one.

        pixel_values           float32  [B, tiles, 3, S, S]  of families that cut a picture into tiles
        pixel_attention_mask   bool     [B, tiles, S, S]     likewise
        pixel_values           float32  [pictures, 3, S, S]  of those that make one square of it
        pixel_values           float32  [P, 3 · frames · patch²]  of those that keep its resolution
        image_grid_thw         int64    [pictures, 3]        likewise, patches in time, height and width
        mm_token_type_ids      int64    [B, T]               likewise, 1 for image tokens; padded on the left
        pixel_values           float32  [pictures, tiles, 3, S, S]  of those with an overview and a grid
        image_sizes            int64    [pictures, 2]        likewise, height and width in pixels

    Absent tiles are all zero, which the model drops.
    """
    import torch

    given = [one.pixel_values for one in batch if one.pixel_values is not None]
    if not given:
        return {}
    if isinstance(spec.image, NativeSpec):
        arrays = _native(batch, spec.image, spec.image_token_id)
        return {name: torch.from_numpy(array) for name, array in arrays.items()}
    if isinstance(spec.image, AnyresSpec):
        sizes = np.array([one.size for one in batch if one.pixel_values is not None])
        padded = _padded(given, spec.image.tile_size)
        return {"pixel_values": torch.from_numpy(padded), "image_sizes": torch.from_numpy(sizes)}
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


def _padded(given: Sequence[NDArray[np.float32]], side: int) -> NDArray[np.float32]:
    pixels = np.zeros((len(given), max(map(len, given)), 3, side, side), np.float32)
    for row, one in enumerate(given):
        pixels[row, : len(one)] = one
    return pixels


def _native(batch: Sequence[Inputs], spec: NativeSpec, image_token_id: int) -> dict[str, NDArray[Any]]:
    given = [one.pixel_values for one in batch if one.pixel_values is not None]
    cells = [(1, *native.cells(pixels.shape[2:], spec)) for pixels in given]
    types = np.zeros((len(batch), max(one.input_ids.shape[1] for one in batch)), np.int64)
    for row, one in enumerate(batch):
        types[row, types.shape[1] - one.input_ids.shape[1] :] = one.input_ids[0] == image_token_id
    return {
        "pixel_values": np.concatenate([native.patches(pixels, spec) for pixels in given]),
        "image_grid_thw": np.array(cells) * (1, spec.merge_size, spec.merge_size),
        "mm_token_type_ids": types,
    }
