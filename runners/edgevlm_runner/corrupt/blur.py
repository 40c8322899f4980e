"""Blurs: defocus, glass, motion, zoom."""

from __future__ import annotations

import math
from typing import List, Tuple

import numpy as np
from PIL import Image

from edgevlm_runner.corrupt.planes import (
    BAND_ROWS,
    Bytes,
    Integers,
    gaussian,
    gaussian_weights,
    trail,
    weighted,
)


def defocus_blur(
    image: Image.Image, constants: Tuple[float, float], scale: float, rng: np.random.Generator
) -> Image.Image:
    """A disc-shaped point spread, anti-aliased by a 3- or 5-tap Gaussian; borders are mirrored.

    `constants`: radius, sigma of the Gaussian. Filtering with the disc and then with the Gaussian
    equals filtering with the smoothed disc.
    """
    published_radius, sigma = constants
    taps = gaussian_weights(range(-1, 2) if published_radius <= 8 else range(-2, 3), sigma, total=256)
    reach = len(taps) // 2
    radius = published_radius * scale
    # Half-width of the disc in each of its rows.
    extent = int(radius)
    widths = [int(math.sqrt(radius * radius - dy * dy)) for dy in range(-extent, extent + 1)]
    weight = sum(2 * w + 1 for w in widths) * 256 * 256

    pixels: Bytes = np.asarray(image)
    out = np.empty_like(pixels)
    for channel in range(3):
        plane = np.pad(pixels[:, :, channel].astype(np.int64), extent + reach, mode="reflect")
        smooth = weighted(weighted(_disc_sum(plane, widths), taps, axis=0), taps, axis=1)
        out[:, :, channel] = (2 * smooth + weight) // (2 * weight)
    return Image.fromarray(out)


def _disc_sum(plane: Integers, widths: List[int]) -> Integers:
    """int64 [H − 2r, W − 2r]: sums over a disc given by its row half-widths; r = len(widths) // 2."""
    radius = len(widths) // 2
    height, width = plane.shape[0] - 2 * radius, plane.shape[1] - 2 * radius
    # Running row sums make the cost of a disc linear in its radius.
    running = np.zeros((plane.shape[0], plane.shape[1] + 1), dtype=np.int64)
    np.cumsum(plane, axis=1, out=running[:, 1:])
    total: Integers = np.zeros((height, width), dtype=np.int64)
    for row, half in enumerate(widths):
        first, last = radius - half, radius + half + 1
        total += running[row : row + height, last : last + width]
        total -= running[row : row + height, first : first + width]
    return total


def motion_blur(
    image: Image.Image, constants: Tuple[float, float], scale: float, rng: np.random.Generator
) -> Image.Image:
    """A half-Gaussian trail along an angle in ±45°, border pixels repeated (ImageMagick's definition).

    `constants`: radius, sigma.
    """
    radius, sigma = constants
    angle = math.radians(float(rng.random()) * 90.0 - 45.0)
    length = 2 * round(radius * scale) + 1
    pixels: Bytes = np.asarray(image)
    out = np.empty_like(pixels)
    for channel in range(3):
        out[:, :, channel] = trail(pixels[:, :, channel].astype(np.int64), length, sigma * scale, angle)
    return Image.fromarray(out)


def glass_blur(
    image: Image.Image, constants: Tuple[float, int, int], scale: float, rng: np.random.Generator
) -> Image.Image:
    """Gaussian blur, pixels taken from random neighbours, Gaussian blur again.

    `constants`: sigma, reach m of the neighbourhood, iterations. ImageNet-C means to swap
    neighbours, pixel after pixel, but its swap of two views copies one onto the other. Here a
    whole iteration copies at once. Its shifts of −m … m − 1 also move the picture by half a pixel per
    iteration; here they are uniform in [−m, m), scaled, and rounded to whole pixels by chance, so
    that their mean is zero and a fraction of a pixel still counts.
    """
    sigma, reach, iterations = constants
    sigmas = (sigma * scale, sigma * scale)
    pixels = _gaussian_bytes(np.asarray(image), sigmas)
    height, width = pixels.shape[:2]
    columns = np.arange(width)
    for _ in range(iterations):
        shuffled = np.empty_like(pixels)
        for top in range(0, height, BAND_ROWS):
            rows = np.arange(top, min(top + BAND_ROWS, height))[:, np.newaxis]
            shape = (2, len(rows), width)
            moved = (rng.random(shape) * 2.0 - 1.0) * (reach * scale)
            shift = np.floor(moved + rng.random(shape)).astype(np.int64)
            y, x = np.clip(rows + shift[0], 0, height - 1), np.clip(columns + shift[1], 0, width - 1)
            shuffled[top : top + BAND_ROWS] = pixels[y, x]
        pixels = shuffled
    return Image.fromarray(_gaussian_bytes(pixels, sigmas))


def _gaussian_bytes(pixels: Bytes, sigmas: Tuple[float, float]) -> Bytes:
    out = np.empty_like(pixels)
    for channel in range(3):
        # Eight more bits between the two passes.
        plane = gaussian(pixels[:, :, channel].astype(np.int64) << 8, sigmas, reach=4.0, mode="edge")
        out[:, :, channel] = (plane + 128) >> 8
    return out


def zoom_blur(
    image: Image.Image, constants: Tuple[float, float], scale: float, rng: np.random.Generator
) -> Image.Image:
    """The mean of the picture and its enlargements from the centre by 1, 1 + step … below end.

    `constants`: end, step. A share of the picture, so it has no reference size. Enlarged by Pillow,
    whose bilinear weights are integers.
    """
    end, step = constants
    count = math.ceil((end - 1.0) / step - 1e-9)
    width, height = image.size
    total = np.asarray(image).astype(np.int64)
    for number in range(count):
        zoom = 1.0 + number * step
        x, y = (width - width / zoom) / 2.0, (height - height / zoom) / 2.0
        frame = image.resize(image.size, Image.Resampling.BILINEAR, box=(x, y, width - x, height - y))
        total += np.asarray(frame)
    frames = count + 1
    return Image.fromarray(((2 * total + frames) // (2 * frames)).astype(np.uint8))
