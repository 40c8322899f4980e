"""Pictures of any resolution as LLaVA-NeXT and LLaVA-OneVision take them: an overview, then tiles of a grid.

The grid is the one of the model's list that fits the picture best. Tiles carry black bars where the picture
has another shape; the tokens of the bars are taken out behind the vision encoder, and each row of tokens ends
with one that the model learnt for it (`image_newline`), which the vision encoder gives as the last of every
tile. Where a picture has more tokens than `tiles_worth` tiles hold, they are interpolated down.

Everything is what transformers' processors and models compute, so that pixels are equal bit for bit.
Python 3.8, NumPy and Pillow only.
"""

from __future__ import annotations

import math
from typing import List, Optional, Tuple

import numpy as np
from PIL import Image

from edgevlm_runner.contract import AnyresSpec, Pixels
from edgevlm_runner.preprocess import normalize, require_rgb

Size = Tuple[int, int]
"""Height and width, in pixels or in tokens."""


def best_size(size: Size, spec: AnyresSpec) -> Size:
    """Height and width of the grid in pixels: most of the picture's own pixels kept, then fewest wasted."""
    height, width = size
    best, most, least = (spec.heights[0], spec.widths[0]), -1, 0.0
    for rows, cols in zip(spec.heights, spec.widths):
        scale = min(cols / width, rows / height)
        kept = min(int(width * scale) * int(height * scale), width * height)
        wasted = rows * cols - kept
        if kept > most or (kept == most and wasted < least):
            best, most, least = (rows, cols), kept, wasted
    return best


def tiles(image: Image.Image, spec: AnyresSpec) -> np.ndarray:
    """float32 [1 + rows · columns, 3, S, S]: the whole picture squashed, then the grid row by row.

    Raises ImageError when the picture is not RGB; `load_image` returns RGB.
    """
    require_rgb(image)
    side = spec.tile_size
    height, width = best_size((image.height, image.width), spec)
    across, down = width / image.width, height / image.height
    if across < down:
        fitted = width, min(math.ceil(image.height * across), height)
    else:
        fitted = min(math.ceil(image.width * down), width), height
    canvas = Image.new("RGB", (width, height))
    corner = (width - fitted[0]) // 2, (height - fitted[1]) // 2
    canvas.paste(image.resize(fitted, spec.resample), corner)
    frames = [image.resize((side, side), spec.resample)]
    for top in range(0, height, side):
        frames += [canvas.crop((x, top, x + side, top + side)) for x in range(0, width, side)]
    return normalize(frames, (side, side), spec)


def arrangement(size: Size, spec: AnyresSpec) -> Tuple[np.ndarray, np.ndarray]:
    """Which of the vision encoder's rows become the picture's tokens, for a picture of that size.

    (rows int64 [N, 4], weights float32 [N, 4]): token n is the weighted sum of four rows of
    [tiles · (S² + 1), D], where S is `spec.side_tokens`.
    """
    side = spec.side_tokens
    height, width = best_size(size, spec)
    down, across = height // spec.tile_size, width // spec.tile_size
    tile = 1 + np.arange(down)[:, None] * across + np.arange(across)  # [rows, columns]
    inside = np.arange(side)[:, None] * side + np.arange(side)
    # [rows, S, columns, S] → the picture's tokens as they lie
    whole = tile[:, None, :, None] * (side * side + 1) + inside[None, :, None, :]
    seen = _without_bars(whole.reshape(down * side, across * side), size)
    rows, weights = _shrunk(seen, spec)
    newline = np.zeros((rows.shape[0], 1, 4), np.int64) + side * side
    rows = np.concatenate([rows, newline], axis=1).reshape(-1, 4)
    alone = np.eye(1, 4, dtype=np.float32)  # one row, three times nothing
    ends = np.broadcast_to(alone, (weights.shape[0], 1, 4))
    weights = np.concatenate([weights, ends], axis=1).reshape(-1, 4)
    overview = np.repeat(np.arange(side * side)[:, None], 4, axis=1)
    return (
        np.concatenate([overview, rows]),
        np.concatenate([np.broadcast_to(alone, overview.shape), weights]).astype(np.float32),
    )


def tokens(size: Size, spec: AnyresSpec) -> int:
    """Image tokens of a picture of that size."""
    return len(arrangement(size, spec)[0])


def pack(features: np.ndarray, size: Size, spec: AnyresSpec) -> np.ndarray:
    """float32 [tiles, S² + 1, D] → float32 [1, N, D], the picture's tokens in their order."""
    rows, weights = arrangement(size, spec)
    flat = features.reshape(-1, features.shape[-1])
    packed = flat[rows[:, 0]] * weights[:, :1]
    for corner in range(1, 4):
        blended = np.flatnonzero(weights[:, corner])
        packed[blended] += flat[rows[blended, corner]] * weights[blended, corner : corner + 1]
    result: np.ndarray = packed[None]
    return result


def packed(features: np.ndarray, size: Optional[Size], spec: Pixels) -> np.ndarray:
    """`pack` for families that need it; others' features as they are."""
    if isinstance(spec, AnyresSpec) and size is not None:
        return pack(features, size, spec)
    return features


def _without_bars(grid: np.ndarray, size: Size) -> np.ndarray:
    """The part of [H, W] that a picture of that size covers."""
    height, width = size
    rows, cols = grid.shape
    # transformers rounds in this way; another order of operations moves an edge by one token.
    if width / height > cols / rows:
        bar = (rows - int(round(height * (cols / width), 7))) // 2
        return grid[bar : rows - bar]
    bar = (cols - int(round(width * (rows / height), 7))) // 2
    return grid[:, bar : cols - bar]


def _shrunk(grid: np.ndarray, spec: AnyresSpec) -> Tuple[np.ndarray, np.ndarray]:
    """(rows [H, W, 4], weights [H, W, 4]): as it is, or interpolated to what `tiles_worth` tiles hold."""
    height, width = grid.shape
    ratio = 0.0
    if spec.tiles_worth is not None:
        ratio = math.sqrt(height * width / (spec.tiles_worth * spec.side_tokens**2))
    if ratio <= 1.1:
        weights = np.zeros((height, width, 4), np.float32)
        weights[..., 0] = 1
        return np.repeat(grid[..., None], 4, axis=-1), weights
    above, below, down = _between(height, int(height // ratio))
    left, right, across = _between(width, int(width // ratio))
    corners: List[np.ndarray] = []
    shares: List[np.ndarray] = []
    for lines, share_down in ((above, 1 - down), (below, down)):
        for columns, share_across in ((left, 1 - across), (right, across)):
            corners.append(grid[lines[:, None], columns])
            shares.append(share_down[:, None] * share_across)
    return np.stack(corners, axis=-1), np.stack(shares, axis=-1)


def _between(old: int, new: int) -> Tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(lower and upper neighbour int64 [new], share of the upper one float32 [new]), half-pixel centres."""
    scale = np.float32(old) / np.float32(new)
    place = np.maximum((np.arange(new, dtype=np.float32) + np.float32(0.5)) * scale - np.float32(0.5), 0)
    lower = place.astype(np.int64)
    return lower, np.minimum(lower + 1, old - 1), (place - lower).astype(np.float32)
