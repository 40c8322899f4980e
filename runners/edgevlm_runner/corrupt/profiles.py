"""Which conditions there are, and their constants at severities 1 to 5.

IMAGENET_C and CIFAR_C: Hendrycks & Dietterich, ICLR 2019; those of CIFAR-C as in the authors' program
(hendrycks/robustness, ImageNet-C/create_c/make_cifar_c.py). CIFAR-C has no `elastic_transform` here:
its version bends the picture by an affine map too, which is another corruption.
SENSOR and PERTURBATIONS are ours.
"""

from __future__ import annotations

from typing import Any, Callable, Dict, Tuple

import numpy as np
from PIL import Image

from edgevlm_runner.corrupt import blur, digital, noise, perturbation, sensor, weather

Effect = Callable[[Image.Image, Any, float, np.random.Generator], Image.Image]
"""(picture, constants of the severity, size over reference size, generator) → changed picture."""
Profile = Dict[str, Tuple[Effect, Tuple[Any, ...]]]
"""Name → effect, constants per severity."""

CIFAR_PREFIX = "cifar-c:"
CIFAR_SIZE = 32
"""Side of CIFAR's pictures, at which the constants of CIFAR-C hold."""

IMAGENET_C: Profile = {
    "gaussian_noise": (noise.gaussian_noise, (0.08, 0.12, 0.18, 0.26, 0.38)),
    "shot_noise": (noise.shot_noise, (60.0, 25.0, 12.0, 5.0, 3.0)),
    "impulse_noise": (noise.impulse_noise, (0.03, 0.06, 0.09, 0.17, 0.27)),
    "defocus_blur": (blur.defocus_blur, ((3, 0.1), (4, 0.5), (6, 0.5), (8, 0.5), (10, 0.5))),
    "motion_blur": (blur.motion_blur, ((10, 3), (15, 5), (15, 8), (15, 12), (20, 15))),
    "fog": (weather.fog, ((1.5, 2.0), (2.0, 2.0), (2.5, 1.7), (2.5, 1.5), (3.0, 1.4))),
    "brightness": (noise.brightness, (0.1, 0.2, 0.3, 0.4, 0.5)),
    "contrast": (noise.contrast, (0.4, 0.3, 0.2, 0.1, 0.05)),
    "jpeg_compression": (digital.jpeg_compression, (25, 18, 15, 10, 7)),
    "pixelate": (digital.pixelate, (0.6, 0.5, 0.4, 0.3, 0.25)),
    "glass_blur": (blur.glass_blur, ((0.7, 1, 2), (0.9, 2, 1), (1.0, 2, 3), (1.1, 3, 2), (1.5, 4, 2))),
    "zoom_blur": (blur.zoom_blur, ((1.11, 0.01), (1.16, 0.01), (1.21, 0.02), (1.26, 0.02), (1.31, 0.03))),
    "snow": (
        weather.snow,
        (
            (0.1, 0.3, 3.0, 0.5, 10, 4, 0.8),
            (0.2, 0.3, 2.0, 0.5, 12, 4, 0.7),
            (0.55, 0.3, 4.0, 0.9, 12, 8, 0.7),
            (0.55, 0.3, 4.5, 0.85, 12, 8, 0.65),
            (0.55, 0.3, 2.5, 0.85, 12, 12, 0.55),
        ),
    ),
    "frost": (weather.frost, ((1.0, 0.4), (0.8, 0.6), (0.7, 0.7), (0.65, 0.7), (0.6, 0.75))),
    "elastic_transform": (digital.elastic_transform, (12.5, 16.25, 21.25, 25.0, 30.0)),
}
"""The first ten are the edge suite."""

