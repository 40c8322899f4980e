"""Uniform quantisation as pure integer arithmetic on NumPy arrays.

Symmetric:  s = absmax / (2^(b−1) − 1),  q = round(w / s)
Asymmetric: s = (max − min) / (2^b − 1), z = −round(min / s),  q = round(w / s) + z
with one scale per block of columns. The last block may be short.

A scale is rounded once to a value that fp16 and bf16 both hold exactly, and the integers are computed
with the rounded scale. So the same number lives in every exported format.

Rounding to nearest uses the narrow range −2^(b−1)+1 … 2^(b−1)−1: ±absmax are both representable, zero
is exact, and runtimes that refuse −2^(b−1) for weights (TFLite) take it. Integers of other algorithms
(`round_to_scale`) may use the full range, because their scales were optimised for it.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from edgevlm_deploy.errors import QuantizationError

Floats = NDArray[np.float32]

ZERO_BLOCK_SCALE = 2.0**-14
"""Scale of a block of zeros: positive, and the smallest normal fp16 (subnormals may be flushed to zero)."""

_LARGEST_SCALE = 255 * 2.0**8
_FP16_SUBNORMAL_STEP_LOG2 = -24
_BF16_SIGNIFICANT_BITS = 8


def exact_scale(scale: NDArray[np.floating], *, round_up: bool = False) -> Floats:
    """Nearest (or next larger) values that fp16 and bf16 hold exactly; zero becomes `ZERO_BLOCK_SCALE`.

    Eight significant bits, and a multiple of 2^−24. The relative change is at most 2^−8, which for up to
    8 bits moves absmax / s by less than ½: nothing is clipped by it. Below 2^−17, where fp16 is coarser
    than that, the scale is always rounded up, for the same reason.

    Raises QuantizationError when a scale is not finite, is negative or is beyond fp16.
    """
    values = np.asarray(scale, dtype=np.float64)
    if not np.all(np.isfinite(values)) or np.any(values < 0):
        raise QuantizationError(
            "A scale is negative or not finite: the weights or ranges hold NaN or infinity."
        )
    _, exponent = np.frexp(values)
    step = np.ldexp(1.0, np.maximum(exponent - _BF16_SIGNIFICANT_BITS, _FP16_SUBNORMAL_STEP_LOG2))
    coarse = exponent - _BF16_SIGNIFICANT_BITS < _FP16_SUBNORMAL_STEP_LOG2
    ratio = values / step
    rounded = np.where(coarse | round_up, np.ceil(ratio), np.rint(ratio)) * step
    rounded[values == 0] = ZERO_BLOCK_SCALE
    if np.any(rounded > _LARGEST_SCALE):
        raise QuantizationError(
            f"A scale of {rounded.max():.4g} does not fit fp16 (at most {_LARGEST_SCALE:g}): "
            "the weights or activations of this module are too large to be quantised."
        )
    exact: Floats = rounded.astype(np.float32)
    return exact


def is_exact(scale: Floats) -> bool:
    """Whether every scale is held exactly by fp16 and by bf16."""
    with np.errstate(over="ignore"):
        fp16 = scale.astype(np.float16).astype(np.float32)
    bf16 = (np.ascontiguousarray(scale, dtype=np.float32).view(np.uint32) & np.uint32(0xFFFF)) == 0
    return bool(np.all(fp16 == scale) and np.all(bf16))


def blocks(columns: int, block: int) -> int:
    """Number of blocks in a row; the last one may be short."""
    return -(-columns // block)


def quantize_symmetric(weight: Floats, bits: int, block: int) -> tuple[NDArray[np.int8], Floats]:
    """Round to nearest. weight float32 [N, K] → q int8 [N, K], scale float32 [N, ⌈K / block⌉]."""
    _check(weight, bits, block)
    limit = 2 ** (bits - 1) - 1
    starts = np.arange(0, weight.shape[1], block)
    absmax = np.maximum.reduceat(np.abs(weight), starts, axis=1)
    scale = exact_scale(absmax.astype(np.float64) / limit)
    q = _rounded(weight, scale, block)
    np.clip(q, -limit, limit, out=q)
    return q.astype(np.int8), scale


def quantize_asymmetric(
    weight: Floats, bits: int, block: int
) -> tuple[NDArray[np.uint8], Floats, NDArray[np.uint8]]:
    """Round to nearest. weight float32 [N, K] → q uint8 [N, K], scale, zero_point uint8 [N, ⌈K / block⌉].

    The range of a block always includes zero, so that zero is exact. Scales are rounded up:
    (max − min) / s may then not exceed 2^b − 1.
    """
    _check(weight, bits, block)
    levels = 2**bits - 1
    starts = np.arange(0, weight.shape[1], block)
    low = np.minimum(np.minimum.reduceat(weight, starts, axis=1), 0).astype(np.float64)
    high = np.maximum(np.maximum.reduceat(weight, starts, axis=1), 0).astype(np.float64)
    scale = exact_scale((high - low) / levels, round_up=True)
    zero_point = np.clip(-np.rint(low / scale), 0, levels)
    q = _rounded(weight, scale, block)
    q += _per_column(zero_point.astype(np.float32), weight.shape[1], block)
    np.clip(q, 0, levels, out=q)
    return q.astype(np.uint8), scale, zero_point.astype(np.uint8)


def round_to_scale(weight: Floats, scale: Floats, bits: int, block: int) -> NDArray[np.int8]:
    """Integers of `weight` [N, K] for given symmetric scales, clipped to −2^(b−1) … 2^(b−1)−1."""
    _check(weight, bits, block)
    q = _rounded(weight, scale, block)
    np.clip(q, -(2 ** (bits - 1)), 2 ** (bits - 1) - 1, out=q)
    return q.astype(np.int8)


def _rounded(weight: Floats, scale: Floats, block: int) -> Floats:
    ratio: Floats = weight / _per_column(scale, weight.shape[1], block)
    return np.rint(ratio, out=ratio)


def _per_column(values: Floats, columns: int, block: int) -> Floats:
    """[N, blocks] → [N, K], or [N, 1] where broadcasting does the same."""
    if values.shape[1] == 1:
        return values
    return values[:, np.arange(columns) // block]


def _check(weight: Floats, bits: int, block: int) -> None:
    if weight.ndim != 2 or weight.size == 0 or weight.dtype != np.float32:
        raise QuantizationError(
            f"Expected a float32 weight matrix [N, K], got {weight.dtype} {list(weight.shape)}."
        )
    if not 2 <= bits <= 8 or block < 1:
        raise QuantizationError(
            f"Expected 2 to 8 bits and a block of at least 1, got {bits} bits and {block}."
        )
    if not np.all(np.isfinite(weight)):
        raise QuantizationError("The weights hold NaN or infinity; is the checkpoint damaged?")
