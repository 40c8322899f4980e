"""What the camera of an edge device does to a picture. The suite and its constants are ours.

Lengths hold at the reference size and grow with the picture. Constants run from "noticed when one
looks for it" to "the camera should be serviced"; each says what it is in the camera.
"""

from __future__ import annotations

import math
from typing import Tuple

import numpy as np
from PIL import Image

from edgevlm_runner.corrupt.planes import (
    BAND_ROWS,
    FRACTION,
    Bytes,
    Floats,
    enlarged,
    pixelwise,
    sampled,
    weighted,
)

FULL_WELL = 4000.0
"""Electrons of a white pixel: small sensors with pixels of 1 to 1.4 µm hold some 4,000 to 6,000."""
READ_NOISE = 2.0
"""Electrons, standard deviation: usual for such sensors."""
DIRT = 0.22
"""Brightness of dirt in front of the lens: dark, yet lit from the side."""
MACROBLOCK = 16
"""Pixels, H.264."""
MEAN_SLICE = 4
"""Macroblocks lost in a row, on average: a loss takes the rest of a slice, never one block."""


def low_light(image: Image.Image, stops: float, scale: float, rng: np.random.Generator) -> Image.Image:
    """`stops` less light, half of it made up by gain; shot noise and read noise grow with the gain.

    Photons are counted in linear light, which is the square of the pixel here: sRGB is close
    to it, and squares and square roots are exact everywhere.
    """
    exposure = 0.5**stops
    # The square root is exact too; 0.5 ** 2.5 need not be.
    gain = 1.0 / math.sqrt(exposure)

    def change(x: Floats, rows: slice) -> Floats:
        caught = rng.poisson(x * x * (FULL_WELL * exposure)) + rng.standard_normal(x.shape) * READ_NOISE
        seen: Floats = np.sqrt(np.clip(caught * (gain / FULL_WELL), 0.0, 1.0))
        return seen

    return pixelwise(image, change)


