"""Rules on opsets, operators and types: what the parser of a generation knows."""

from __future__ import annotations

from collections.abc import Iterator

import onnx_ir as ir

from edgevlm_deploy.lint.subject import ONNX_DOMAINS, Finding, Subject, array, error, name_of, tensor, warning

TYPE_NAMES = {
    ir.DataType.FLOAT: "FP32",
    ir.DataType.FLOAT16: "FP16",
    ir.DataType.BFLOAT16: "BF16",
    ir.DataType.FLOAT8E4M3FN: "FP8",
    ir.DataType.FLOAT4E2M1: "FP4",
    ir.DataType.INT4: "INT4",
    ir.DataType.INT8: "INT8",
    ir.DataType.INT32: "INT32",
    ir.DataType.INT64: "INT64",
    ir.DataType.UINT8: "UINT8",
    ir.DataType.BOOL: "BOOL",
    # The parser casts it to FP32, clamping.
    ir.DataType.DOUBLE: "FP32",
}
"""Types as the parser's documentation names them; every other type is unknown to it."""

_OUTPUT_TYPED = ("Constant", "ConstantOfShape", "EyeLike", "OneHot", "RandomNormal", "RandomUniform")
"""Operators whose type is that of what they make."""

_ONNXRUNTIME = ("SimplifiedLayerNormalization", "MemcpyFromHost", "MemcpyToHost")
"""Operators of ONNX Runtime that it files under ONNX's own domain."""


def opset(subject: Subject) -> Iterator[Finding]:
    first, last = subject.generation.opset
    where = subject.path.name
    if not subject.opset:
        yield error(
            "opset", where, "no opset of the ONNX domain is imported; expected one, as every exporter writes."
        )
    elif subject.opset < first:
        yield error(
            "opset",
            where,
            f"opset {subject.opset}; TensorRT {subject.release} takes {first} to {last}. Export again, or "
            "convert with onnx.version_converter.",
        )
    elif last < subject.opset <= subject.generation.built_with_opset:
        yield warning(
            "opset",
            where,
            f"opset {subject.opset}; TensorRT {subject.release} documents {first} to {last}, but is built "
            f"with an ONNX of opset {subject.generation.built_with_opset}, and opset 21 brought the block "
            f"scales of INT4. Without these, export with opset {last}.",
        )
    elif subject.opset > last:
        yield error(
            "opset",
            where,
            f"opset {subject.opset}; TensorRT {subject.release} documents {first} to {last} and may read "
            f"newer operators wrongly. Export with opset {last}.",
        )


def operators(subject: Subject) -> Iterator[Finding]:
    """One finding per operator, at its first node."""
    counts: dict[tuple[str, str], int] = {}
    for node in subject.nodes:
        counts[node.domain, node.op_type] = counts.get((node.domain, node.op_type), 0) + 1
    seen = set()
    for node in subject.nodes:
        operator = (node.domain, node.op_type)
        if operator in seen:
            continue
        seen.add(operator)
        if sentence := _refusal(subject, *operator):
            times = counts[operator]
            times_text = "1 node" if times == 1 else f"{times} nodes"
            yield error("operators", name_of(node), f"{sentence} ({times_text})")


def _refusal(subject: Subject, domain: str, op_type: str) -> str | None:
    release = f"TensorRT {subject.release}"
    if op_type in subject.generation.custom:
        return None
    if domain.startswith("com.microsoft") or op_type in _ONNXRUNTIME:
        return (
            f"{f'{domain}::' if domain else ''}{op_type} is ONNX Runtime's own operator; {release} knows "
            "standard ONNX only. This graph was made for ONNX Runtime: compile the model for "
            f"{subject.target.name} instead."
        )
    if domain in ONNX_DOMAINS:
        if op_type in subject.generation.operators:
            return None
        return (
            f"{op_type} is not among the operators of {release}. Export it as simpler ones or fold it away."
        )
    return (
        f"{domain}::{op_type} is a custom operator; {release} builds it only with a plugin of that name, "
        "which edgevlm does not ship. Express it in standard ONNX."
    )


def restrictions(subject: Subject) -> Iterator[Finding]:
    """The column "Restrictions" of operators.md, as far as transformers meet it; one finding per sentence."""
    seen = set()
    for node in subject.nodes:
        known = node.domain in ONNX_DOMAINS and node.op_type in subject.generation.operators
        sentence = _restriction(node) if known else None
        if sentence is not None and sentence not in seen:
            seen.add(sentence)
            yield error("restrictions", name_of(node), f"{node.op_type} {sentence}")


def _restriction(node: ir.Node) -> str | None:
    """What of `node` the parser does not implement, as the rest of a sentence."""
    settings = {name: attribute.value for name, attribute in node.attributes.items()}
    given = [value is not None and bool(value.name) for value in node.inputs]
    more_outputs = any(value.name for value in node.outputs[1:])
    data = node.inputs[0] if given else None
    rank = None if data is None or data.shape is None else len(data.shape)
    second = node.inputs[1] if len(given) > 1 else None
    match node.op_type:
        case "Attention" if any(given[4:]) or more_outputs:
            return "with past or present keys and values; expected whole ones. Concatenate before it."
        case "Attention" if settings.get("softcap"):
            return "with softcap, which is not supported. Export plain operators."
        case "Attention" | "TensorScatter" if rank not in (None, 4):
            return f"of rank {rank}; expected [batch, heads, tokens, head size]. Reshape before it."
        case "TensorScatter" if settings.get("axis", -2) not in (-2, 2):
            return "along another axis than tokens; expected axis -2."
        case "LayerNormalization" | "MaxPool" if more_outputs:
            return "with a second output, which is not supported. Export without it."
        case "TopK" if (k := array(second)) is not None and k.max(initial=0) >= 3840:
            return f"with k = {k.max():,}; expected fewer than 3,840."
        case "Resize" if settings.get("mode", "nearest") not in ("nearest", "linear"):
            return f"of mode {settings['mode']}; expected nearest or linear."
        case "Resize" if settings.get("antialias"):
            return "with antialiasing, which is not supported. Resize the picture before the graph."
        case name if name.startswith("Reduce") and second is not None and tensor(second) is None:
            return "over computed axes; expected a constant."
        case "ScatterND" if settings.get("reduction", "none") != "none":
            return "with a reduction, which is not supported."
    return None


def types(subject: Subject) -> Iterator[Finding]:
    """One finding per operator and type. Types that ONNX cannot infer are not judged."""
    seen = set()
    for node in subject.nodes:
        allowed = subject.generation.operators.get(node.op_type)
        data = _data(node)
        if node.domain not in ONNX_DOMAINS or allowed is None or data is None or data.dtype is None:
            continue
        found = TYPE_NAMES.get(data.dtype, data.dtype.name)
        if found == "INT64" and not subject.generation.int64:
            found = "INT32"
        # UINT8 pictures may enter and leave an engine, through a Cast.
        if found in allowed or (found == "UINT8" and node.op_type == "Cast" and subject.generation.int64):
            continue
        if (node.op_type, found) in seen:
            continue
        seen.add((node.op_type, found))
        yield error(
            "types",
            name_of(node),
            f"{node.op_type} of {found} ({data.name}); TensorRT {subject.release} takes "
            f"{', '.join(sorted(allowed))} there. Cast around it, or dequantise before it.",
        )


def _data(node: ir.Node) -> ir.Value | None:
    """The tensor whose type operators.md speaks of."""
    if node.op_type in _OUTPUT_TYPED:
        return node.outputs[0]
    index = 1 if node.op_type == "Where" else 0
    return node.inputs[index] if len(node.inputs) > index else None
