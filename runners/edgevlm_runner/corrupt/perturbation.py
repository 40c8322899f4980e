"""Perturbations: changes so small that no answer should change with them.

Not corruptions: a corruption may cost accuracy, a perturbation must cost nothing. What they bring to
light is answers that hang by a thread.
"""

from __future__ import annotations

import numpy as np
from PIL import Image

from edgevlm_runner.corrupt import noise
from edgevlm_runner.corrupt.planes import Bytes


def small_shift(image: Image.Image, pixels: int, scale: float, rng: np.random.Generator) -> Image.Image:
    """The picture moved by whole pixels along both axes, each way at random; border pixels repeated.

    Pixels of the picture as it is, at any size: a camera that was touched.
    """
    down, right = (pixels * (1 - 2 * int(way)) for way in rng.integers(0, 2, 2))
    before: Bytes = np.asarray(image)
    y = np.clip(np.arange(image.height) - down, 0, image.height - 1)
    x = np.clip(np.arange(image.width) - right, 0, image.width - 1)
    return Image.fromarray(before[y[:, np.newaxis], x])


def brightness_shift(image: Image.Image, shift: float, scale: float, rng: np.random.Generator) -> Image.Image:
    """V ± shift in HSV, lighter or darker at random."""
    way = 1.0 if rng.random() < 0.5 else -1.0
    return noise.brightness(image, way * shift, scale, rng)


def unchanged(image: Image.Image, level: int, scale: float, rng: np.random.Generator) -> Image.Image:
    """A paraphrase changes the question alone; the item holds it."""
    return image.copy()
