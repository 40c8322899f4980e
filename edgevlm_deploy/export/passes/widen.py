"""fp16 tensors become fp32, nodes and integers stay: the same graph with exact arithmetic, for comparing."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

HALF, FLOAT = ir.DataType.FLOAT16, ir.DataType.FLOAT


def widen(model: ir.Model) -> int:
    """Returns how many tensors were fp16. A Cast to fp16 then rounds nothing, so no rounding is left."""
    widened = 0
    for value in model.graph.initializers.values():
        if value.dtype == HALF:
            tensor = ir.tensor(value.const_value.numpy().astype(np.float32), name=value.name)
            value.const_value, value.dtype = tensor, FLOAT
            widened += 1
    for value in (*model.graph.inputs, *(value for node in model.graph for value in node.outputs)):
        if value.dtype == HALF:
            value.dtype = FLOAT
            widened += 1
    for node in model.graph:
        widened += _widen_attributes(node)
    return widened


def _widen_attributes(node: ir.Node) -> int:
    widened = 0
    for name, attribute in list(node.attributes.items()):
        if attribute.type == ir.AttributeType.TENSOR and attribute.as_tensor().dtype == HALF:
            array = attribute.as_tensor().numpy().astype(np.float32)
            node.attributes[name] = ir.AttrTensor(name, ir.tensor(array))
            widened += 1
        elif name in ("to", "output_dtype") and attribute.as_int() == HALF.value:
            node.attributes[name] = ir.AttrInt64(name, FLOAT.value)
            widened += 1
    return widened