def rolling_motion(
    image: Image.Image, constants: Tuple[float, float], scale: float, rng: np.random.Generator
) -> Image.Image:
    """A rolling shutter reads row after row while the camera pans and shakes.

    `constants`: pan in pixels while the picture is read (top to bottom), amplitude of the shaking in
    pixels, three periods a picture. Exposure takes a quarter of the read-out, so it smears by a
    quarter of the pan. Borders are mirrored.
    """
    pan, shake = constants
    width, height = image.size
    direction = 1.0 if rng.random() < 0.5 else -1.0
    phase = float(rng.random())
    times = [(row + 0.5) / height for row in range(height)]
    offsets = [
        scale * (direction * pan * (time - 0.5) + shake * math.sin(2.0 * math.pi * (3.0 * time + phase)))
        for time in times
    ]
    shift = np.array([round(offset * FRACTION) for offset in offsets], dtype=np.int64)[:, np.newaxis]
    smear = 2 * round(pan * scale / 8.0) + 1
    pixels: Bytes = np.asarray(image)
    out = np.empty_like(pixels)
    columns = np.arange(width, dtype=np.int64) * FRACTION
    for top in range(0, height, BAND_ROWS):
        band = slice(top, min(top + BAND_ROWS, height))
        rows = np.arange(band.start, band.stop, dtype=np.int64)[:, np.newaxis] * FRACTION
        y, x = np.broadcast_arrays(rows, columns + shift[band])
        moved = sampled(pixels, y, x)
        for channel in range(3):
            plane = np.pad(moved[:, :, channel], [(0, 0), (smear // 2, smear // 2)], mode="symmetric")
            out[band, :, channel] = (2 * weighted(plane, [1] * smear, axis=1) + smear) // (2 * smear)
    return Image.fromarray(out)


def lens_dirt(
    image: Image.Image, constants: Tuple[int, float], scale: float, rng: np.random.Generator
) -> Image.Image:
    """Dust and dried drops on the lens: out of focus, so soft, and grey where they are thick.

    `constants`: spots, what the middle of a spot takes of the light. A radius is 3 to 12 % of the
    shorter side. A share of the picture, so it has no reference size.
    """
    spots, opacity = constants
    width, height = image.size
    clear: Floats = np.ones((height, width), dtype=np.float64)
    for _ in range(spots):
        y, x, size = (float(one) for one in rng.random(3))
        radius = (0.03 + 0.09 * size * size) * min(width, height)
        down = (np.arange(height) + 0.5 - y * height)[:, np.newaxis]
        along = np.arange(width) + 0.5 - x * width
        # 1 over most of the spot, falling to 0 at its edge.
        body = np.clip((1.0 - (down * down + along * along) / (radius * radius)) * 1.6, 0.0, 1.0)
        clear *= 1.0 - body * opacity
    # The picture through what is clear, dirt through the rest.
    return pixelwise(image, lambda x, rows: (x - DIRT) * clear[rows, :, np.newaxis] + DIRT)


def thermal_banding(
    image: Image.Image, strength: float, scale: float, rng: np.random.Generator
) -> Image.Image:
    """A hot sensor: each line of the read-out has an offset of its own, and single pixels glow.

    `strength`: standard deviation of the lines' offsets, white = 1; columns have a third of it, as
    their amplifiers are calibrated against each other. A line is two pixels at the reference size.
    `strength` / 50 of the pixels are hot.
    """
    width, height = image.size
    thick = max(1.0, 2.0 * scale)
    unit = 1 << 16

    def lines(pixels: int, deviation: float) -> Floats:
        """float64 [pixels]"""
        offsets = rng.standard_normal(math.ceil(pixels / thick) + 1) * (deviation * unit)
        grid = np.rint(offsets).astype(np.int64)[:, np.newaxis]
        if thick > 1.0:
            return enlarged(grid, pixels, 1)[:, 0] / unit
        return grid[:pixels, 0] / unit

    rows = lines(height, strength)[:, np.newaxis, np.newaxis]
    columns = lines(width, strength / 3.0)[np.newaxis, :, np.newaxis]

    def change(x: Floats, band: slice) -> Floats:
        hot = rng.random(x.shape[:2])[:, :, np.newaxis] < strength / 50.0
        return np.where(hot, 1.0, x + rows[band] + columns)

    return pixelwise(image, change)


def block_loss(
    image: Image.Image, constants: Tuple[float, float], scale: float, rng: np.random.Generator
) -> Image.Image:
    """A starved video stream, like H.264 without its deblocking filter.

    `constants`: how much of the detail inside a block the coarse quantiser drops, share of the
    macroblocks that are lost. A lost run is concealed as decoders do: by the pixels that moved there
    from nearby, here one to two macroblocks away. Detail is averaged over quarter-size blocks.
    """
    flattened, lost = constants
    block = max(2, round(MACROBLOCK * scale))
    pixels: Bytes = np.asarray(image)
    height, width = pixels.shape[:2]
    flat = np.asarray(_blocks(image, max(2, block // 2)))
    kept = 256 - round(256 * flattened)
    coarse = (pixels.astype(np.int64) * kept + flat.astype(np.int64) * (256 - kept) + 128) >> 8
    out: Bytes = coarse.astype(np.uint8)
    y, x = np.arange(height), np.arange(width)
    # A run of m on average begins so often that `lost` is the share of its blocks among all.
    beginning = lost / (MEAN_SLICE - (MEAN_SLICE - 1) * lost)
    for top in range(0, height, block):
        left = 0
        while left < width:
            starts = rng.random() < beginning
            run = 1 + int(rng.integers(2 * MEAN_SLICE - 1)) if starts else 1
            way = rng.integers(0, 2, 2) * 2 - 1
            dy, dx = (int(one) for one in rng.integers(block, 2 * block + 1, 2) * way)
            if starts:
                right = left + run * block
                from_y = np.clip(y[top : top + block] + dy, 0, height - 1)[:, np.newaxis]
                out[top : top + block, left:right] = coarse[from_y, np.clip(x[left:right] + dx, 0, width - 1)]
            left += run * block
    return Image.fromarray(out)


def _blocks(image: Image.Image, side: int) -> Image.Image:
    """The picture as flat blocks of side × side pixels; the last ones may be cut."""
    pixels: Bytes = np.asarray(image)
    height, width = pixels.shape[:2]
    edge = [(0, -height % side), (0, -width % side), (0, 0)]
    padded = np.pad(pixels, edge, mode="edge").astype(np.int64)
    cells = padded.reshape(padded.shape[0] // side, side, padded.shape[1] // side, side, 3)
    area = side * side
    mean = (2 * cells.sum(axis=(1, 3)) + area) // (2 * area)
    whole = mean.repeat(side, axis=0).repeat(side, axis=1)
    return Image.fromarray(whole[:height, :width].astype(np.uint8))
