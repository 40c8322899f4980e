"""What several corruptions are made of: bands of pixels, integer filters, resampling, plasma.

Everything here gives equal bytes on x86 and ARM: sums of integers, or float64 arithmetic one
operation at a time. Weights come from libm once and are rounded to integers before they are used.
"""

from __future__ import annotations

import math
from typing import Callable, List, Tuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Bytes = NDArray[np.uint8]
Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

BAND_ROWS = 128
"""Pixelwise corruptions run in bands of rows, which bounds their memory on the device."""
FRACTION = 256
"""Positions between pixels are whole numbers of 1/256 pixel."""


def pixelwise(image: Image.Image, change: Callable[[Floats, slice], Floats]) -> Image.Image:
    """Apply `change` to bands, from top to bottom, and round to bytes.

    A band is float64 [h, W, 3] in [0, 1] and the slice of its rows.
    """
    pixels: Bytes = np.asarray(image)
    out = np.empty_like(pixels)
    for top in range(0, pixels.shape[0], BAND_ROWS):
        band = slice(top, top + BAND_ROWS)
        out[band] = np.rint(np.clip(change(pixels[band] / 255.0, band), 0.0, 1.0) * 255.0)
    return Image.fromarray(out)


def weighted(plane: Integers, taps: List[int], axis: int) -> Integers:
    """Correlate one axis with integer taps; the axis gets len(taps) − 1 shorter."""
    length = plane.shape[axis] - len(taps) + 1
    shape = (length, plane.shape[1]) if axis == 0 else (plane.shape[0], length)
    total: Integers = np.zeros(shape, dtype=np.int64)
    for offset, tap in enumerate(taps):
        part = slice(offset, offset + length)
        total += tap * (plane[part] if axis == 0 else plane[:, part])
    return total


def gaussian_weights(positions: range, sigma: float, total: int) -> List[int]:
    """Gaussian weights at whole positions as integers that sum to `total`."""
    weights = [math.exp(-0.5 * (x / sigma) ** 2) for x in positions]
    rounded = [round(total * w / math.fsum(weights)) for w in weights]
    # What rounding left over goes to the centre, where it is least visible.
    rounded[list(positions).index(0)] += total - sum(rounded)
    return rounded


def gaussian(plane: Integers, sigma: Tuple[float, float], reach: float, mode: str) -> Integers:
    """`plane` smoothed with (vertical, horizontal) sigmas, cut off at `reach` sigmas, rounded to integers.

    `mode` is NumPy's name of the border: "edge", "symmetric". |plane| stays below 2^46.
    """
    for axis in (0, 1):
        radius = int(reach * sigma[axis] + 0.5)
        if radius:
            taps = gaussian_weights(range(-radius, radius + 1), sigma[axis], total=1 << 16)
            border = [(radius, radius) if axis == one else (0, 0) for one in (0, 1)]
            padded: Integers = np.pad(plane, border, mode=mode)  # type: ignore[call-overload]
            plane = (weighted(padded, taps, axis) + (1 << 15)) >> 16
    return plane


def trail(plane: Integers, length: int, sigma: float, angle: float) -> Integers:
    """`plane` smeared along `angle` (radians) with half-Gaussian weights, border pixels repeated."""
    weights = gaussian_weights(range(length), sigma, total=1 << 16)
    steps = [(_step(i * math.sin(angle)), _step(i * math.cos(angle))) for i in range(length)]
    height, width = plane.shape
    padded = np.pad(plane, length, mode="edge")
    total: Integers = np.full((height, width), 1 << 15, dtype=np.int64)
    for weight, (dy, dx) in zip(weights, steps):
        if weight:
            total += weight * padded[length + dy : length + dy + height, length + dx : length + dx + width]
    return total >> 16


def _step(distance: float) -> int:
    """Whole pixels along one axis; halves are rounded down."""
    return math.ceil(distance - 0.5)


def sampled(pixels: NDArray[np.generic], y: Integers, x: Integers) -> Integers:
    """Bilinear samples of an integer [H, W] or [H, W, C] array at (y, x) in 1/256 pixel, borders mirrored."""
    top, left = y // FRACTION, x // FRACTION
    down, right = y - top * FRACTION, x - left * FRACTION
    if pixels.ndim == 3:
        down, right = down[..., np.newaxis], right[..., np.newaxis]
    rows = [mirrored(top + one, pixels.shape[0]) for one in (0, 1)]
    columns = [mirrored(left + one, pixels.shape[1]) for one in (0, 1)]
    upper, lower = (
        pixels[row, columns[0]].astype(np.int64) * (FRACTION - right)
        + pixels[row, columns[1]].astype(np.int64) * right
        for row in rows
    )
    total: Integers = upper * (FRACTION - down) + lower * down
    return (total + FRACTION * FRACTION // 2) // (FRACTION * FRACTION)


def mirrored(index: Integers, count: int) -> Integers:
    """Indices beyond the border as those of the mirrored picture: … 1 0 | 0 1 2 …"""
    folded = index % (2 * count)
    return np.minimum(folded, 2 * count - 1 - folded)


def enlarged(grid: Integers, height: int, width: int) -> Integers:
    """`grid` stretched over height × width pixels, bilinear, corner on corner."""
    y, x = (
        np.arange(pixels, dtype=np.int64) * ((points - 1) * FRACTION) // max(1, pixels - 1)
        for pixels, points in zip((height, width), grid.shape)
    )
    return sampled(grid, *np.broadcast_arrays(y[:, np.newaxis], x[np.newaxis, :]))


def plasma(side: int, decay: float, rng: np.random.Generator) -> Floats:
    """float64 [side, side] in [0, 1]: a diamond-square height map that wraps around.

    `side` is a power of two; `decay` divides the random displacement from one octave to the next.
    """
    height: Floats = np.zeros((side, side), dtype=np.float64)
    step, wobble = side, 100.0

    def displaced(total: Floats) -> Floats:
        # ImageNet-C multiplies by the amplitude twice; kept, since it defines the fog's look.
        return total / 4.0 + wobble * ((rng.random(total.shape) * 2.0 - 1.0) * wobble)

    while step >= 2:
        half = step // 2
        corners = height[::step, ::step]
        right = corners + np.roll(corners, -1, axis=0)
        height[half::step, half::step] = displaced(right + np.roll(right, -1, axis=1))
        centres, corners = height[half::step, half::step], height[::step, ::step]
        above_below = centres + np.roll(centres, 1, axis=0)
        height[::step, half::step] = displaced(above_below + (corners + np.roll(corners, -1, axis=1)))
        left_right = centres + np.roll(centres, 1, axis=1)
        height[half::step, ::step] = displaced(left_right + (corners + np.roll(corners, -1, axis=0)))
        step, wobble = half, wobble / decay
    height -= height.min()
    height /= height.max()
    return height


def plasma_over(height: int, width: int, decay: float, rng: np.random.Generator) -> Floats:
    """float64 [height, width]: a plasma map of the next power of two of the longer side, cut."""
    side = 1 << max(1, (max(height, width) - 1).bit_length())
    return plasma(side, decay, rng)[:height, :width]
