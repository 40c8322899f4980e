"""Proof that a written .tflite file carries the table's integers and scales: it is opened again and compared.

Float file and quantised file have the same products and lookups in the same order. The float weight tells
which module an operator belongs to; the quantised one must then hold that module's numbers, in every
signature that multiplies with it. Weights that are not in the table must be the same floats in both files.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from edgevlm_deploy.errors import ExportError
from edgevlm_deploy.export import tflite
from edgevlm_deploy.export.tflite import LOOKUP, TfliteFile, Weight
from edgevlm_deploy.export.tflite_integers import by_weight, key
from edgevlm_deploy.quantize.table import QuantizedLinear, QuantizedTable


@dataclass(frozen=True)
class Counted:
    """What was compared, over all signatures."""

    exact_modules: int
    """Modules whose integers and scales were read back equal."""
    exact_integers: int
    """Integers in them."""
    operators: int
    """Products and lookups that use them, and that were looked at one by one."""


def check(
    float_path: Path, path: Path, table: QuantizedTable, activation_bits: Mapping[str, int] | None = None
) -> Counted:
    """Raise ExportError unless the file at `path` holds exactly the table's numbers, and all of them.

    activation_bits: modules whose input and output are integers in the file; the others' are floats.
    """
    floats, quantized = tflite.load(float_path), tflite.load(path)
    if floats.signatures.keys() != quantized.signatures.keys():
        raise ExportError(f"{path} has other signatures than {float_path.name}.")
    modules = by_weight(table)
    names: dict[int, list[str]] = {}
    compared: set[tuple[int, int]] = set()
    found: set[str] = set()
    operators = 0
    for signature in floats.signatures:
        before, after = floats.weights(signature), quantized.weights(signature)
        if [one.operator for one in before] != [one.operator for one in after]:
            raise ExportError(f"{path}: {signature} has other products than the float graph.")
        for original, stored in zip(before, after, strict=True):
            if original.buffer not in names:
                names[original.buffer] = modules.get(key(floats.values(original)), [])
            owners, pair = names[original.buffer], (original.buffer, stored.buffer)
            if not owners:
                if pair not in compared:
                    _check_same_floats(floats, original, quantized, stored)
                compared.add(pair)
                continue
            where = f"{path}: {signature}: {owners[0]}"
            _check_storage(where, stored, table[owners[0]], (activation_bits or {}).get(owners[0]))
            if pair not in compared and not np.array_equal(quantized.values(stored), table[owners[0]].q):
                raise ExportError(f"{where} differs from the quantised table in its integers.")
            compared.add(pair)
            found |= set(owners)
            operators += 1
    table.require(found)
    return Counted(len(found), sum(table[name].q.size for name in found), operators)


def _check_storage(where: str, stored: Weight, linear: QuantizedLinear, bits: int | None) -> None:
    """Everything but the integers themselves."""
    rows, columns = linear.q.shape
    expected = ("INT8" if linear.bits > 4 else "INT4", (rows, columns), linear.block)
    got = (stored.tensor_type, stored.shape, stored.block or columns)
    if got != expected:
        raise ExportError(f"{where} is stored as {got}, the quantised table asks for {expected}.")
    if stored.scale is None or not np.array_equal(stored.scale, linear.scale):
        raise ExportError(f"{where} differs from the quantised table in its scales.")
    if np.any(stored.zero_points):
        raise ExportError(f"{where} has zero points, the quantised table has none.")
    kind = f"INT{bits}" if bits else "FLOAT32"
    asked = ("INT32" if stored.operator == LOOKUP else kind, kind)
    if stored.activation_types != asked:
        raise ExportError(f"{where} takes and gives {stored.activation_types}, expected {asked}.")


def _check_same_floats(floats: TfliteFile, original: Weight, quantized: TfliteFile, stored: Weight) -> None:
    values = quantized.values(stored)
    if values.dtype == np.int8 or not np.array_equal(floats.values(original), values.astype(np.float32)):
        raise ExportError(
            f"{quantized.path}: a weight {list(original.shape)} outside the quantised table was changed."
        )
