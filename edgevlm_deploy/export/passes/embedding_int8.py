"""Gather on float rows → Gather on int8 rows times the row's scale: equal to dequantising first."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from edgevlm_deploy.errors import ExportError
from edgevlm_deploy.export import graph
from edgevlm_deploy.quantize.table import QuantizedLinear, QuantizedTable


def quantize_embeddings(model: ir.Model, table: QuantizedTable) -> frozenset[str]:
    """Rewrite every Gather on a weight matrix whose module is in `table`; returns those modules."""
    rewritten = set()
    for module, node in graph.gathers(model).items():
        linear = table.get(module)
        if linear is not None:
            _rewrite(model, node, module, linear)
            rewritten.add(module)
    return frozenset(rewritten)


def _rewrite(model: ir.Model, node: ir.Node, module: str, linear: QuantizedLinear) -> None:
    shape = graph.constant_shape(node.inputs[0])
    if shape != linear.q.shape:
        raise ExportError(
            f"{module}: the graph looks up rows of {shape}, the table has {list(linear.q.shape)}."
        )
    if linear.bits != 8 or linear.zero_point is not None or linear.scale.shape[1] != 1 or linear.activation:
        raise ExportError(
            f"{module}: an embedding has symmetric 8-bit rows with one scale each, "
            f"got {linear.bits} bits and scales {list(linear.scale.shape)}."
        )
    weight = graph.add_initializer(model, f"{module}.weight_q", np.asarray(linear.q, np.int8))
    scale = graph.add_initializer(model, f"{module}.weight_scale", linear.scale)  # [V, 1]
    ids = node.inputs[1]
    rows = ir.node("Gather", [weight, ids], {"axis": 0})  # [B, T, D]
    scales = ir.node("Gather", [scale, ids], {"axis": 0})  # [B, T, 1]
    floats = ir.node("Cast", [rows.outputs[0]], {"to": ir.DataType.FLOAT.value})
    product = ir.node("Mul", [floats.outputs[0], scales.outputs[0]])
    graph.replace(model, node, [rows, scales, floats, product])
    scales.name = f"{module}/Gather/scale"
    scales.outputs[0].name = f"{scales.name}/output"
