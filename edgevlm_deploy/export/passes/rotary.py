"""Rotary position embedding moves into GroupQueryAttention, which reads cosines and sines from a table.

Per layer this removes about twenty small nodes between projection and attention.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from edgevlm_deploy.errors import ExportError
from edgevlm_deploy.export import graph


def fuse_rotary(
    model: ir.Model, cosine: NDArray[np.float32], sine: NDArray[np.float32], layers: int | None = None
) -> int:
    """Returns how many attentions were changed. cosine, sine: float32 [positions, head dim / 2].

    layers: only the first ones; None: all. ONNX Runtime takes positions to follow each other, which they do
    not where a decoder has dropped tokens.

    Raises ExportError when an attention's query and key are not rotated in the way that the table describes.
    """
    attentions = [node for node in model.graph if node.op_type == "GroupQueryAttention"][:layers]
    if not attentions:
        return 0
    unrotated = [[_unrotated(node, node.inputs[operand]) for operand in (0, 1)] for node in attentions]
    tables = [
        graph.add_initializer(model, "rotary.cosine", cosine),
        graph.add_initializer(model, "rotary.sine", sine),
    ]
    positions = next(value for value in model.graph.inputs if value.name == "position_ids")
    for node, (query, key) in zip(attentions, unrotated, strict=True):
        inputs = [query, key, *node.inputs[2:7], *tables, positions]
        attributes = {name: attribute.value for name, attribute in node.attributes.items()}
        fused = ir.node(
            "GroupQueryAttention",
            inputs,
            {**attributes, "do_rotary": 1, "rotary_interleaved": 0},
            domain=graph.MICROSOFT,
            num_outputs=len(node.outputs),
        )
        graph.replace_node(model, node, fused)
    return len(attentions)


def _unrotated(attention: ir.Node, value: ir.Value) -> ir.Value:
    """The projection [B, T, heads · head dim] behind a rotated query or key.

    projection → Reshape → Transpose → x;  x·cos + rotate_half(x)·sin → Transpose → Reshape → `value`
    """
    reshape = _producer(attention, value, "Reshape")
    transpose = _producer(attention, reshape.inputs[0], "Transpose")
    add = _producer(attention, transpose.inputs[0], "Add")
    products = [_producer(attention, operand, "Mul") for operand in add.inputs]
    direct = [product for product in products if product.inputs[0].producer().op_type == "Transpose"]
    halves = [product for product in products if product.inputs[0].producer().op_type == "Concat"]
    if len(direct) != 1 or len(halves) != 1:
        raise ExportError(f"{graph.module_of(attention)}: query or key is not rotated in halves.")
    heads = _producer(attention, direct[0].inputs[0], "Transpose")
    return _producer(attention, heads.inputs[0], "Reshape").inputs[0]


def _producer(attention: ir.Node, value: ir.Value, op_type: str) -> ir.Node:
    node = value.producer()
    if node is None or node.op_type != op_type:
        found = None if node is None else node.op_type
        raise ExportError(
            f"{graph.module_of(attention)}: expected a {op_type} in front of the attention, found {found}. "
            "Is this version of transformers supported?"
        )
    return node
