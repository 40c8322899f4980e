"""float32 and bfloat16 initializers → float16 on disk with a Cast behind them, wherever that loses nothing.

The runtime folds the Casts while loading, so the graph still computes in float32. The matrices of a paged
model come as bfloat16 with the Casts that widen them.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from edgevlm_deploy.export import graph

SMALLEST = 64
"""Elements below which a Cast costs more than it saves."""


def store_half(model: ir.Model) -> frozenset[str]:
    """Halve every float32 initializer that float16 holds exactly, and every bfloat16 one that is rounded to
    float16 anyway; returns their names."""
    halved = set(_fold_paged(model))
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


def _fold_paged(model: ir.Model) -> frozenset[str]:
    """Cast from bfloat16 to float16 of an initializer → float16, made when the graph is written."""
    folded = set()
    for node in list(model.graph):
        if node.op_type != "Cast" or node.attributes["to"].as_int() != ir.DataType.FLOAT16.value:
            continue
        value, output = node.inputs[0], node.outputs[0]
        if value.dtype != ir.DataType.BFLOAT16 or value.const_value is None:
            continue
        stored = graph.add_lazy_initializer(
            model,
            f"{value.name}.fp16",
            _to_half(value.const_value),
            ir.DataType.FLOAT16,
            value.const_value.shape.numpy(),
        )
        ir.convenience.replace_nodes_and_values(model.graph, node, [node], [], [output], [stored])
        if not value.uses():
            del model.graph.initializers[value.name]
        folded.add(value.name)
    return frozenset(folded)


def _to_half(source: ir.TensorProtocol) -> Callable[[], NDArray[np.float16]]:
    # bfloat16's range is that of float32: values were checked before this Cast was written.
    return lambda: source.numpy().astype(np.float32).astype(np.float16)


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
