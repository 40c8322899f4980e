"""Proof that a written graph carries the table's integers and scales: it is opened again and compared."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from edgevlm_deploy.errors import ExportError
from edgevlm_deploy.export import graph
from edgevlm_deploy.export.packing import Packed, block_sums, remainder, unpack
from edgevlm_deploy.export.passes.matmul_integer import UINT8_SHIFT
from edgevlm_deploy.quantize.table import QuantizedLinear, QuantizedTable


def check(path: Path, table: QuantizedTable, modules: Iterable[str]) -> None:
    """Raise ExportError unless the file at `path` holds exactly the table's numbers for `modules`."""
    nodes = _quantized_nodes(graph.load(path))
    for module in modules:
        node = nodes.get(module)
        if node is None:
            raise ExportError(f"{path}: no quantised operator for {module}, which is in the quantised table.")
        standard = dequantized_weight(node)
        read = _READERS[node.op_type] if standard is None else _quantize_dequantize
        difference = read(node, table[module])
        if difference:
            raise ExportError(f"{path}: {module} differs from the quantised table in its {difference}.")


def _quantized_nodes(model: ir.Model) -> dict[str, ir.Node]:
    """Module → its MatMulNBits, MatMulIntegerToFloat, Gather on int8 rows, or product with a
    dequantised weight."""
    found = {}
    for node in model.graph:
        module = graph.module_of(node)
        is_lookup = node.op_type == "Gather" and node.inputs[0].dtype == ir.DataType.INT8
        is_standard = dequantized_weight(node) is not None
        own = node.op_type in ("MatMulNBits", "MatMulIntegerToFloat")
        if module is not None and (is_lookup or is_standard or own):
            found[module] = node
    return found


def dequantized_weight(node: ir.Node) -> ir.Node | None:
    """The DequantizeLinear on constants that feeds a MatMul's weight or a Gather's table."""
    operand = {"MatMul": 1, "Gather": 0}.get(node.op_type)
    value = None if operand is None else node.inputs[operand]
    source = None if value is None else value.producer()
    if source is None or source.op_type != "DequantizeLinear":
        return None
    return source if source.inputs[0].producer() is None else None


def _matmul_nbits(node: ir.Node, linear: QuantizedLinear) -> str:
    """What differs, in a word; "" when nothing does."""
    number = {name: attribute.as_int() for name, attribute in node.attributes.items()}
    rows, columns = linear.q.shape
    if (number["N"], number["K"]) != (rows, columns):
        return "shape"
    if linear.activation is not None:
        return "activation: it is not quantised in the graph"
    zero_point = _array(node, 3) if len(node.inputs) > 3 else None
    packed = Packed(_array(node, 1), _array(node, 2), zero_point, number["bits"], number["block_size"])
    stored, stored_zero = unpack(packed, columns)
    group = np.arange(packed.scale.shape[1]) * packed.block // linear.block
    if not np.array_equal(packed.scale, linear.scale[:, group]):
        return "scales"
    offset = 0
    if linear.zero_point is None:
        offset = 1 << (packed.container - 1)
        if stored_zero is not None:
            return "zero points"
    elif stored_zero is None or not np.array_equal(stored_zero, np.rint(linear.zero_point[:, group])):
        return "zero points"
    elif not _has_remainder(node, linear):
        return "fractions of zero points"
    return "" if np.array_equal(stored.astype(np.int16) - offset, linear.q) else "integers"


def _has_remainder(node: ir.Node, linear: QuantizedLinear) -> bool:
    """Whether zero-points with fractions, and only those, get their rest added."""
    expected = remainder(linear)
    total = next(iter(node.outputs[0].consumers()), None)
    rest = total.inputs[1].producer() if total is not None and total.op_type == "Add" else None
    sums = rest.inputs[0].producer() if rest is not None and rest.op_type == "MatMul" else None
    if rest is None or sums is None or sums.op_type != "MatMul" or sums.inputs[0] is not node.inputs[0]:
        return expected is None
    columns = linear.q.shape[1]
    return (
        expected is not None
        and np.array_equal(_array(rest, 1), expected)
        and np.array_equal(_array(sums, 1), block_sums(columns, linear.block))
    )


