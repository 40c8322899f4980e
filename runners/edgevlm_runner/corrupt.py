"""The ten edge-suite corruptions, with the severities of ImageNet-C.

Definitions: Hendrycks & Dietterich, "Benchmarking Neural Network Robustness to Common
Corruptions and Perturbations", ICLR 2019. The host and the device corrupt the same clean
picture on their own, so the bytes must agree between x86 and ARM. Three habits see to that:

- one PCG64 generator per (seed, image id, corruption, severity), seeded by SHA-256;
- blurs are sums of integers; everything else is float64 arithmetic (no fused
  multiply-add, no FFT), rounded to a byte once at the end;
- `jpeg_compression` is as reproducible as the libjpeg behind Pillow.

ImageNet-C fixes blur radii in pixels of a 224-pixel picture. Here they grow and shrink with
min(height, width) / `reference_size`, so that a picture of any size looks equally blurred;
below some 30 pixels a blur is therefore hardly visible. The fog map is the next power of two
of the longer side. ImageNet-C truncates to bytes, this file rounds.
"""

from __future__ import annotations

import hashlib
import io
import math
from typing import Callable, Dict, List, Tuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from edgevlm_runner.errors import BundleError, ImageError

Bytes = NDArray[np.uint8]
Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

SEVERITIES = (1, 2, 3, 4, 5)

GAUSSIAN_SIGMA = (0.08, 0.12, 0.18, 0.26, 0.38)
SHOT_PHOTONS = (60.0, 25.0, 12.0, 5.0, 3.0)
IMPULSE_AMOUNT = (0.03, 0.06, 0.09, 0.17, 0.27)
DEFOCUS_RADIUS_AND_ALIAS_SIGMA = ((3, 0.1), (4, 0.5), (6, 0.5), (8, 0.5), (10, 0.5))
MOTION_RADIUS_AND_SIGMA = ((10, 3), (15, 5), (15, 8), (15, 12), (20, 15))
FOG_AMOUNT_AND_DECAY = ((1.5, 2.0), (2.0, 2.0), (2.5, 1.7), (2.5, 1.5), (3.0, 1.4))
BRIGHTNESS_SHIFT = (0.1, 0.2, 0.3, 0.4, 0.5)
CONTRAST_FACTOR = (0.4, 0.3, 0.2, 0.1, 0.05)
JPEG_QUALITY = (25, 18, 15, 10, 7)
PIXELATE_FACTOR = (0.6, 0.5, 0.4, 0.3, 0.25)

BAND_ROWS = 128
"""Pixelwise corruptions run in bands of rows, which bounds their memory on the device."""


def corrupt(
    image: Image.Image,
    corruption: str,
    severity: int,
    *,
    seed: int,
    image_id: str,
    reference_size: int = 224,
) -> Image.Image:
    """A corrupted copy of an RGB picture; equal arguments give equal bytes.

    `reference_size` is the shorter side, in pixels, at which blur radii have their published size.
    Raises ImageError when `image` is not RGB, BundleError on an unknown corruption or severity.
    """
    if image.mode != "RGB":
        raise ImageError(f"corrupt: expected an RGB picture, got mode {image.mode!r}; convert it first.")
    if corruption not in CORRUPTIONS or severity not in SEVERITIES:
        raise BundleError(
            f"unknown condition {corruption}/{severity}: expected one of {', '.join(CORRUPTIONS)} "
            "with severity 1 to 5. The bundle may come from a newer edgevlm; compile it again."
        )
    scale = min(image.size) / reference_size
    rng = generator(seed, image_id, corruption, severity)
    return CORRUPTIONS[corruption](image, severity - 1, scale, rng)


def generator(seed: int, image_id: str, corruption: str, severity: int) -> np.random.Generator:
    """The generator of one corrupted picture, independent of every other one and of call order."""
    digest = hashlib.sha256(f"{seed}\n{image_id}\n{corruption}\n{severity}".encode()).digest()
    return np.random.Generator(np.random.PCG64(int.from_bytes(digest[:16], "big")))