SENSOR: Profile = {
    # Whole stops; at six a white pixel catches 62 electrons.
    "low_light": (sensor.low_light, (2, 3, 4, 5, 6)),
    # 4 px of 224 while a picture is read is a hand that moves; 28 is a vehicle over a kerb.
    "rolling_motion": (sensor.rolling_motion, ((4, 1.0), (8, 2.0), (14, 3.0), (20, 4.0), (28, 5.0))),
    # From a few specks of dust to a lens that wants wiping: about 5 to 40 % of the picture.
    "lens_dirt": (sensor.lens_dirt, ((6, 0.4), (12, 0.5), (18, 0.6), (26, 0.7), (36, 0.8))),
    # Lines are seen from about 1 % of white on; 12 % is as strong as the second level of gaussian_noise.
    "thermal_banding": (sensor.thermal_banding, (0.02, 0.04, 0.06, 0.09, 0.12)),
    # Detail dropped; macroblocks lost at packet losses from one in fifty to one in four.
    "block_loss": (sensor.block_loss, ((0.2, 0.02), (0.35, 0.05), (0.5, 0.1), (0.65, 0.17), (0.8, 0.25))),
}

CIFAR_C: Profile = {
    CIFAR_PREFIX + name: (IMAGENET_C[name][0], constants)
    for name, constants in (
        ("gaussian_noise", (0.04, 0.06, 0.08, 0.09, 0.10)),
        ("shot_noise", (500.0, 250.0, 100.0, 75.0, 50.0)),
        ("impulse_noise", (0.01, 0.02, 0.03, 0.05, 0.07)),
        ("defocus_blur", ((0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1.0, 0.2), (1.5, 0.1))),
        ("motion_blur", ((6, 1.0), (6, 1.5), (6, 2.0), (8, 2.0), (9, 2.5))),
        ("fog", ((0.2, 3.0), (0.5, 3.0), (0.75, 2.5), (1.0, 2.0), (1.5, 1.75))),
        ("brightness", (0.05, 0.1, 0.15, 0.2, 0.3)),
        ("contrast", (0.75, 0.5, 0.4, 0.3, 0.15)),
        ("jpeg_compression", (80, 65, 58, 50, 40)),
        ("pixelate", (0.95, 0.9, 0.85, 0.75, 0.65)),
        ("glass_blur", ((0.05, 1, 1), (0.25, 1, 1), (0.4, 1, 1), (0.25, 1, 2), (0.4, 1, 2))),
        ("zoom_blur", ((1.06, 0.01), (1.11, 0.01), (1.16, 0.01), (1.21, 0.01), (1.26, 0.01))),
        (
            "snow",
            (
                (0.1, 0.2, 1.0, 0.6, 8, 3, 0.95),
                (0.1, 0.2, 1.0, 0.5, 10, 4, 0.9),
                (0.15, 0.3, 1.75, 0.55, 10, 4, 0.9),
                (0.25, 0.3, 2.25, 0.6, 12, 6, 0.85),
                (0.3, 0.3, 1.25, 0.65, 14, 12, 0.8),
            ),
        ),
        ("frost", ((1.0, 0.2), (1.0, 0.3), (0.9, 0.4), (0.85, 0.4), (0.75, 0.45))),
    )
}

PERTURBATIONS: Profile = {
    "perturbed:small_shift": (perturbation.small_shift, (1, 2, 3, 4, 5)),
    # A camera's own settings: nobody sees the difference at 95, few do at 70.
    "perturbed:jpeg_quality": (digital.jpeg_compression, (95, 90, 85, 80, 70)),
    # Up to 13 of 255 steps, less than clouds do within a minute.
    "perturbed:brightness_shift": (perturbation.brightness_shift, (0.01, 0.02, 0.03, 0.04, 0.05)),
    "perturbed:paraphrase": (perturbation.unchanged, (1, 2, 3, 4, 5)),
}

CORRUPTIONS: Profile = {**IMAGENET_C, **SENSOR}
"""The corruptions of a recipe, under the names that it has for them."""
CONDITIONS: Profile = {**CORRUPTIONS, **CIFAR_C, **PERTURBATIONS}
"""All that the first part of an item's condition can be."""
