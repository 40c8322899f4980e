"""Explicit quantisation in standard ONNX: integers with a DequantizeLinear, inputs through QuantizeLinear.

This is what TensorRT reads. Zero-points are written out as typed zeros, because a missing one means uint8.
Scales have the type of the graph's tensors; the table's are exact in fp16.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from edgevlm_deploy.errors import ExportError
from edgevlm_deploy.export import graph
from edgevlm_deploy.quantize.table import QuantizedLinear, QuantizedTable

INT4_BLOCKS = (64, 128)


def insert(model: ir.Model, table: QuantizedTable) -> frozenset[str]:
    """Quantise every MatMul and Gather whose module is in `table`; returns those modules."""
    quantized: dict[tuple[str | None, float], ir.Value] = {}
    done = set()
    for module, node in graph.matmuls(model).items():
        linear = table.get(module)
        if linear is None:
            continue
        _check(module, linear, graph.constant_shape(node.inputs[1]), linear.q.shape[::-1])
        dtype = node.inputs[1].dtype
        # [K, N]: the input's columns are rows here, so a scale per block of columns runs along axis 0.
        weight = _weight(model, module, linear, linear.q.T, linear.scale.T, channel_axis=1, dtype=dtype)
        if linear.activation is not None:
            key = node.inputs[0].name, linear.activation.scale
            if key not in quantized:
                quantized[key] = _activation(model, node, module, linear)
            node.replace_input_with(0, quantized[key])
        _put_in_front(model, node, 1, weight, module)
        done.add(module)
    for module, node in graph.gathers(model).items():
        linear = table.get(module)
        if linear is None:
            continue
        _check(module, linear, graph.constant_shape(node.inputs[0]), linear.q.shape)
        dtype = node.inputs[0].dtype
        weight = _weight(model, module, linear, linear.q, linear.scale, channel_axis=0, dtype=dtype)
        _put_in_front(model, node, 0, weight, module)
        done.add(module)
    return frozenset(done)


def _check(module: str, linear: QuantizedLinear, found: Any, expected: tuple[int, ...]) -> None:
    if found != tuple(expected):
        raise ExportError(f"{module}: the graph has a matrix {found}, the table {list(expected)}.")
    per_channel = linear.block >= linear.q.shape[1]
    if linear.zero_point is not None or linear.bits not in (4, 8) or (linear.bits == 8 and not per_channel):
        raise ExportError(
            f"{module}: {linear.bits} bits in groups of {linear.block} columns; TensorRT takes symmetric "
            "int8 with one scale per channel, and symmetric int4 in blocks."
        )
    if linear.bits == 4 and (linear.block not in INT4_BLOCKS or linear.q.shape[1] % linear.block):
        raise ExportError(
            f"{module}: int4 needs blocks of 64 or 128 that divide its {linear.q.shape[1]} columns, got "
            f"{linear.block}."
        )
    if not (linear.scale > 0).all():
        raise ExportError(f"{module}: a scale is not positive; TensorRT refuses it.")


@dataclass(frozen=True)
class _Constant:
    integers: NDArray[Any]
    scale: NDArray[Any]
    attributes: dict[str, int]


def _weight(
    model: ir.Model,
    module: str,
    linear: QuantizedLinear,
    q: NDArray[Any],
    scale: NDArray[np.float32],
    channel_axis: int,
    dtype: ir.DataType,
) -> ir.Node:
    """The DequantizeLinear of a weight, its constants registered."""
    blocked = linear.bits == 4
    made = _Constant(
        integers=np.ascontiguousarray(q).astype(ml_dtypes.int4 if blocked else np.int8),
        scale=_as(dtype, np.ascontiguousarray(scale if blocked else scale.reshape(-1)), module),
        attributes={"axis": 1 - channel_axis, "block_size": linear.block}
        if blocked
        else {"axis": channel_axis},
    )
    zeros = np.zeros(made.scale.shape, made.integers.dtype)
    inputs = [
        graph.add_initializer(model, f"{module}.weight_q", made.integers),
        graph.add_initializer(model, f"{module}.weight_scale", made.scale),
        graph.add_initializer(model, f"{module}.weight_zero_point", zeros),
    ]
    node = ir.node("DequantizeLinear", inputs, made.attributes, name=f"{module}/DequantizeLinear")
    node.outputs[0].name = f"{module}.weight_dq"
    node.outputs[0].dtype, node.outputs[0].shape = dtype, ir.Shape(q.shape)
    return node


def _activation(model: ir.Model, node: ir.Node, module: str, linear: QuantizedLinear) -> ir.Value:
    """QuantizeLinear → DequantizeLinear in front of `node`; modules with the same input and range share
    it.
    """
    activation = linear.activation
    assert activation is not None
    if activation.zero_point != 0 or activation.bits != 8:
        raise ExportError(f"{module}: TensorRT takes symmetric int8 inputs, got {activation}.")
    value = node.inputs[0]
    dtype = value.dtype if value.dtype is not None else ir.DataType.FLOAT
    scale = graph.add_initializer(
        model, f"{module}.input_scale", _as(dtype, np.array(activation.scale, np.float32), module)
    )
    zero = graph.add_initializer(model, f"{module}.input_zero_point", np.array(0, np.int8))
    quantize = ir.node("QuantizeLinear", [value, scale, zero], name=f"{module}/QuantizeLinear")
    dequantize = ir.node("DequantizeLinear", [quantize.outputs[0], scale, zero], name=f"{module}/Dequantize")
    for one, kind, suffix in ((quantize, ir.DataType.INT8, "q"), (dequantize, dtype, "dq")):
        one.metadata_props[graph.SCOPES] = node.metadata_props[graph.SCOPES]
        one.outputs[0].name = f"{module}.input_{suffix}"
        one.outputs[0].dtype, one.outputs[0].shape = kind, value.shape
    model.graph.insert_before(node, [quantize, dequantize])
    return dequantize.outputs[0]


def _put_in_front(model: ir.Model, node: ir.Node, operand: int, weight: ir.Node, module: str) -> None:
    weight.metadata_props[graph.SCOPES] = node.metadata_props[graph.SCOPES]
    model.graph.insert_before(node, weight)
    node.replace_input_with(operand, weight.outputs[0])


def _as(dtype: ir.DataType, values: NDArray[np.float32], module: str) -> NDArray[Any]:
    """The same numbers in the graph's type. Raises ExportError when it does not hold them exactly."""
    converted: NDArray[Any] = values.astype(dtype.numpy())
    if not np.array_equal(converted.astype(np.float32), values):
        raise ExportError(f"{module}: its scales are not exact in {dtype.name}; the table is damaged.")
    return converted
