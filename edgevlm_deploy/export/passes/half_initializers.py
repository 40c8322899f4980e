"""float32 initializers → float16 on disk with a Cast behind them, wherever that loses nothing.

The runtime folds the Casts while loading, so the graph still computes in float32.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from edgevlm_deploy.export import graph

SMALLEST = 64
"""Elements below which a Cast costs more than it saves."""


def store_half(model: ir.Model) -> frozenset[str]:
    """Halve every float32 initializer that float16 holds exactly; returns their names."""
    halved = set()
    for name, value in list(model.graph.initializers.items()):
        if value.dtype != ir.DataType.FLOAT or value.const_value.size < SMALLEST or _is_scale(value):
            continue
        array = value.const_value.numpy()
        with np.errstate(over="ignore"):
            half = array.astype(np.float16)
        if not np.array_equal(half.astype(np.float32), array):
            continue
        _halve(model, name, value, half)
        halved.add(name)
    return frozenset(halved)


def _is_scale(value: ir.Value) -> bool:
    """TensorRT wants scales of quantised tensors as they are, not behind a Cast."""
    return any(node.op_type in ("QuantizeLinear", "DequantizeLinear") for node in value.consumers())


def _halve(model: ir.Model, name: str, value: ir.Value, half: np.ndarray) -> None:
    stored = graph.add_initializer(model, f"{name}.fp16", half)
    cast = ir.node("Cast", [stored], {"to": ir.DataType.FLOAT.value}, name=f"{name}/Cast")
    cast.outputs[0].name = f"{name}.fp32"
    cast.outputs[0].dtype, cast.outputs[0].shape = ir.DataType.FLOAT, value.shape
    model.graph.insert_before(model.graph[0], cast)
    value.replace_all_uses_with(cast.outputs[0])
    del model.graph.initializers[name]
