"""Pictures at their own resolution, as transformers' image processor of Qwen2-VL and later makes them.

A picture becomes a grid of patches as large as it needs, and neighbouring patches one image token: merge ×
merge of them, called a cell here. What the vision encoder has to know about a grid (where each patch lies,
which patches look at each other) follows from its size alone and is computed here.

Python 3.8, NumPy and Pillow only.
"""

from __future__ import annotations

import math
from typing import Dict, Optional, Tuple, Union

import numpy as np
from PIL import Image

from edgevlm_runner.contract import ModelSpec, NativeSpec, Pixels
from edgevlm_runner.errors import ImageError
from edgevlm_runner.preprocess import normalize, require_rgb

LARGEST_ASPECT = 200
"""Longer or higher pictures are refused, by transformers too."""

Size = Tuple[int, int]
"""Height and width in pixels, transformers' order."""


def resized(image: Image.Image, spec: NativeSpec) -> np.ndarray:
    """float32 [1, 3, H, W] of one RGB picture: resized to whole cells and normalised.

    Raises ImageError when the picture is not RGB or much longer than high.
    """
    require_rgb(image)
    height, width = fitted((image.height, image.width), spec)
    return normalize([image.resize((width, height), spec.resample)], (width, height), spec)


def fitted(size: Size, spec: NativeSpec) -> Size:
    """What a picture of `size` is resized to: `spec.size`, or the nearest size in whole cells within the
    limits.
    """
    if spec.size is not None:
        return spec.size
    height, width = size
    if max(size) > LARGEST_ASPECT * min(size):
        raise ImageError(
            f"A picture of {width} × {height} pixels; one side may be {LARGEST_ASPECT} times the other. Crop."
        )
    # transformers' own arithmetic, rounding half to even included.
    cell = spec.cell
    rows, cols = round(height / cell), round(width / cell)
    if rows * cols * cell * cell > spec.max_pixels:
        shrunk = math.sqrt(height * width / spec.max_pixels)
        rows = max(1, math.floor(height / shrunk / cell))
        cols = max(1, math.floor(width / shrunk / cell))
    elif rows * cols * cell * cell < spec.min_pixels:
        grown = math.sqrt(spec.min_pixels / (height * width))
        rows, cols = math.ceil(height * grown / cell), math.ceil(width * grown / cell)
    return rows * cell, cols * cell


def cells(size: Tuple[int, ...], spec: NativeSpec) -> Tuple[int, int]:
    """(rows, columns) of image tokens of a picture that was resized to `size`."""
    cell = spec.cell
    return size[0] // cell, size[1] // cell


def tokens(pixel_values: np.ndarray, spec: NativeSpec) -> int:
    """Image tokens of a picture [1, 3, H, W]."""
    rows, cols = cells(pixel_values.shape[2:], spec)
    return rows * cols


def grid(pixel_values: Optional[np.ndarray], spec: Pixels) -> Optional[Tuple[int, int]]:
    """(rows, columns) of image tokens; None without a picture, and for families without such a grid."""
    if pixel_values is None or not isinstance(spec, NativeSpec):
        return None
    return cells(pixel_values.shape[2:], spec)