def _pixelwise(image: Image.Image, change: Callable[[Floats], Floats]) -> Image.Image:
    """Apply `change` to float64 [h, W, 3] bands in [0, 1], from top to bottom, and round to bytes."""
    pixels: Bytes = np.asarray(image)
    out = np.empty_like(pixels)
    for top in range(0, pixels.shape[0], BAND_ROWS):
        band = slice(top, top + BAND_ROWS)
        out[band] = np.rint(np.clip(change(pixels[band] / 255.0), 0.0, 1.0) * 255.0)
    return Image.fromarray(out)


def _gaussian_noise(image: Image.Image, level: int, scale: float, rng: np.random.Generator) -> Image.Image:
    # standard_normal times sigma instead of normal(scale=…): the latter may fuse multiply and add in C.
    return _pixelwise(image, lambda x: x + rng.standard_normal(x.shape) * GAUSSIAN_SIGMA[level])


def _shot_noise(image: Image.Image, level: int, scale: float, rng: np.random.Generator) -> Image.Image:
    photons = SHOT_PHOTONS[level]
    return _pixelwise(image, lambda x: rng.poisson(x * photons) / photons)


def _impulse_noise(image: Image.Image, level: int, scale: float, rng: np.random.Generator) -> Image.Image:
    """Salt and pepper in equal parts, each channel on its own."""

    def change(x: Floats) -> Floats:
        hit = rng.random(x.shape) <= IMPULSE_AMOUNT[level]
        salt = rng.random(x.shape) <= 0.5
        noisy: Floats = np.where(hit, np.where(salt, 1.0, 0.0), x)
        return noisy

    return _pixelwise(image, change)


def _brightness(image: Image.Image, level: int, scale: float, rng: np.random.Generator) -> Image.Image:
    """V + shift in HSV. Hue and saturation stay, so R, G and B grow by the same factor V' / V."""

    def change(x: Floats) -> Floats:
        value = x.max(axis=2, keepdims=True)
        brighter = np.minimum(value + BRIGHTNESS_SHIFT[level], 1.0)
        # Black has no hue: it turns grey.
        scaled: Floats = np.where(value > 0.0, x * (brighter / np.where(value > 0.0, value, 1.0)), brighter)
        return scaled

    return _pixelwise(image, change)


def _contrast(image: Image.Image, level: int, scale: float, rng: np.random.Generator) -> Image.Image:
    """Distance to the mean of each channel, times the factor."""
    pixels: Bytes = np.asarray(image)
    mean = pixels.sum(axis=(0, 1), dtype=np.int64) / (pixels.shape[0] * pixels.shape[1] * 255.0)
    return _pixelwise(image, lambda x: (x - mean) * CONTRAST_FACTOR[level] + mean)


def _fog(image: Image.Image, level: int, scale: float, rng: np.random.Generator) -> Image.Image:
    amount, decay = FOG_AMOUNT_AND_DECAY[level]
    pixels: Bytes = np.asarray(image)
    height, width = pixels.shape[:2]
    side = 1 << max(1, (max(height, width) - 1).bit_length())
    haze = _plasma(side, decay, rng)[:height, :width]
    brightest = int(pixels.max()) / 255.0
    rows = iter(range(0, height, BAND_ROWS))

    def change(x: Floats) -> Floats:
        top = next(rows)
        foggy: Floats = x + amount * haze[top : top + x.shape[0], :, np.newaxis]
        return foggy * brightest / (brightest + amount)

    return _pixelwise(image, change)


def _plasma(side: int, decay: float, rng: np.random.Generator) -> Floats:
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


def _defocus_blur(image: Image.Image, level: int, scale: float, rng: np.random.Generator) -> Image.Image:
    """A disc-shaped point spread, anti-aliased by a 3- or 5-tap Gaussian; borders are mirrored.

    Filtering with the disc and then with the Gaussian equals filtering with the smoothed disc.
    """
    published_radius, sigma = DEFOCUS_RADIUS_AND_ALIAS_SIGMA[level]
    taps = _gaussian_weights(range(-1, 2) if published_radius <= 8 else range(-2, 3), sigma, total=256)
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
        smooth = _weighted(_weighted(_disc_sum(plane, widths), taps, axis=0), taps, axis=1)
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


