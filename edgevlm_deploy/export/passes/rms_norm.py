"""Six elementwise nodes → SimplifiedLayerNormalization, ONNX Runtime's RMSNorm: x / √(mean(x²) + ε) · weight.

The runtime's own fusion looks for a division; torch's exporter writes a reciprocal, so it would stay unfused.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from edgevlm_deploy.export import graph


def fuse_rms_norm(model: ir.Model) -> int:
    """Returns how many were fused."""
    fused = 0
    for node in list(model.graph):
        matched = _match(node) if node.op_type == "Pow" else None
        if matched is not None:
            last, weight, epsilon = matched
            norm = ir.node(
                "SimplifiedLayerNormalization",
                [node.inputs[0], weight],
                {"axis": -1, "epsilon": epsilon, "stash_type": 1},
            )
            graph.replace_node(model, last, norm)
            fused += 1
    return fused


def _match(power: ir.Node) -> tuple[ir.Node, ir.Value, float] | None:
    """(last node, weight [D], ε) of Pow → ReduceMean → Add(ε) → Sqrt → Reciprocal → Mul(x) → Mul(weight)."""
    exponent = graph.constant(power.inputs[1])
    if exponent is None or exponent.size != 1 or exponent.item() != 2:
        return None
    chain = [power]
    for op_type in ("ReduceMean", "Add", "Sqrt", "Reciprocal", "Mul", "Mul"):
        consumers = list(chain[-1].outputs[0].consumers())
        if len(consumers) != 1 or consumers[0].op_type != op_type:
            return None
        chain.append(consumers[0])
    _, mean, add, _, _, scaled, last = chain
    axes = graph.constant(mean.inputs[1])
    epsilon = graph.constant(add.inputs[1])
    weights = [value for value in last.inputs if value is not scaled.outputs[0]]
    width = power.inputs[0].shape[-1] if power.inputs[0].shape is not None else None
    if (
        axes is None
        or axes.tolist() != [-1]
        or epsilon is None
        or epsilon.size != 1
        or power.inputs[0] not in scaled.inputs
        or len(weights) != 1
        or graph.constant_shape(weights[0]) != (width,)
    ):
        return None
    return last, weights[0], float(np.float32(epsilon.item()))
