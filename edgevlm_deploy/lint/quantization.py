"""Rules on explicit quantisation: where QuantizeLinear (Q) and DequantizeLinear (DQ) stand, what they carry.

Sources: QuantDequantLinearHelper in onnx-tensorrt's onnxOpImporters.cpp (10.1 GA), and NVIDIA's documentation
of the Quantize and Dequantize operators and of quantised types: symmetric only, scales constant and positive,
activations per tensor, weights per output channel; INT4 for weights only, in blocks of 64 or 128 along one of
the last two axes.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx_ir as ir

from edgevlm_deploy.lint.operators import TYPE_NAMES
from edgevlm_deploy.lint.subject import (
    Finding,
    Severity,
    Subject,
    array,
    error,
    is_onnx,
    name_of,
    tensor,
    warning,
)

INT4_BLOCKS = (64, 128)
FP8_COMPUTE_CAPABILITY = (8, 9)
_MATRIX_PRODUCTS = ("MatMul", "Gemm")


def _quantizers(subject: Subject) -> Iterator[ir.Node]:
    return (node for node in subject.nodes if is_onnx(node, "QuantizeLinear", "DequantizeLinear"))


def _input(node: ir.Node, index: int) -> ir.Value | None:
    return node.inputs[index] if len(node.inputs) > index else None


def _quantized_type(node: ir.Node) -> ir.DataType | None:
    """Type of the quantised side; ONNX's default for a Q without zero-point is UINT8."""
    side = node.outputs[0] if node.op_type == "QuantizeLinear" else node.inputs[0]
    if side is not None and side.dtype is not None:
        return side.dtype
    zero_point = _input(node, 2)
    if zero_point is not None:
        return zero_point.dtype
    return ir.DataType.UINT8 if node.op_type == "QuantizeLinear" else None


def _is_weight(node: ir.Node) -> bool:
    """What the node quantises is a constant, or was one until the Q before it."""
    source = node.inputs[0]
    producer = source.producer() if source is not None else None
    if producer is not None and is_onnx(producer, "QuantizeLinear"):
        source = producer.inputs[0]
    return tensor(source) is not None


def qdq_pairs(subject: Subject) -> Iterator[Finding]:
    """Q feeds DQ alone; DQ reads a Q or a constant. Everything else computes in floating point."""
    for node in _quantizers(subject):
        if node.op_type == "QuantizeLinear":
            output = node.outputs[0]
            others = [one for one, _ in output.uses() if not is_onnx(one, "DequantizeLinear")]
            if others or output.is_graph_output():
                what = f"feeds {others[0].op_type}" if others else "is an output of the graph"
                yield error(
                    "qdq_pairs",
                    name_of(node),
                    f"the quantised tensor {output.name} {what}; expected DequantizeLinear alone. Put a "
                    "DequantizeLinear with the same scale behind it.",
                )
        elif tensor(node.inputs[0]) is None:
            producer = node.inputs[0].producer()
            if producer is None or not is_onnx(producer, "QuantizeLinear"):
                what = (
                    f"the output of {producer.op_type}" if producer is not None else "an input of the graph"
                )
                yield error(
                    "qdq_pairs",
                    name_of(node),
                    f"DequantizeLinear reads {what}; expected a QuantizeLinear or a constant, as TensorRT "
                    "fuses the pair and computes nothing else on integers.",
                )


def scales(subject: Subject) -> Iterator[Finding]:
    """Constant, finite, greater than zero."""
    for node in _quantizers(subject):
        if tensor(_input(node, 1)) is None:
            yield error(
                "scales",
                name_of(node),
                "a computed scale; expected a constant, known when the engine is built. Calibrate it ahead; "
                "dynamic quantisation has no place in an engine.",
            )
            continue
        values = array(_input(node, 1))
        if values is None:
            continue
        values = values.astype(np.float64)
        wrong = int(np.count_nonzero(~(np.isfinite(values) & (values > 0))))
        if wrong:
            yield error(
                "scales",
                name_of(node),
                f"{wrong} of {values.size} scales are zero, negative or not finite; the parser refuses them. "
                "Clamp the scale of an all-zero channel or block to a small positive number.",
            )


