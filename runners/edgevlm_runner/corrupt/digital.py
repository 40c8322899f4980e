"""Digital: compression, pixelation, elastic distortion."""

from __future__ import annotations

import io
from typing import Tuple

import numpy as np
from PIL import Image

from edgevlm_runner.corrupt.planes import BAND_ROWS, FRACTION, Bytes, Integers, gaussian, sampled


def jpeg_compression(image: Image.Image, quality: int, scale: float, rng: np.random.Generator) -> Image.Image:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality, subsampling="4:2:0", optimize=False)
    buffer.seek(0)
    with Image.open(buffer) as decoded:
        restored: Image.Image = decoded.convert("RGB")
        return restored


def pixelate(image: Image.Image, factor: float, scale: float, rng: np.random.Generator) -> Image.Image:
    small: Tuple[int, int] = (max(1, int(image.width * factor)), max(1, int(image.height * factor)))
    return image.resize(small, Image.Resampling.BOX).resize(image.size, Image.Resampling.BOX)


def elastic_transform(
    image: Image.Image, strength: float, scale: float, rng: np.random.Generator
) -> Image.Image:
    """Every pixel displaced by smoothed noise: uniform ±0.005·H, sigma 0.01·(H, W), times `strength`.

    The smoothing makes ImageNet-C's displacement some 1 to 2.4 pixels for a picture of any size; here it
    grows with the picture like the radii of blurs. Borders are mirrored.
    """
    width, height = image.size
    pixels: Bytes = np.asarray(image)
    sigmas = (0.01 * height, 0.01 * width)
    reach = 0.005 * height * strength * scale
    dy, dx = (_displacement(height, width, sigmas, reach, rng) for _ in range(2))
    out = np.empty_like(pixels)
    columns = np.arange(width, dtype=np.int64) * FRACTION
    for top in range(0, height, BAND_ROWS):
        band = slice(top, min(top + BAND_ROWS, height))
        rows = np.arange(band.start, band.stop, dtype=np.int64)[:, np.newaxis] * FRACTION
        out[band] = sampled(pixels, rows + dy[band], columns + dx[band])
    return Image.fromarray(out)


def _displacement(
    height: int, width: int, sigmas: Tuple[float, float], reach: float, rng: np.random.Generator
) -> Integers:
    """int64 [height, width] in 1/256 pixel."""
    unit = 1 << 24
    noise: Integers = np.rint((rng.random((height, width)) * 2.0 - 1.0) * unit).astype(np.int64)
    smooth = gaussian(noise, sigmas, reach=3.0, mode="symmetric")
    displaced: Integers = np.rint(smooth * (reach * FRACTION / unit)).astype(np.int64)
    return displaced
