"""Grounds that no scene was trained on, for the same scene on another background."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

CHECKS, WAVES = "checks", "waves"
GROUNDS = (CHECKS, WAVES)

_CONTRAST = 34.0
"""Half the difference between light and dark, of 255: it costs the demo model about one answer in ten."""


def paint(ground: str, side: int, rng: np.random.Generator) -> NDArray[np.uint8]:
    """uint8 [side, side, 3] in a dull colour, as the smooth ground has it: squares, or slanting waves."""
    base = rng.uniform(60, 120) + rng.uniform(-14, 14, size=3)
    y, x = np.mgrid[:side, :side] + rng.integers(0, side, size=2)[:, None, None]
    if ground == CHECKS:
        size = int(rng.integers(8, 15))
        pattern = ((x // size + y // size) % 2) * 2.0 - 1.0
    else:
        angle, length = rng.uniform(0, np.pi), rng.uniform(9, 18)
        pattern = np.sin(2 * np.pi * (x * np.cos(angle) + y * np.sin(angle)) / length)
    painted: NDArray[np.uint8] = np.clip(base + _CONTRAST * pattern[..., None], 0, 255).astype(np.uint8)
    return painted