def zero_points(subject: Subject) -> Iterator[Finding]:
    """Explicit, typed, constant and zero: quantisation is symmetric."""
    for node in _quantizers(subject):
        zero_point = _input(node, 2)
        if zero_point is None:
            if "output_dtype" in node.attributes:
                continue
            # A Q's zero-point decides its type: UINT8 by ONNX, INT8 by TensorRT. A DQ has its input's type.
            severity = Severity.ERROR if node.op_type == "QuantizeLinear" else Severity.WARNING
            yield Finding(
                "zero_points",
                severity,
                name_of(node),
                f"{node.op_type} without a zero-point; expected an explicit zero of the quantised type, "
                "because ONNX and TensorRT assume different types for a missing one.",
            )
            continue
        if (
            zero_point.dtype is not None
            and TYPE_NAMES.get(zero_point.dtype) not in subject.generation.quantized
        ):
            known = ", ".join(sorted(subject.generation.quantized))
            yield error(
                "zero_points",
                name_of(node),
                f"a zero-point of type {zero_point.dtype.name}; TensorRT {subject.release} quantises to "
                f"{known}. Quantise symmetrically to a signed type.",
            )
            continue
        values = array(zero_point)
        if tensor(zero_point) is None or (values is not None and np.any(values.astype(np.float32) != 0)):
            found = "a computed zero-point" if tensor(zero_point) is None else "a zero-point other than zero"
            yield error(
                "zero_points",
                name_of(node),
                f"{found}; TensorRT quantises symmetrically, expected constant zeros. Quantise again with "
                "symmetric ranges.",
            )


def granularity(subject: Subject) -> Iterator[Finding]:
    """Activations have one scale, weights one per output channel. For blocks see `int4_blocks`."""
    for node in _quantizers(subject):
        scale = _input(node, 1)
        if (
            scale is None
            or scale.shape is None
            or not scale.shape.is_static()
            or _quantized_type(node) in _FOUR_BITS
        ):
            continue
        sizes = tuple(int(size) for size in scale.shape)
        if int(np.prod(sizes)) == 1:
            continue
        if not _is_weight(node):
            yield error(
                "granularity",
                name_of(node),
                f"an activation with scales of shape {list(sizes)}; expected one scale for the whole tensor. "
                "Calibrate activations per tensor.",
            )
            continue
        shape = node.inputs[0].shape
        if len(sizes) > 1 or shape is None or not shape.is_static():
            continue
        axis = _attribute(node, "axis", 1) % len(shape)
        if sizes[0] != shape[axis]:
            yield error(
                "granularity",
                name_of(node),
                f"{sizes[0]} scales along axis {axis} of a weight of shape {list(shape)}; expected "
                f"{shape[axis]}.",
            )
            continue
        wanted = _output_channel_axis(node)
        if wanted is not None and wanted % len(shape) != axis:
            yield error(
                "granularity",
                name_of(node),
                f"scales along axis {axis} of a weight of shape {list(shape)}; expected the axis of output "
                f"channels, {wanted % len(shape)}: sums over the other axis cannot be rescaled afterwards.",
            )


def int4_blocks(subject: Subject) -> Iterator[Finding]:
    """INT4 is for constant weights of matrix products, in blocks along the axis that is summed over."""
    for node in _quantizers(subject):
        if _quantized_type(node) is not ir.DataType.INT4:
            continue
        for sentence in _int4_problems(subject, node):
            yield error("int4_blocks", name_of(node), sentence)


def _int4_problems(subject: Subject, node: ir.Node) -> Iterator[str]:
    if "INT4" not in subject.generation.quantized:
        yield f"INT4 weights; TensorRT {subject.release} has none, 10.0 is the first. Use int8 or fp16 here."
        return
    if not _is_weight(node):
        yield "an INT4 activation; TensorRT has INT4 for constant weights only. Quantise activations to int8."
        return
    if node.op_type != "DequantizeLinear":
        return
    strangers = [user for user in _users(node.outputs[0]) if not is_onnx(user, *_MATRIX_PRODUCTS)]
    if strangers:
        yield f"INT4 weights feed {strangers[0].op_type}; expected MatMul or Gemm. Keep them in int8 or fp16."
    scale, shape = _input(node, 1), node.inputs[0].shape
    if (
        scale is None
        or scale.shape is None
        or shape is None
        or not (shape.is_static() and scale.shape.is_static())
    ):
        return
    if len(shape) == 0 or int(shape[-1]) % 2:
        yield f"an INT4 weight of shape {list(shape)}; expected an even last size, as two share a byte."
    if len(scale.shape) != len(shape):
        yield (
            f"scales of shape {list(scale.shape)} for an INT4 weight of shape {list(shape)}; expected blocks "
            "of 64 or 128. Write the one scale of a channel once per block."
        )
        return
    yield from _block_problems(
        subject, node, [int(size) for size in shape], [int(size) for size in scale.shape]
    )