def _matmul_integer(node: ir.Node, linear: QuantizedLinear) -> str:
    activation = linear.activation
    if activation is None:
        return "activation: it is quantised in the graph alone"
    if not np.array_equal(_array(node, 1).T, linear.q):
        return "integers"
    if not np.array_equal(_array(node, 3), linear.scale[:, 0]):
        return "scales"
    # The range is applied by the QuantizeLinear; the product only undoes it.
    quantize = node.inputs[0].producer()
    ranges = [_array(quantize, 1), _array(node, 2)], [_array(quantize, 2), _array(node, 4)]
    expected = np.float32(activation.scale), activation.zero_point + UINT8_SHIFT
    same = all(value == wanted for pair, wanted in zip(ranges, expected, strict=True) for value in pair)
    return "" if same and quantize.op_type == "QuantizeLinear" else "activation range"


def _gather(node: ir.Node, linear: QuantizedLinear) -> str:
    if not np.array_equal(_array(node, 0), linear.q):
        return "integers"
    # rows → Cast → Mul ← Gather ← scales
    cast = next(iter(node.outputs[0].consumers()))
    product = next(iter(cast.outputs[0].consumers()))
    lookup = product.inputs[1].producer()
    if (cast.op_type, product.op_type, lookup.op_type) != ("Cast", "Mul", "Gather"):
        return "operators"
    return "" if np.array_equal(_array(lookup, 0), linear.scale) else "scales"


def _quantize_dequantize(node: ir.Node, linear: QuantizedLinear) -> str:
    weight = dequantized_weight(node)
    assert weight is not None
    integers, scale, zero_point = (_array(weight, operand) for operand in range(3))
    is_product = node.op_type == "MatMul"
    blocked = linear.bits == 4
    expected_scale = linear.scale if blocked else linear.scale[:, 0]
    stored = integers.astype(np.int8)
    if not np.array_equal(stored.T if is_product else stored, linear.q):
        return "integers"
    if weight.inputs[0].dtype != (ir.DataType.INT4 if linear.bits == 4 else ir.DataType.INT8):
        return "type of integers"
    if not np.array_equal((scale.T if blocked and is_product else scale).astype(np.float32), expected_scale):
        return "scales"
    settings = {name: attribute.as_int() for name, attribute in weight.attributes.items()}
    axis = 1 if is_product and not blocked else 0
    if settings.get("axis", 1) != axis or settings.get("block_size", 0) != (linear.block if blocked else 0):
        return "axis or block size"
    if zero_point.astype(np.int8).any():
        return "zero points"
    return _input_range(node, linear) if is_product else ""


def _input_range(node: ir.Node, linear: QuantizedLinear) -> str:
    dequantize = node.inputs[0].producer()
    quantize = dequantize.inputs[0].producer() if dequantize is not None else None
    is_quantized = (
        dequantize is not None
        and quantize is not None
        and (quantize.op_type, dequantize.op_type) == ("QuantizeLinear", "DequantizeLinear")
    )
    if linear.activation is None or not is_quantized:
        return "" if linear.activation is None and not is_quantized else "activation"
    for one in (quantize, dequantize):
        if np.float32(_array(one, 1)) != np.float32(linear.activation.scale) or _array(one, 2) != 0:
            return "activation range"
    return ""


def _array(node: ir.Node, operand: int) -> NDArray[Any]:
    array = graph.constant(node.inputs[operand])
    if array is None:
        raise ExportError(
            f"{node.name}: operand {operand} is computed while running, a constant was expected."
        )
    return array


_READERS = {
    "MatMulNBits": _matmul_nbits,
    "MatMulIntegerToFloat": _matmul_integer,
    "Gather": _gather,
}