def signature(spec: NativeSpec) -> Dict[str, Tuple[Union[str, int], ...]]:
    """Input of the vision encoder → shape, for pictures of any size; a name stands for what may change."""
    shapes: Dict[str, Tuple[Union[str, int], ...]] = {
        "pixel_values": (1, 3, "height", "width"),
        "patch_positions": ("patches", 2),
    }
    if spec.table_side:
        shapes.update(table_rows=("patches", 4), table_weights=("patches", 4))
    if spec.window_size:
        patches = (spec.window_size // spec.cell * spec.merge_size) ** 2
        shapes.update(cell_order=("cells",), cell_places=("cells",), window_places=("patches",))
        shapes.update(windows=("windows", patches), window_mask=("windows", patches))
    return shapes


def vision_inputs(pixel_values: np.ndarray, spec: ModelSpec) -> Dict[str, np.ndarray]:
    """What the graph of the vision encoder takes for one tile float32 [1, 3, H, W], input name → array."""
    given = {"pixel_values": np.ascontiguousarray(pixel_values, np.float32)}
    if isinstance(spec.image, NativeSpec) and spec.image.size is None:
        given.update(layout(pixel_values.shape[2:], spec.image))
    return given


def most_cells(spec: NativeSpec) -> int:
    """The largest number of image tokens that any picture becomes."""
    if spec.size is not None:
        rows, cols = cells(spec.size, spec)
        return rows * cols
    return max(1, spec.max_pixels // spec.cell**2)


def patches(pixel_values: np.ndarray, spec: NativeSpec) -> np.ndarray:
    """float32 [1, 3, H, W] → [P, 3 · frames · patch²]: as transformers' models take it, cell by cell."""
    _, channels, height, width = pixel_values.shape
    patch, merge = spec.patch_size, spec.merge_size
    rows, cols = height // spec.cell, width // spec.cell
    split = pixel_values.reshape(channels, rows, merge, patch, cols, merge, patch)
    film = split.transpose(1, 4, 2, 5, 0, 3, 6)[:, :, :, :, :, None].repeat(spec.frames, axis=5)
    return np.ascontiguousarray(film.reshape(rows * cols * merge**2, -1), np.float32)


def layout(size: Tuple[int, ...], spec: NativeSpec) -> Dict[str, np.ndarray]:
    """What the vision encoder takes besides the pixels [1, 3, H, W], of P patches in C cells.

    patch_positions  int64 [P, 2], row and column of each patch

    With a learned table of positions:

    table_rows     int64 [P, 4], entries of the flat table that lie around each patch
    table_weights  float32 [P, 4], bilinear; their sum is 1

    With attention in windows, of W windows that hold up to S patches:

    cell_order       int64 [C], cells in the order of their windows; patch_positions are in that order too
    cell_places      int64 [C], where in that order each cell is
    windows          int64 [W, S], patches of each window
    window_mask      int32 [W, S], 1 where there is one
    window_places    int64 [P], where in `windows` each patch is
    """
    rows, cols = cells(size, spec)
    merge = spec.merge_size
    row, col = np.divmod(np.arange(rows * cols), cols)  # [C]
    inside = np.stack(np.divmod(np.arange(merge * merge), merge), axis=-1)  # [merge², 2]
    corners = np.stack([row, col], axis=-1)[:, None] * merge  # [C, 1, 2]
    positions = corners + inside  # [C, merge², 2]
    given = {"patch_positions": positions.reshape(-1, 2)}
    if spec.table_side:
        given.update(_stretched(given["patch_positions"], (rows * merge, cols * merge), spec.table_side))
    if not spec.window_size:
        return given
    side = spec.window_size // spec.cell  # of a window, in cells
    index = np.arange(rows * cols).reshape(rows, cols)
    groups = [
        index[top : top + side, left : left + side].reshape(-1)
        for top in range(0, rows, side)
        for left in range(0, cols, side)
    ]
    order = np.concatenate(groups)
    patches = np.array([len(group) for group in groups]) * merge * merge  # [W]
    columns = np.arange(side * side * merge * merge)  # [S]
    mask = columns < patches[:, None]  # [W, S]
    first = np.cumsum(patches) - patches
    return {
        "patch_positions": positions[order].reshape(-1, 2),
        "cell_order": order,
        "cell_places": np.argsort(order),
        "windows": np.where(mask, first[:, None] + columns, 0),
        "window_mask": mask.astype(np.int32),
        "window_places": np.flatnonzero(mask),
    }


def _stretched(positions: np.ndarray, size: Tuple[int, int], side: int) -> Dict[str, np.ndarray]:
    """Bilinear, corners meet, in transformers' own float32 arithmetic; size: patches by row and column."""
    below, weights = [], []
    for axis in range(2):
        last = np.float32(max(size[axis] - 1, 1))
        place = positions[:, axis].astype(np.float32) * np.float32(side - 1) / last
        floor = np.floor(place)
        steps = np.arange(2, dtype=np.float32)
        weights.append(np.maximum(1 - np.abs(place[:, None] - floor[:, None] - steps), 0))  # [P, 2]
        below.append(np.clip(floor.astype(np.int64)[:, None] + np.arange(2), 0, side - 1))
    return {
        "table_rows": (below[0][:, :, None] * side + below[1][:, None, :]).reshape(-1, 4),
        "table_weights": (weights[0][:, :, None] * weights[1][:, None, :]).reshape(-1, 4),
    }
