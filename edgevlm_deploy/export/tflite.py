"""Reading a .tflite file: signatures, their operators, and the constant weights that these multiply with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgevlm_deploy.errors import ExportError, MissingExtraError

LOOKUP = "EMBEDDING_LOOKUP"
PRODUCTS = ("FULLY_CONNECTED", "CONV_2D")
"""Operators whose second operand is a weight matrix [N, K], or filters [N, height, width, K]."""


@dataclass(frozen=True)
class Weight:
    """The constant operand of one operator.

    tensor_type       name in the schema: "FLOAT32", "FLOAT16", "INT8", "INT4", …
    scale             float32 [N, blocks], None for floats
    block             columns per scale, None when a row has one scale
    zero_points       all of them; symmetric weights have zeros only
    activation_types  types of the operator's input and output
    """

    operator: str
    shape: tuple[int, ...]
    tensor_type: str
    buffer: int
    scale: NDArray[np.float32] | None
    block: int | None
    zero_points: NDArray[Any]
    activation_types: tuple[str, str]


class TfliteFile:
    """One opened file; weights are read from disk when they are asked for."""

    def __init__(self, path: Path, model: Any, schema: Any, data: NDArray[np.uint8]) -> None:
        self.path = path
        self._model, self._schema, self._data = model, schema, data
        self._types = _names(schema.TensorType)
        self._operators = _names(schema.BuiltinOperator)
        self.signatures = self._signatures()

    def _signatures(self) -> Mapping[str, int]:
        """Name → number of its subgraph."""
        found = (self._model.SignatureDefs(i) for i in range(self._model.SignatureDefsLength()))
        return {one.SignatureKey().decode(): one.SubgraphIndex() for one in found}

    def weights(self, signature: str) -> tuple[Weight, ...]:
        """Constant weights of products and lookups, in the order of execution."""
        graph = self._model.Subgraphs(self.signatures[signature])
        written = {
            graph.Operators(i).Outputs(j)
            for i in range(graph.OperatorsLength())
            for j in range(graph.Operators(i).OutputsLength())
        }
        found = []
        for i in range(graph.OperatorsLength()):
            operator = graph.Operators(i)
            name = self._name(operator)
            if name not in (*PRODUCTS, LOOKUP):
                continue
            tensor = graph.Tensors(self._behind_cast(graph, operator.Inputs(1)))
            if operator.Inputs(1) in written and not self._buffer(tensor.Buffer()).size:
                continue  # computed while running
            ends = operator.Inputs(0), operator.Outputs(0)
            types = tuple(self._types[graph.Tensors(end).Type()] for end in ends)
            found.append(self._weight(graph, name, tensor, (types[0], types[1])))
        return tuple(found)

    def operators(self, signature: str) -> tuple[str, ...]:
        graph = self._model.Subgraphs(self.signatures[signature])
        return tuple(self._name(graph.Operators(i)) for i in range(graph.OperatorsLength()))

    def values(self, weight: Weight) -> NDArray[Any]:
        """The stored numbers in the weight's shape; int4 as int8."""
        raw = self._buffer(weight.buffer)
        if weight.tensor_type == "INT4":
            pairs = np.stack([raw & 0xF, raw >> 4], axis=1).reshape(-1)[: int(np.prod(weight.shape))]
            signed = np.where(pairs > 7, pairs.astype(np.int16) - 16, pairs).astype(np.int8)
            return signed.reshape(weight.shape)
        types = {"FLOAT32": np.float32, "FLOAT16": np.float16, "INT8": np.int8}
        if weight.tensor_type not in types:
            raise ExportError(
                f"{self.path}: a weight is stored as {weight.tensor_type}, which was not asked for."
            )
        return raw.view(types[weight.tensor_type]).reshape(weight.shape)

    def _weight(self, graph: Any, operator: str, tensor: Any, activation_types: tuple[str, str]) -> Weight:
        shape = tuple(int(size) for size in tensor.ShapeAsNumpy())
        scale, block = None, None
        zero_points: NDArray[Any] = np.zeros(0, np.int64)
        quantization = tensor.Quantization()
        if quantization is not None and quantization.DetailsType() == self._blockwise:
            details = self._schema.BlockwiseQuantization()
            details.Init(quantization.Details().Bytes, quantization.Details().Pos)
            block = details.BlockSize()
            stored = graph.Tensors(details.Scales())
            scale = self._block_scales(stored).reshape(shape[0], -1)
        elif quantization is not None and quantization.ScaleLength():
            scale = quantization.ScaleAsNumpy().astype(np.float32).reshape(-1, 1)
            zero_points = quantization.ZeroPointAsNumpy()
        kind = self._types[tensor.Type()]
        return Weight(operator, shape, kind, tensor.Buffer(), scale, block, zero_points, activation_types)

    @property
    def _blockwise(self) -> int:
        number: int = self._schema.QuantizationDetails.BlockwiseQuantization
        return number

    def _block_scales(self, tensor: Any) -> NDArray[np.float32]:
        raw, kind = self._buffer(tensor.Buffer()), self._types[tensor.Type()]
        if kind == "FLOAT16":
            return raw.view(np.float16).astype(np.float32)
        if kind == "BFLOAT16":
            return (raw.view(np.uint16).astype(np.uint32) << 16).view(np.float32)
        raise ExportError(f"{self.path}: scales of blocks are stored as {kind}, expected 16-bit floats.")

    def _behind_cast(self, graph: Any, tensor: int) -> int:
        """fp16 weights pass a DEQUANTIZE, which runtimes fold away."""
        for i in range(graph.OperatorsLength()):
            operator = graph.Operators(i)
            if self._name(operator) == "DEQUANTIZE" and operator.Outputs(0) == tensor:
                return int(operator.Inputs(0))
        return tensor

    def _name(self, operator: Any) -> str:
        code = self._model.OperatorCodes(operator.OpcodeIndex())
        number = max(code.BuiltinCode(), code.DeprecatedBuiltinCode())
        return self._operators.get(number, str(number))

    def _buffer(self, index: int) -> NDArray[np.uint8]:
        """uint8 bytes; weights beyond 2 GB lie behind the flatbuffer."""
        buffer = self._model.Buffers(index)
        if buffer.DataLength():
            data: NDArray[np.uint8] = buffer.DataAsNumpy()
            return data
        return self._data[buffer.Offset() : buffer.Offset() + buffer.Size()]


def load(path: Path) -> TfliteFile:
    """Raises ExportError when the file cannot be read, MissingExtraError without ai-edge-litert."""
    try:
        from ai_edge_litert import schema_py_generated as schema
    except ImportError as error:
        raise MissingExtraError(
            f"Reading a .tflite file needs ai-edge-litert ({error}): pip install 'edgevlm[litert]'"
        ) from error
    try:
        data = np.memmap(path, np.uint8, mode="r")
        model = schema.Model.GetRootAs(data, 0)
        return TfliteFile(path, model, schema, data)
    except Exception as error:  # struct, index and value errors, whatever the damage leads to
        raise ExportError(f"{path}: the written graph cannot be read back ({error}).") from error


def _names(constants: Any) -> dict[int, str]:
    return {number: name for name, number in vars(constants).items() if not name.startswith("_")}