def _block_problems(subject: Subject, node: ir.Node, shape: list[int], scales: list[int]) -> Iterator[str]:
    axis = _attribute(node, "axis", 1) % len(shape)
    block = _attribute(node, "block_size", 0)
    if subject.opset < 21 or not block:
        yield (
            f"blocks without block_size (opset {subject.opset}); expected opset 21 or later and "
            "DequantizeLinear(axis, block_size)."
        )
        return
    if block not in INT4_BLOCKS:
        yield f"blocks of {block}; TensorRT has 64 and 128. Choose the scheme w4a16_g64 or w4a16_g128."
    expected = [-(-size // block) if index == axis else size for index, size in enumerate(shape)]
    if scales != expected or shape[axis] % block:
        yield (
            f"scales of shape {scales} for a weight of shape {shape} in blocks of {block} along axis {axis}; "
            f"expected {expected} and whole blocks. Pad the weight or keep this module in int8."
        )
    wanted = _output_channel_axis(node)
    if axis < len(shape) - 2 or (wanted is not None and wanted % len(shape) == axis):
        yield f"blocks along axis {axis} of {shape}; expected the axis that the product sums over."


def formats(subject: Subject) -> Iterator[Finding]:
    """Number formats that the board's GPU computes or unpacks; one finding per format."""
    wanted = {ir.DataType.INT8: "int8", ir.DataType.INT4: "int4-weights", ir.DataType.FLOAT4E2M1: "nvfp4"}
    seen = set()
    for node in _quantizers(subject):
        kind = _quantized_type(node)
        if kind in seen or kind is None:
            continue
        seen.add(kind)
        board = f"{subject.target.name} ({subject.target.soc})"
        if kind is ir.DataType.FLOAT8E4M3FN:
            has = subject.compute_capability
            if has is None:
                yield warning("formats", name_of(node), f"FP8, and the soc of {board} names no SM version.")
            elif has < FP8_COMPUTE_CAPABILITY:
                yield error(
                    "formats",
                    name_of(node),
                    f"FP8 on {board}; expected SM 8.9 or later. Quantise to int8 for this board.",
                )
        elif kind in wanted and wanted[kind] not in subject.target.formats:
            yield error(
                "formats",
                name_of(node),
                f"{kind.name} on {board}, which executes {', '.join(subject.target.formats)}. Use one of "
                "these.",
            )


_FOUR_BITS = (ir.DataType.INT4, ir.DataType.FLOAT4E2M1)


def _attribute(node: ir.Node, name: str, default: int) -> int:
    return int(node.attributes[name].as_int()) if name in node.attributes else default


def _output_channel_axis(node: ir.Node) -> int | None:
    """Axis of output channels in the weight behind a DQ (or the Q before it), by what the weight feeds."""
    value = node.outputs[0]
    if node.op_type == "QuantizeLinear":
        behind = [user for user, _ in value.uses() if is_onnx(user, "DequantizeLinear")]
        if not behind:
            return None
        value = behind[0].outputs[0]
    axes = {_axis_in(*use) for use in value.uses()}
    return axes.pop() if len(axes) == 1 else None


def _users(value: ir.Value) -> Iterator[ir.Node]:
    """What a weight feeds, Transposes looked through: TensorRT folds them into the weight."""
    for user, _ in value.uses():
        if is_onnx(user, "Transpose"):
            yield from _users(user.outputs[0])
        else:
            yield user


def _axis_in(user: ir.Node, index: int) -> int | None:
    if is_onnx(user, "Transpose"):
        rank = len(user.inputs[0].shape or ())
        axes = user.attributes["perm"].as_ints() if "perm" in user.attributes else tuple(range(rank))[::-1]
        behind = {_axis_in(*use) for use in user.outputs[0].uses()}
        axis = behind.pop() if len(behind) == 1 else None
        return axes[axis] if axis is not None and axes else None
    if index == 1 and is_onnx(user, "MatMul"):
        return -1
    if index == 1 and is_onnx(user, "Gemm"):
        return 0 if _attribute(user, "transB", 0) else 1
    if index == 1 and is_onnx(user, "Conv"):
        return 0
    return 1 if index == 1 and is_onnx(user, "ConvTranspose") else None
