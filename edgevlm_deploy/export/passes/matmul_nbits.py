"""MatMul → com.microsoft::MatMulNBits for modules with quantised weights and float inputs."""

from __future__ import annotations

import onnx_ir as ir

from edgevlm_deploy.errors import ExportError
from edgevlm_deploy.export import graph
from edgevlm_deploy.export.packing import pack
from edgevlm_deploy.quantize.table import QuantizedLinear, QuantizedTable

EXACT = 1
"""accuracy_level: compute in float32."""
INT8 = 4
"""accuracy_level: inputs are rounded to int8 per block while running, about twice as fast."""


def quantize_weights(model: ir.Model, table: QuantizedTable, accuracy_level: int) -> frozenset[str]:
    """Rewrite every MatMul whose module is in `table` without a static activation; returns those modules."""
    rewritten = set()
    for module, node in graph.matmuls(model).items():
        linear = table.get(module)
        if linear is not None and linear.activation is None:
            _rewrite(model, node, module, linear, accuracy_level)
            rewritten.add(module)
    if rewritten:
        model.opset_imports[graph.MICROSOFT] = 1
    left = rewritten & set(graph.matmuls(model))
    if left:
        raise ExportError(f"{sorted(left)}: still a float MatMul after rewriting.")
    return frozenset(rewritten)


def set_accuracy_level(model: ir.Model, accuracy_level: int) -> int:
    """Change how every MatMulNBits computes, its integers stay; returns how many there are."""
    nodes = [node for node in model.graph if node.op_type == "MatMulNBits"]
    for node in nodes:
        node.attributes["accuracy_level"] = ir.AttrInt64("accuracy_level", accuracy_level)
    return len(nodes)


def _rewrite(
    model: ir.Model, node: ir.Node, module: str, linear: QuantizedLinear, accuracy_level: int
) -> None:
    rows, columns = linear.q.shape
    shape = graph.constant_shape(node.inputs[1])
    if shape != (columns, rows):
        raise ExportError(
            f"{module}: the graph multiplies by {shape}, the table has [N, K] = {[rows, columns]}."
        )
    packed = pack(linear, module)
    inputs = [
        node.inputs[0],
        graph.add_initializer(model, f"{module}.weight_q", packed.weight),
        graph.add_initializer(model, f"{module}.weight_scale", packed.scale),
    ]
    if packed.zero_point is not None:
        inputs.append(graph.add_initializer(model, f"{module}.weight_zero_point", packed.zero_point))
    attributes = {
        "K": columns,
        "N": rows,
        "bits": packed.container,
        "block_size": packed.block,
        "accuracy_level": accuracy_level,
    }
    graph.replace(model, node, [ir.node("MatMulNBits", inputs, attributes, domain=graph.MICROSOFT)])
