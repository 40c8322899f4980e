"""Where tokens stand, for rotary embeddings: one after the other, or in time, height and width (M-RoPE).

Python 3.8 and NumPy only.
"""

from __future__ import annotations

from typing import Optional, Tuple

import numpy as np

ROWS = 3
"""Of M-RoPE: time, height, width."""


def of_prompt(places: np.ndarray, grid: Optional[Tuple[int, int]]) -> np.ndarray:
    """int64 [3, 1, T] of a prompt with at most one picture.

    places: bool [1, T], where its image tokens are, next to each other; grid: (rows, columns) of them.

    Words go on by one in all rows. An image token stands at the picture's beginning in time, at its row and
    column in height and width; the word after it follows the largest of them. As in transformers'
    `get_rope_index`.
    """
    images = int(places.sum())
    positions = np.repeat(np.arange(places.shape[1], dtype=np.int64)[None], ROWS, axis=0)
    if grid is not None and images:
        rows, cols = grid
        first = int(np.argmax(places[0]))
        row, col = np.divmod(np.arange(images), cols)
        positions[:, first : first + images] = first + np.stack([np.zeros(images, np.int64), row, col])
        positions[:, first + images :] += max(rows, cols) - images
    return positions[:, None]


class Positions:
    """The positions of one context, step by step."""

    def __init__(self, rows: int) -> None:
        """rows: 1, or those of M-RoPE."""
        self._rows = rows
        self._next = 0

    def reset(self) -> None:
        self._next = 0

    def take(self, tokens: int, given: Optional[np.ndarray] = None) -> np.ndarray:
        """int64 [1, T] of the next tokens, [3, 1, T] for M-RoPE: as `given`, or behind the
        largest so far."""
        if given is None:
            given = np.arange(self._next, self._next + tokens, dtype=np.int64)[None]
            if self._rows > 1:
                given = np.repeat(given[None], self._rows, axis=0)
        self._next = max(self._next, int(given.max()) + 1)
        return np.ascontiguousarray(given, np.int64)
