"""An older opset for parsers that end there: what changed between the two is rewritten node by node.

torch's exporter starts at opset 18. Between 13 and 21 few of the operators that a vision-language model
uses changed; a node whose older form is not known here is an error, never passed on unchanged.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import onnx_ir as ir

from edgevlm_deploy.errors import ExportError
from edgevlm_deploy.export import graph

_SAME_MEANING = frozenset(
    {
        "Add",
        "ArgMax",
        "Cast",
        "Concat",
        "Constant",
        "Conv",
        "DequantizeLinear",
        "Div",
        "Equal",
        "Erf",
        "Expand",
        "Flatten",
        "Gather",
        "Gelu",
        "Greater",
        "Identity",
        "LayerNormalization",
        "Less",
        "MatMul",
        "Mul",
        "Neg",
        "Pow",
        "QuantizeLinear",
        "Reciprocal",
        "ReduceSum",
        "Reshape",
        "Sigmoid",
        "Slice",
        "Softmax",
        "Sqrt",
        "Sub",
        "Tanh",
        "Transpose",
        "Unsqueeze",
        "Where",
    }
)
"""Newer versions of these took more types or attributes with a default; attributes are looked at below."""

_ADDED_ATTRIBUTES = {
    "Cast": ("saturate", 1),
    "DequantizeLinear": ("block_size", 0),
    "QuantizeLinear": ("block_size", 0),
    "Reshape": ("allowzero", 0),
}
"""Operator → attribute that an older opset does not know, and its value that changes nothing."""

_SINCE = {"LayerNormalization": 17, "Gelu": 20}


def lower(model: ir.Model, opset: int) -> int:
    """Rewrite `model` for `opset`; returns how many nodes changed. Nothing happens when it is there already.

    Raises ExportError for a node that the older opset cannot express.
    """
    before = model.opset_imports[""]
    changed = 0
    if opset < before:
        for node in list(model.graph):
            if node.domain in ("", "ai.onnx"):
                changed += _lower_node(model, node, before, opset)
        model.opset_imports[""] = opset
    model.ir_version = _ir_version(opset)
    return changed


def _lower_node(model: ir.Model, node: ir.Node, before: int, opset: int) -> int:
    if node.op_type in _REWRITES:
        since, rewrite = _REWRITES[node.op_type]
        if opset < since <= before:
            rewrite(model, node)
            return 1
        return 0
    if node.op_type not in _SAME_MEANING or opset < _SINCE.get(node.op_type, 1):
        raise ExportError(
            f"{node.op_type} ({node.name}) has no known form in opset {opset}; it was traced at {before}."
        )
    if node.op_type in _ADDED_ATTRIBUTES:
        name, neutral = _ADDED_ATTRIBUTES[node.op_type]
        schema = onnx.defs.get_schema(node.op_type, opset, "")
        attribute = node.attributes.get(name)
        if attribute is not None and name not in schema.attributes:
            if attribute.as_int() != neutral and not _is_needless(node):
                raise ExportError(f"{node.op_type} ({node.name}) needs {name}, which opset {opset} lacks.")
            del node.attributes[name]
            return 1
    return 0


def _is_needless(node: ir.Node) -> bool:
    """A constant shape without zeros means the same however a zero is read."""
    shape = graph.constant(node.inputs[1]) if node.op_type == "Reshape" else None
    return shape is not None and 0 not in shape


def _axes_as_attribute(model: ir.Model, node: ir.Node) -> None:
    axes = graph.constant(node.inputs[1]) if len(node.inputs) > 1 else None
    if axes is None:
        raise ExportError(f"{node.op_type} ({node.name}) computes its axes; they must be constant.")
    kept = int(node.attributes["keepdims"].as_int()) if "keepdims" in node.attributes else 1
    older = ir.node(node.op_type, [node.inputs[0]], {"axes": [int(axis) for axis in axes], "keepdims": kept})
    graph.replace_node(model, node, older)


def _shape_cut_out(model: ir.Model, node: ir.Node) -> None:
    """Some of the sizes: all of them, and a Slice."""
    first, last = (node.attributes.get(name) for name in ("start", "end"))
    if first is None and last is None:
        return
    ends = np.iinfo(np.int64).max if last is None else last.as_int()
    bounds = {"starts": 0 if first is None else first.as_int(), "ends": ends}
    given = [
        graph.add_initializer(model, f"{node.name}.{name}", np.array([value], np.int64))
        for name, value in bounds.items()
    ]
    whole = ir.node("Shape", [node.inputs[0]])
    graph.replace(model, node, [whole, ir.node("Slice", [whole.outputs[0], *given])])


def _without_count(model: ir.Model, node: ir.Node) -> None:
    """The number of outputs says the same as the outputs."""
    node.attributes.pop("num_outputs", None)


_REWRITES: dict[str, tuple[int, Callable[[ir.Model, ir.Node], None]]] = {
    "ReduceMax": (18, _axes_as_attribute),
    "ReduceMean": (18, _axes_as_attribute),
    "Shape": (15, _shape_cut_out),
    "Split": (18, _without_count),
}
"""Operator → (opset that changed it, how to write it as before)."""


def _ir_version(opset: int) -> int:
    """The oldest one that goes with the opset: parsers compare it with the ONNX that they were built with."""
    version: int = onnx.helper.find_min_ir_version_for([onnx.helper.make_opsetid("", opset)])
    return version
