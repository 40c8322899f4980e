"""What a decoder with a KV cache of fixed buffers is told at each step: how much past, which mask, which
positions.

Two forms of decoder (V, D, … as in `edgevlm_runner.runtimes`):

- append: the cache [rows, kv heads, head dim] goes in by its first `past` rows, and the new keys and values
  come out. `past` is one of a few bucket sizes, so that few shapes exist. Rows that hold no token yet are
  hidden.
- update: the whole cache of `max_context` rows goes in, and the graph writes the new rows itself.

NumPy only: the executor on the device and its emulation on a host share this module.
"""

from __future__ import annotations

from typing import List, Tuple

import numpy as np

from edgevlm_runner.errors import ExecutionError

HIDDEN = np.float32(-1e4)
"""Added to the score of a token that is not seen: e^−10⁴ is 0, fp16 holds it, and it never gives NaN."""

SMALLEST_PAST = 64
"""Rows of past that are bound even when nothing is filled: an empty tensor is a special case everywhere."""


def rows(max_context: int) -> int:
    """Rows that the cache of an append decoder must have so that every bucket lies inside it."""
    return max(SMALLEST_PAST, max_context)


def bucket(filled: int, max_context: int) -> int:
    """Rows of past to bind when `filled` of them hold tokens: a power of two from 64, at most `rows`.

    Raises ValueError when `filled` exceeds `max_context`.
    """
    if not 0 <= filled <= max_context:
        raise ValueError(f"{filled} tokens in a cache of {max_context}")
    size = SMALLEST_PAST
    while size < filled:
        size *= 2
    return min(size, rows(max_context))


def buckets(max_context: int) -> List[int]:
    """Every value of `bucket`, ascending."""
    return sorted({bucket(filled, max_context) for filled in range(max_context + 1)})


def positions(filled: int, tokens: int) -> np.ndarray:
    """int32 [1, tokens]: filled, filled + 1, …"""
    return np.arange(filled, filled + tokens, dtype=np.int32)[None]


def mask(filled: int, past: int, tokens: int, whole: bool = False) -> np.ndarray:
    """float32 [1, 1, tokens, past + tokens] for the append form: 0 where a token is seen, else −1e4.

    Seen are the filled rows (columns 0 … filled − 1) and, causally, the new tokens (columns past …); with
    `whole`, all of the new tokens.
    """
    seen = np.zeros((tokens, past + tokens), bool)
    seen[:, :filled] = True
    seen[:, past:] = True if whole else np.tri(tokens, dtype=bool)
    added: np.ndarray = np.where(seen, np.float32(0), HIDDEN)[None, None]
    return added


def mask_static(filled: int, tokens: int, max_context: int, whole: bool = False) -> np.ndarray:
    """float32 [1, 1, tokens, max_context] for the update form, in which new tokens follow the filled rows."""
    seen = np.tri(tokens, max_context, filled, dtype=bool)
    if whole:
        seen[:] = seen[-1]
    added: np.ndarray = np.where(seen, np.float32(0), HIDDEN)[None, None]
    return added


def pieces(tokens: int, longest: int, whole: bool = False) -> List[Tuple[int, int]]:
    """Cut a prompt into runs of at most `longest` tokens: (first token, tokens).

    Raises ExecutionError for a prompt that must stay `whole`, because its tokens all see each other.
    """
    if whole and tokens > longest:
        raise ExecutionError(
            f"The prompt's {tokens} tokens all see each other, and the decoder was built for {longest} at "
            "once. Compile with profiles up to the whole context."
        )
    return [(first, min(longest, tokens - first)) for first in range(0, tokens, longest)]
