"""MatMul → com.microsoft::MatMulNBits for modules with quantised weights and float inputs."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from edgevlm_deploy.errors import ExportError
from edgevlm_deploy.export import graph
from edgevlm_deploy.export.packing import block_sums, layout, pack_scales, pack_weight, remainder
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
    container, block = layout(linear.bits, linear.block, columns, module)
    scale, zero_point = pack_scales(linear, module)
    weight = graph.add_lazy_initializer(
        model,
        f"{module}.weight_q",
        lambda: pack_weight(linear, module),
        ir.DataType.UINT8,
        (rows, scale.shape[1], block * container // 8),
    )
    inputs = [node.inputs[0], weight, graph.add_initializer(model, f"{module}.weight_scale", scale)]
    if zero_point is not None:
        inputs.append(graph.add_initializer(model, f"{module}.weight_zero_point", zero_point))
    attributes = {
        "K": columns,
        "N": rows,
        "bits": container,
        "block_size": block,
        "accuracy_level": accuracy_level,
    }
    product = ir.node("MatMulNBits", inputs, attributes, domain=graph.MICROSOFT)
    rest = remainder(linear)
    if rest is None:
        graph.replace(model, node, [product])
    else:
        _replace_with_sum(model, node, module, product, rest, linear.block)


def _replace_with_sum(
    model: ir.Model, node: ir.Node, module: str, product: ir.Node, rest: NDArray[np.float32], block: int
) -> None:
    """product + (sums of x over the blocks) · rest. The operator also takes zero-points as floats, but then
    dequantises the weights at every call: a hundred times slower for one token.
    """
    columns = product.attributes["K"].as_int()
    name = f"block_sums.{columns}.{block}"
    ones = model.graph.initializers.get(name)
    if ones is None:
        ones = graph.add_initializer(model, name, block_sums(columns, block))
    sums = ir.node("MatMul", [node.inputs[0], ones])
    rests = graph.add_initializer(model, f"{module}.weight_remainder", rest)
    correction = ir.node("MatMul", [sums.outputs[0], rests])
    total = ir.node("Add", [product.outputs[0], correction.outputs[0]])
    graph.replace(model, node, [product, sums, correction, total])
    for helper, suffix in ((sums, "block_sums"), (correction, "remainder")):
        # They are no layer of the source model.
        del helper.metadata_props[graph.SCOPES]
        helper.name = helper.outputs[0].name = f"{module}/{suffix}"
