"""Weather: fog, snow, frost."""

from __future__ import annotations

import math
from typing import Tuple

import numpy as np
from PIL import Image

from edgevlm_runner.corrupt.planes import Bytes, Floats, Integers, enlarged, pixelwise, plasma_over, trail

SNOW_UNIT = 255 << 8
"""Flakes are integers with white at this value."""
FROST_TINT = (0.86, 0.95, 1.0)
"""Frost is a bluish white."""


def fog(
    image: Image.Image, constants: Tuple[float, float], scale: float, rng: np.random.Generator
) -> Image.Image:
    """`constants`: amount, decay of the plasma map."""
    amount, decay = constants
    pixels: Bytes = np.asarray(image)
    haze = plasma_over(pixels.shape[0], pixels.shape[1], decay, rng)
    brightest = int(pixels.max()) / 255.0

    def change(x: Floats, rows: slice) -> Floats:
        foggy: Floats = x + amount * haze[rows, :, np.newaxis]
        return foggy * brightest / (brightest + amount)

    return pixelwise(image, change)


def snow(
    image: Image.Image,
    constants: Tuple[float, float, float, float, float, float, float],
    scale: float,
    rng: np.random.Generator,
) -> Image.Image:
    """Enlarged noise above a threshold falls as streaks, over a picture that is whitened a little.

    `constants`: mean, deviation, zoom, threshold, radius and sigma of the streaks, share of the
    picture that is not whitened.
    """
    mean, deviation, zoom, threshold, radius, sigma, kept = constants
    width, height = image.size
    flake = max(1.0, zoom * scale)
    grid = (math.ceil(height / flake), math.ceil(width / flake))
    noise = np.rint((rng.standard_normal(grid) * deviation + mean) * SNOW_UNIT).astype(np.int64)
    layer = enlarged(noise, height, width)
    layer[layer < round(threshold * SNOW_UNIT)] = 0
    angle = math.radians(float(rng.random()) * 90.0 - 135.0)
    length = 2 * round(radius * scale) + 1
    falling: Integers = trail(np.minimum(layer, SNOW_UNIT), length, sigma * scale, angle)
    both = (falling + falling[::-1, ::-1]) / SNOW_UNIT

    def change(x: Floats, rows: slice) -> Floats:
        grey = x[:, :, 0] * 0.299 + x[:, :, 1] * 0.587 + x[:, :, 2] * 0.114
        white = np.maximum(x, (grey * 1.5 + 0.5)[:, :, np.newaxis])
        return x * kept + white * (1.0 - kept) + both[rows, :, np.newaxis]

    return pixelwise(image, change)


def frost(
    image: Image.Image, constants: Tuple[float, float], scale: float, rng: np.random.Generator
) -> Image.Image:
    """`constants`: share of the picture, share of the frost.

    ImageNet-C adds cut-outs of six photographs. Here the ice is made: crests of plasma maps, which
    branch like crystals, on patches that thaw in between.
    """
    picture, ice = constants
    height, width = image.size[1], image.size[0]
    crests: Floats = np.zeros((height, width), dtype=np.float64)
    for decay, share in ((1.6, 0.4), (1.35, 0.6)):
        ridge = 1.0 - np.abs(plasma_over(height, width, decay, rng) * 2.0 - 1.0)
        crests += ridge * ridge * ridge * share
    patches = plasma_over(height, width, 1.7, rng)
    texture = np.clip(patches * 0.4 + crests * crests * patches * 1.6, 0.0, 1.0)
    tint = np.array(FROST_TINT)
    return pixelwise(image, lambda x, rows: x * picture + texture[rows, :, np.newaxis] * tint * ice)
