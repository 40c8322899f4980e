"""Bytes that one weight matrix takes in a backend's file, known before anything is exported.

They differ from bits × weights: a container may be wider than the integers (3 bits lie in 4), a scale over
many columns is written once per block, and scales take two or four bytes.
"""

from __future__ import annotations

from edgevlm_deploy.export.packing import layout
from edgevlm_deploy.quantize.schemes import WeightFormat
from edgevlm_deploy.recipe import Component
from edgevlm_deploy.target import Backend

HALF, SINGLE = 2, 4


def weight_bytes(
    rows: int, columns: int, stored: WeightFormat | None, component: Component, backend: Backend
) -> int:
    """Bytes of a matrix [rows, columns] with its scales and zero-points; None is fp16.

    Raises ExportError when the backend's operators cannot hold the format.
    """
    if stored is None:
        return HALF * rows * columns
    if backend is Backend.TENSORRT:
        return _tensorrt(rows, columns, stored)
    if backend is Backend.LITERT:
        return _litert(rows, columns, stored)
    if stored.static_activation or component is Component.EMBEDDING:
        return rows * columns + HALF * rows
    container, block = layout(stored.bits, stored.block(columns), columns, component.value)
    blocks = -(-columns // block)
    zero_points = 0 if stored.symmetric else rows * -(-blocks * container // 8)
    return rows * blocks * (block * container // 8 + HALF) + zero_points


def _litert(rows: int, columns: int, stored: WeightFormat) -> int:
    """int8 or int4; float32 scales per channel, bf16 scales per block."""
    container = 8 if stored.bits > 4 else 4
    scales = SINGLE * rows if stored.group is None else HALF * rows * (columns // stored.group)
    return rows * columns * container // 8 + scales


def _tensorrt(rows: int, columns: int, stored: WeightFormat) -> int:
    """Explicit zero-points of the integers' own type beside half-precision scales."""
    scales = rows if stored.group is None else rows * (columns // stored.group)
    return (rows * columns + scales) * stored.bits // 8 + HALF * scales
