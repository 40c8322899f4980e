"""How `com.microsoft::MatMulNBits` stores integers: pure NumPy, and its inverse for reading back.

Weights are unsigned: symmetric integers are shifted by 2^(container − 1), which is the operator's default
zero point. Two 4-bit integers share a byte, the first in the low half. 3-bit integers sit in 4-bit
containers unchanged. Rows are padded to whole blocks with the zero point.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgevlm_deploy.errors import ExportError
from edgevlm_deploy.quantize.table import QuantizedLinear

LEGAL_BLOCKS = (128, 64, 32, 16)
"""Block sizes of the operator that are used here, fastest first (measured on AVX-512 at level 4)."""

ROWS = 4096
"""Rows that are packed at a time, so that no copy of a large matrix is made on the way."""


@dataclass(frozen=True)
class Packed:
    """Operands of one MatMulNBits.

    weight      uint8 [N, blocks, block · container / 8]
    scale       float32 [N, blocks]
    zero_point  uint8 [N, ⌈blocks · container / 8⌉], None when symmetric
    """

    weight: NDArray[np.uint8]
    scale: NDArray[np.float32]
    zero_point: NDArray[np.uint8] | None
    container: int
    block: int


def pack(linear: QuantizedLinear, module: str) -> Packed:
    """A scale over more columns than a block is repeated: the same number, written more often. A zero-point
    with a fraction is rounded; `remainder` has the rest.

    Raises ExportError when no legal block size fits the groups, or integers exceed their bits.
    """
    container, block = layout(linear.bits, linear.block, linear.q.shape[1], module)
    scale, zero_point = pack_scales(linear, module)
    return Packed(pack_weight(linear, module), scale, zero_point, container, block)


def pack_scales(linear: QuantizedLinear, module: str) -> tuple[NDArray[np.float32], NDArray[np.uint8] | None]:
    """`Packed.scale` and `Packed.zero_point` alone."""
    columns = linear.q.shape[1]
    container, block = layout(linear.bits, linear.block, columns, module)
    group = np.arange(-(-columns // block)) * block // linear.block
    scale = np.ascontiguousarray(linear.scale[:, group])
    if linear.zero_point is None:
        return scale, None
    return scale, _zero_points(np.rint(linear.zero_point[:, group]), container)


def pack_weight(linear: QuantizedLinear, module: str) -> NDArray[np.uint8]:
    """`Packed.weight` alone: uint8 [N, blocks, block · container / 8]."""
    rows, columns = linear.q.shape
    container, block = layout(linear.bits, linear.block, columns, module)
    blocks = -(-columns // block)
    packed = np.empty((rows, blocks, block * container // 8), np.uint8)
    for start in range(0, rows, ROWS):
        some = slice(start, start + ROWS)
        unsigned = _unsigned(linear.rows(some), container, module)
        padded = np.full((len(unsigned), blocks * block), 1 << (container - 1), np.uint8)
        padded[:, :columns] = unsigned
        packed[some] = _join(padded, container).reshape(packed[some].shape)
    return packed


def remainder(linear: QuantizedLinear) -> NDArray[np.float32] | None:
    """float32 [blocks, N], blocks of the table: what the sum of a block's inputs is multiplied by to make up
    for zero-points that were rounded to integers. None when they are integers.

    s(q − z) = s(q − ⌊z⌉) + s(⌊z⌉ − z). With scales of 8 significant bits and z in sixteenths this is exact,
    also in fp16.
    """
    if linear.zero_point is None or linear.zero_point.dtype.kind != "f":
        return None
    rest: NDArray[np.float32] = (np.rint(linear.zero_point) - linear.zero_point) * linear.scale
    return np.ascontiguousarray(rest.T)


def block_sums(columns: int, block: int) -> NDArray[np.float32]:
    """float32 [columns, blocks] of zeros and ones: x @ block_sums is the sum of x over each block."""
    blocks = np.arange(-(-columns // block))
    sums: NDArray[np.float32] = (np.arange(columns)[:, None] // block == blocks).astype(np.float32)
    return sums


def layout(bits: int, group: int, columns: int, module: str) -> tuple[int, int]:
    """(container bits, block of columns) of a matrix whose scales cover `group` columns each.

    Raises ExportError when the operator has no such block or container.
    """
    fitting = [size for size in LEGAL_BLOCKS if group >= columns or group % size == 0]
    if not fitting or bits not in (3, 4, 8):
        raise ExportError(
            f"{module}: {bits} bits in groups of {group} columns; ONNX Runtime takes 3, 4 or "
            "8 bits in multiples of 16 columns. Choose another scheme for this module."
        )
    # One group, one block, wherever the operator has a block of that size.
    return 8 if bits == 8 else 4, group if group in LEGAL_BLOCKS else fitting[0]


def unpack(packed: Packed, columns: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8] | None]:
    """(unsigned integers [N, columns], zero points [N, blocks] or None) of what `pack` made."""
    rows, blocks, _ = packed.weight.shape
    q = _split(packed.weight.reshape(rows, -1), packed.container)[:, :columns]
    if packed.zero_point is None:
        return q, None
    return q, _split(packed.zero_point, packed.container)[:, :blocks]


def _unsigned(linear: QuantizedLinear, container: int, module: str) -> NDArray[np.uint8]:
    values = linear.q.astype(np.int16)
    low = 0 if linear.zero_point is not None else -(1 << (linear.bits - 1))
    high = low + (1 << linear.bits) - 1
    if values.min() < low or values.max() > high:
        raise ExportError(
            f"{module}: integers span {values.min()} … {values.max()}, "
            f"{linear.bits} bits hold {low} … {high}. The quantised table is damaged."
        )
    if linear.zero_point is None:
        values += 1 << (container - 1)
    return values.astype(np.uint8)


def _zero_points(values: NDArray[Any], container: int) -> NDArray[np.uint8]:
    """Packed like weights; an odd number of 4-bit ones is padded to whole bytes."""
    odd = values.shape[1] % 2 if container == 4 else 0
    return _join(np.pad(values.astype(np.uint8), ((0, 0), (0, odd))), container)


def _join(values: NDArray[np.uint8], container: int) -> NDArray[np.uint8]:
    if container == 8:
        return values
    joined: NDArray[np.uint8] = values[:, 0::2] | (values[:, 1::2] << np.uint8(4))
    return joined


def _split(values: NDArray[np.uint8], container: int) -> NDArray[np.uint8]:
    if container == 8:
        return values
    return np.stack((values & 15, values >> 4), axis=-1).reshape(values.shape[0], -1)
