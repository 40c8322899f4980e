"""Noise and tone: what changes every pixel on its own."""

from __future__ import annotations

import numpy as np
from PIL import Image

from edgevlm_runner.corrupt.planes import Bytes, Floats, pixelwise


def gaussian_noise(image: Image.Image, sigma: float, scale: float, rng: np.random.Generator) -> Image.Image:
    # standard_normal times sigma instead of normal(scale=…): the latter may fuse multiply and add in C.
    return pixelwise(image, lambda x, _: x + rng.standard_normal(x.shape) * sigma)


def shot_noise(image: Image.Image, photons: float, scale: float, rng: np.random.Generator) -> Image.Image:
    return pixelwise(image, lambda x, _: rng.poisson(x * photons) / photons)


def impulse_noise(image: Image.Image, amount: float, scale: float, rng: np.random.Generator) -> Image.Image:
    """Salt and pepper in equal parts, each channel on its own."""

    def change(x: Floats, rows: slice) -> Floats:
        hit = rng.random(x.shape) <= amount
        salt = rng.random(x.shape) <= 0.5
        noisy: Floats = np.where(hit, np.where(salt, 1.0, 0.0), x)
        return noisy

    return pixelwise(image, change)


def brightness(image: Image.Image, shift: float, scale: float, rng: np.random.Generator) -> Image.Image:
    """V + shift in HSV. Hue and saturation stay, so R, G and B grow by the same factor V' / V."""

    def change(x: Floats, rows: slice) -> Floats:
        value = x.max(axis=2, keepdims=True)
        brighter = np.clip(value + shift, 0.0, 1.0)
        # Black has no hue: it turns grey.
        scaled: Floats = np.where(value > 0.0, x * (brighter / np.where(value > 0.0, value, 1.0)), brighter)
        return scaled

    return pixelwise(image, change)


def contrast(image: Image.Image, factor: float, scale: float, rng: np.random.Generator) -> Image.Image:
    """Distance to the mean of each channel, times the factor."""
    pixels: Bytes = np.asarray(image)
    mean = pixels.sum(axis=(0, 1), dtype=np.int64) / (pixels.shape[0] * pixels.shape[1] * 255.0)
    return pixelwise(image, lambda x, _: (x - mean) * factor + mean)
