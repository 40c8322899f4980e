"""Half-quadratic quantisation: zero-points that suit most weights of a block rather than its extremes.

Minimises Σ|w − s(q − z)|^p with p = 0.7 over the zero-point z of each block, without data; the scale stays
that of the block's range. The integers are rounded, then e = argmin |e|^p + β/2 (e − (w − ŵ))² has the
closed form of `_shrunk`, and z is the mean of q − (w − e)/s; β grows from step to step.

Definition and constants: Badri & Shaji, "Half-Quadratic Quantization of Large Machine Learning Models"
(2023), and Intel Neural Compressor's `optimize_weights_proximal`. They stop when the mean error of the whole
matrix grows; here every block keeps the best of its zero-points, so none ends worse than it began.

The optimum lies a fraction of a step beside the integer zero-point, and rounding it to an integer would take
all of its gain back. So zero-points are multiples of 1/16, which fp16 and bf16 hold exactly.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from edgevlm_deploy.quantize import uniform
from edgevlm_deploy.quantize.uniform import Floats, blocks

P = 0.7
BETA = 10.0
KAPPA = 1.01
ITERATIONS = 20
ELEMENTS = 2**22
"""Weights at a time: the search holds several copies of them."""
FRACTION = 16
"""Zero-points are multiples of 1 / FRACTION."""


def quantize(weight: Floats, bits: int, block: int) -> tuple[NDArray[np.uint8], Floats, Floats]:
    """weight float32 [N, K] → q uint8 [N, K], scale and zero_point float32 [N, ⌈K / block⌉]."""
    rows = max(1, ELEMENTS // weight.shape[1])
    parts = [_rows(weight[start : start + rows], bits, block) for start in range(0, len(weight), rows)]
    q, scale, zero_point = (np.concatenate(part) for part in zip(*parts, strict=True))
    return q, scale, zero_point


def _rows(weight: Floats, bits: int, block: int) -> tuple[NDArray[np.uint8], Floats, Floats]:
    rows, columns = weight.shape
    levels = 2**bits - 1
    _, scale, nearest = uniform.quantize_asymmetric(weight, bits, block)
    # [N, blocks, block]; what fills up a short last block is NaN and counts in no sum.
    padded = np.pad(weight, ((0, 0), (0, -columns % block)), constant_values=np.nan)
    steps = padded.reshape(rows, blocks(columns, block), block) / scale[..., None]
    zero_point = _optimised(steps, scale[..., None], nearest[..., None].astype(np.float32), levels)
    with np.errstate(invalid="ignore"):  # NaN to uint8, cut off
        q = np.clip(np.rint(steps + zero_point), 0, levels).astype(np.uint8)
    return q.reshape(rows, -1)[:, :columns].copy(), scale, zero_point[..., 0]


def _optimised(steps: Floats, scale: Floats, nearest: Floats, levels: int) -> Floats:
    """Zero-points [N, blocks, 1]. steps: w / s [N, blocks, block]; scale, nearest: [N, blocks, 1]."""
    best, least = nearest, _objective(steps, nearest, levels)
    zero_point = np.clip(-np.nanmin(steps, axis=-1, keepdims=True), 0, levels)
    beta = BETA
    for _ in range(ITERATIONS):
        q = np.clip(np.rint(steps + zero_point), 0, levels)
        error = _shrunk((steps - (q - zero_point)) * scale, beta) / scale
        zero_point = np.clip(np.nanmean(q - (steps - error), axis=-1, keepdims=True), 0, levels)
        storable = np.rint(zero_point * FRACTION) / np.float32(FRACTION)
        objective = _objective(steps, storable, levels)
        improved = objective < least
        best = np.where(improved, storable, best)
        least = np.where(improved, objective, least)
        beta *= KAPPA
    return best


def _shrunk(error: Floats, beta: float) -> Floats:
    """The error that stays: sign(e) · max(|e| − |e|^(p−1) / β, 0)."""
    size = np.abs(error)
    with np.errstate(divide="ignore"):
        shrunk: Floats = np.sign(error) * np.maximum(size - size ** (P - 1) / beta, 0)
    return shrunk


def _objective(steps: Floats, zero_point: Floats, levels: int) -> Floats:
    q = np.clip(np.rint(steps + zero_point), 0, levels)
    total: Floats = np.nansum(np.abs(steps - (q - zero_point)) ** P, axis=-1, keepdims=True)
    return total
