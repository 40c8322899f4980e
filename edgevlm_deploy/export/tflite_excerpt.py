"""Some signatures of a .tflite file as a file of its own: their graphs, and the constants that these use.

Constants are copied byte by byte, so integers and scales that were proved in the whole file hold here too;
`write` compares them once more.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from edgevlm_runner.contract import Pixels

from edgevlm_deploy import quiet
from edgevlm_deploy.artifacts import atomic_path
from edgevlm_deploy.errors import ExportError
from edgevlm_deploy.export import tflite

PIXELS = "images"
"""Input of an image encoder that takes rows of pixels instead of normalised channels."""


def write(
    path: Path,
    signatures: Mapping[str, str],
    out: Path,
    pixels_of: Pixels | None = None,
    without: Collection[str] = (),
) -> None:
    """Write to `out` the signatures of the file at `path` that are keys of `signatures`, under new names.

    without: outputs that are left out, where a signature has them.
    pixels_of: the one signature is an image encoder; its input becomes float32 [1, S, S, 3] in 0 … 1, which
        the graph then normalises and transposes itself.

    Raises ExportError when a signature is missing, the file is damaged or a weight changed on the way,
    MissingExtraError without ai-edge-litert.
    """
    whole = tflite.load(path)
    missing = sorted(set(signatures) - set(whole.signatures))
    if missing:
        raise ExportError(
            f"{path} has no signature {', '.join(missing)}, only {', '.join(sorted(whole.signatures))}. "
            "Compile the bundle again."
        )
    with quiet.toolkit("ai-edge-litert", "Cutting a .tflite file", "litert", ExportError):
        from ai_edge_litert import schema_py_generated as schema
        from ai_edge_litert.tools import flatbuffer_utils

        model = flatbuffer_utils.read_model(str(path))
        _keep(model, signatures)
        _drop_outputs(model, without)
        if pixels_of is not None:
            _take_pixels(model, schema, pixels_of)
        with atomic_path(out) as temporary:
            flatbuffer_utils.write_model(model, str(temporary))
    _check_same(whole, tflite.load(out), signatures)


def _keep(model: Any, signatures: Mapping[str, str]) -> None:
    """Drop all other signatures, and the graphs, constants and metadata that then nobody names."""
    model.signatureDefs = [one for one in model.signatureDefs if _text(one.signatureKey) in signatures]
    for one in model.signatureDefs:
        one.signatureKey = signatures[_text(one.signatureKey)]
    used: list[int] = []
    waiting = [one.subgraphIndex for one in model.signatureDefs]
    while waiting:
        number = waiting.pop()
        if number not in used:
            used.append(number)
            waiting += [getattr(options, name) for options, name in _calls(model.subgraphs[number])]
    used.sort()
    places = {old: new for new, old in enumerate(used)}
    model.subgraphs = [model.subgraphs[number] for number in used]
    for one in model.signatureDefs:
        one.subgraphIndex = places[one.subgraphIndex]
    for graph in model.subgraphs:
        for options, name in _calls(graph):
            setattr(options, name, places[getattr(options, name)])
    _keep_buffers(model)


def _drop_outputs(model: Any, names: Collection[str]) -> None:
    """Their tensors stay, as steps of the computation."""
    for signature in model.signatureDefs:
        signature.outputs = [one for one in signature.outputs if _text(one.name) not in names]
        kept = {one.tensorIndex for one in signature.outputs}
        graph = model.subgraphs[signature.subgraphIndex]
        graph.outputs = [tensor for tensor in graph.outputs if tensor in kept]


def _calls(graph: Any) -> Iterator[tuple[Any, str]]:
    """Operator options that name another graph, and the field that holds its number."""
    for operator in graph.operators:
        for options in (operator.builtinOptions, operator.builtinOptions2):
            for name in vars(options) if options is not None else ():
                if name.lower().endswith("subgraphindex"):
                    yield options, name


def _keep_buffers(model: Any) -> None:
    """The first buffer stays: by convention it is the empty one."""
    model.metadata = None  # speaks of the whole file
    model.metadataBuffer = None
    tensors = [tensor for graph in model.subgraphs for tensor in graph.tensors]
    used = sorted({0, *(tensor.buffer for tensor in tensors)})
    places = {old: new for new, old in enumerate(used)}
    model.buffers = [model.buffers[number] for number in used]
    for tensor in tensors:
        tensor.buffer = places[tensor.buffer]


def _take_pixels(model: Any, schema: Any, image: Pixels) -> None:
    """Put (x − mean) / deviation and a transposition before the one input of the one signature."""
    signature, graph = model.signatureDefs[0], model.subgraphs[model.signatureDefs[0].subgraphIndex]
    channels_first = signature.inputs[0].tensorIndex
    shape = [int(size) for size in graph.tensors[channels_first].shape]
    rows = [shape[0], shape[2], shape[3], shape[1]]
    mean, deviation = np.array(image.mean, np.float32), np.array(image.std, np.float32)
    kind, operator = schema.TensorType, schema.BuiltinOperator

    def tensor(name: str, size: list[int], values: Any = None, of: int = kind.FLOAT32) -> int:
        made = schema.TensorT()
        made.name, made.shape, made.type, made.buffer = name, size, of, 0
        if values is not None:
            buffer = schema.BufferT()
            buffer.data = np.frombuffer(values.tobytes(), np.uint8)
            made.buffer = len(model.buffers)
            model.buffers.append(buffer)
        graph.tensors.append(made)
        return len(graph.tensors) - 1

    def run(code: int, inputs: list[int], output: int, options: Any, options_type: int) -> Any:
        made = schema.OperatorT()
        made.opcodeIndex = _operator_code(model, schema, code)
        made.inputs, made.outputs = inputs, [output]
        made.builtinOptions, made.builtinOptionsType = options, options_type
        return made

    pixels, scaled, normalised = (tensor(f"edgevlm_{PIXELS}_{i}", rows) for i in range(3))
    factor = tensor("edgevlm_reciprocal_deviation", [3], 1 / deviation)
    shift = tensor("edgevlm_shift", [3], -mean / deviation)
    order = tensor("edgevlm_channels_first", [4], np.array([0, 3, 1, 2], np.int32), kind.INT32)
    options = schema.BuiltinOptions
    graph.operators = [
        run(operator.MUL, [pixels, factor], scaled, schema.MulOptionsT(), options.MulOptions),
        run(operator.ADD, [scaled, shift], normalised, schema.AddOptionsT(), options.AddOptions),
        run(
            operator.TRANSPOSE,
            [normalised, order],
            channels_first,
            schema.TransposeOptionsT(),
            options.TransposeOptions,
        ),
        *graph.operators,
    ]
    graph.inputs = [pixels]
    signature.inputs[0].tensorIndex, signature.inputs[0].name = pixels, PIXELS


def _operator_code(model: Any, schema: Any, code: int) -> int:
    """Where the file lists the operator; it is added when it is new."""
    for number, one in enumerate(model.operatorCodes):
        if max(one.builtinCode, one.deprecatedBuiltinCode) == code:
            return number
    made = schema.OperatorCodeT()
    made.builtinCode = made.deprecatedBuiltinCode = code
    made.version = 1
    model.operatorCodes.append(made)
    return len(model.operatorCodes) - 1


def _check_same(whole: tflite.TfliteFile, part: tflite.TfliteFile, signatures: Mapping[str, str]) -> None:
    if set(part.signatures) != set(signatures.values()):
        raise ExportError(f"{part.path} has the signatures {sorted(part.signatures)}, other than asked for.")
    compared: set[tuple[int, int]] = set()
    for old, new in signatures.items():
        before, after = whole.weights(old), part.weights(new)
        if len(before) != len(after):
            raise ExportError(f"{part.path}: {new} has {len(after)} weights, {old} has {len(before)}.")
        for first, second in zip(before, after, strict=True):
            if (first.operator, first.shape, first.tensor_type, first.block) != (
                second.operator,
                second.shape,
                second.tensor_type,
                second.block,
            ) or not _equal(first.scale, second.scale):
                raise ExportError(f"{part.path}: a weight of {new} is stored otherwise than in {old}.")
            pair = first.buffer, second.buffer
            if pair not in compared and not np.array_equal(whole.values(first), part.values(second)):
                raise ExportError(f"{part.path}: a weight of {new} differs from {old}.")
            compared.add(pair)


def _equal(one: Any, other: Any) -> bool:
    return (one is None and other is None) or np.array_equal(one, other)


def _text(name: str | bytes) -> str:
    return name.decode() if isinstance(name, bytes) else name