def _weighted(plane: Integers, taps: List[int], axis: int) -> Integers:
    """Correlate one axis with integer taps; the axis gets len(taps) − 1 shorter."""
    length = plane.shape[axis] - len(taps) + 1
    shape = (length, plane.shape[1]) if axis == 0 else (plane.shape[0], length)
    total: Integers = np.zeros(shape, dtype=np.int64)
    for offset, tap in enumerate(taps):
        part = slice(offset, offset + length)
        total += tap * (plane[part] if axis == 0 else plane[:, part])
    return total


def _motion_blur(image: Image.Image, level: int, scale: float, rng: np.random.Generator) -> Image.Image:
    """A half-Gaussian trail along an angle in ±45°, border pixels repeated (ImageMagick's definition)."""
    published_radius, published_sigma = MOTION_RADIUS_AND_SIGMA[level]
    angle = math.radians(float(rng.random()) * 90.0 - 45.0)
    length = 2 * round(published_radius * scale) + 1
    weights = _gaussian_weights(range(length), published_sigma * scale, total=1 << 16)
    trail = [(_step(i * math.sin(angle)), _step(i * math.cos(angle))) for i in range(length)]

    pixels: Bytes = np.asarray(image)
    height, width = pixels.shape[:2]
    out = np.empty_like(pixels)
    for channel in range(3):
        plane = np.pad(pixels[:, :, channel].astype(np.int64), length, mode="edge")
        total: Integers = np.full((height, width), 1 << 15, dtype=np.int64)
        for weight, (dy, dx) in zip(weights, trail):
            if weight:
                total += weight * plane[length + dy : length + dy + height, length + dx : length + dx + width]
        out[:, :, channel] = total >> 16
    return Image.fromarray(out)


def _step(distance: float) -> int:
    """Whole pixels along one axis; halves are rounded down."""
    return math.ceil(distance - 0.5)


def _gaussian_weights(positions: range, sigma: float, total: int) -> List[int]:
    """Gaussian weights at whole positions as integers that sum to `total`."""
    weights = [math.exp(-0.5 * (x / sigma) ** 2) for x in positions]
    rounded = [round(total * w / math.fsum(weights)) for w in weights]
    # What rounding left over goes to the centre, where it is least visible.
    rounded[list(positions).index(0)] += total - sum(rounded)
    return rounded


def _jpeg_compression(image: Image.Image, level: int, scale: float, rng: np.random.Generator) -> Image.Image:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=JPEG_QUALITY[level], subsampling="4:2:0", optimize=False)
    buffer.seek(0)
    with Image.open(buffer) as decoded:
        restored: Image.Image = decoded.convert("RGB")
        return restored


def _pixelate(image: Image.Image, level: int, scale: float, rng: np.random.Generator) -> Image.Image:
    factor = PIXELATE_FACTOR[level]
    small: Tuple[int, int] = (max(1, int(image.width * factor)), max(1, int(image.height * factor)))
    return image.resize(small, Image.Resampling.BOX).resize(image.size, Image.Resampling.BOX)


CORRUPTIONS: Dict[str, Callable[[Image.Image, int, float, np.random.Generator], Image.Image]] = {
    "gaussian_noise": _gaussian_noise,
    "shot_noise": _shot_noise,
    "impulse_noise": _impulse_noise,
    "defocus_blur": _defocus_blur,
    "motion_blur": _motion_blur,
    "fog": _fog,
    "brightness": _brightness,
    "contrast": _contrast,
    "jpeg_compression": _jpeg_compression,
    "pixelate": _pixelate,
}
"""Corruption name → (picture, severity − 1, blur scale, generator) → corrupted picture."""
