"""Corruptions with five severities each: ImageNet-C's fifteen, CIFAR-C's constants, edge sensors.

Definitions: Hendrycks & Dietterich, "Benchmarking Neural Network Robustness to Common
Corruptions and Perturbations", ICLR 2019. The host and the device corrupt the same clean
picture on their own, so the bytes must agree between x86 and ARM. Three habits see to that:

- one PCG64 generator per (seed, image id, corruption, severity), seeded by SHA-256;
- blurs and warps are sums of integers; everything else is float64 arithmetic (no fused
  multiply-add, no FFT), rounded to a byte once at the end;
- `jpeg_compression` is as reproducible as the libjpeg behind Pillow, `pixelate` and `zoom_blur` as its
  integer resampling.

ImageNet-C fixes lengths (blur, glass, motion, snow, elastic) in pixels of a 224-pixel picture. Here they
grow and shrink with min(height, width) / `reference_size`, so that a picture of any size looks equally
blurred; below some 30 pixels a blur is therefore hardly visible. CIFAR-C's hold at 32 pixels. The maps of
fog and frost are the next power of two of the longer side. ImageNet-C truncates to bytes, this package
rounds.
"""

from __future__ import annotations

import hashlib
from typing import Optional

import numpy as np
from PIL import Image

from edgevlm_runner.corrupt.profiles import CIFAR_C, CIFAR_SIZE, CONDITIONS, CORRUPTIONS
from edgevlm_runner.errors import BundleError, ImageError

__all__ = ["CONDITIONS", "CORRUPTIONS", "SEVERITIES", "corrupt", "generator"]

SEVERITIES = (1, 2, 3, 4, 5)
REFERENCE_SIZE = 224


def corrupt(
    image: Image.Image,
    corruption: str,
    severity: int,
    *,
    seed: int,
    image_id: str,
    reference_size: Optional[int] = None,
) -> Image.Image:
    """A corrupted copy of an RGB picture; equal arguments give equal bytes.

    `reference_size` is the shorter side, in pixels, at which lengths have their published size; None: 224,
    for CIFAR-C 32. Raises ImageError when `image` is not RGB, BundleError on an unknown condition.
    """
    if image.mode != "RGB":
        raise ImageError(f"corrupt: expected an RGB picture, got mode {image.mode!r}; convert it first.")
    if corruption not in CONDITIONS or severity not in SEVERITIES:
        raise BundleError(
            f"unknown condition {corruption}/{severity}: expected one of {', '.join(CONDITIONS)} "
            "with severity 1 to 5. The bundle may come from a newer edgevlm; compile it again."
        )
    published_size = reference_size or (CIFAR_SIZE if corruption in CIFAR_C else REFERENCE_SIZE)
    effect, constants = CONDITIONS[corruption]
    rng = generator(seed, image_id, corruption, severity)
    return effect(image, constants[severity - 1], min(image.size) / published_size, rng)


def generator(seed: int, image_id: str, corruption: str, severity: int) -> np.random.Generator:
    """The generator of one corrupted picture, independent of every other one and of call order."""
    digest = hashlib.sha256(f"{seed}\n{image_id}\n{corruption}\n{severity}".encode()).digest()
    return np.random.Generator(np.random.PCG64(int.from_bytes(digest[:16], "big")))
