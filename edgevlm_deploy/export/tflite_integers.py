"""Writing the quantised truth into a float .tflite file. The only importer of ai_edge_quantizer.

Its own algorithms compute integers from float weights; here they are given. Layers are known by the bytes
of their dequantised weights, because names of layers are merged and shortened on the way from torch to
.tflite. What is not in the table is stored in fp16 where fp16 holds it exactly, which is how it was rounded.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
from numpy.typing import NDArray

from edgevlm_deploy import quiet
from edgevlm_deploy.errors import ExportError, QuantizationError
from edgevlm_deploy.export.tflite import LOOKUP, PRODUCTS
from edgevlm_deploy.quantize.table import QuantizedLinear, QuantizedTable

BLOCKS = (32, 64, 128, 256)
_OPERATIONS = (*PRODUCTS, LOOKUP)

Key = tuple[tuple[int, ...], str]
"""Shape and SHA-256 of float32 weights."""


def key(weight: NDArray[Any]) -> Key:
    contiguous = np.ascontiguousarray(weight, np.float32)
    # −0 and 0 are one number, and graph transformations do not keep them apart.
    digest = hashlib.sha256((contiguous + np.float32(0)).tobytes()).hexdigest()
    return contiguous.shape, digest


def by_weight(table: QuantizedTable) -> dict[Key, list[str]]:
    """Dequantised weights → the modules that have them: several when weights are tied or equal.

    Raises ExportError when modules of one weight are stored differently: the .tflite file does not tell
    them apart.
    """
    found: dict[Key, list[str]] = {}
    for name, linear in table.items():
        found.setdefault(key(linear.dequantize()), []).append(name)
    for first, *others in found.values():
        for other in others:
            if not same_integers(table[first], table[other]):
                raise ExportError(
                    f"{first} and {other} have equal weights but other integers, and LiteRT keeps one copy "
                    "of equal weights. Give both the same scheme."
                )
    return found


def same_integers(one: QuantizedLinear, other: QuantizedLinear) -> bool:
    return (
        (one.bits, one.block) == (other.bits, other.block)
        and np.array_equal(one.q, other.q)
        and np.array_equal(one.scale, other.scale)
    )


@dataclasses.dataclass(frozen=True)
class Calibrated:
    """Products that take and give integers with calibrated ranges, as an NPU wants them.

    bits   module → bits of its input and output: 8 (asymmetric) or 16 (symmetric)
    calls  signature → its inputs on real samples; read once
    """

    bits: Mapping[str, int]
    calls: Mapping[str, Iterable[Mapping[str, Any]]]


def write(float_path: Path, table: QuantizedTable, path: Path, calibrated: Calibrated | None = None) -> None:
    """Write to `path` the graphs of `float_path` with the table's integers and scales in them.

    Without `calibrated`, inputs of products are floats that the runtime rounds while running.

    Raises QuantizationError for integers that a .tflite file cannot hold, ExportError when
    ai-edge-quantizer refuses the file, MissingExtraError without it. `tflite_readback` proves the result.
    """
    for name, linear in table.items():
        _check_storable(name, linear)
    bits = calibrated.bits if calibrated else {}
    linears = {one: (table[names[0]], bits.get(names[0])) for one, names in by_weight(table).items()}
    with _library() as library:
        quantizer = library.Quantizer(str(float_path))
        for operation in _OPERATIONS:
            if calibrated and operation != LOOKUP:
                quantizer.add_static_config(".*", library.operation(operation), 8, 8)
            else:
                quantizer.add_dynamic_config(".*", library.operation(operation), 8)
        ranges = library.ranges(quantizer, float_path, calibrated.calls) if calibrated else None
        with library.materializing(lambda weight: linears.get(key(weight))):
            made = quantizer.quantize(ranges)
        made.export_model(str(path), overwrite=True)
        if calibrated:
            _restore_outputs(path)


def _restore_outputs(path: Path) -> None:
    """Make every graph give what its signature names. ai-edge-quantizer 0.10 writes another tensor into the
    graph's list when an output is also what a calibrated product takes."""
    from ai_edge_litert.tools import flatbuffer_utils

    model, changed = flatbuffer_utils.read_model(str(path)), False
    for signature in model.signatureDefs:
        named = [one.tensorIndex for one in signature.outputs]
        if set(named) != set(model.subgraphs[signature.subgraphIndex].outputs):
            model.subgraphs[signature.subgraphIndex].outputs, changed = named, True
    if changed:
        flatbuffer_utils.write_model(model, str(path))


def _check_storable(name: str, linear: QuantizedLinear) -> None:
    columns = linear.q.shape[1]
    if linear.zero_point is not None or linear.activation is not None:
        raise QuantizationError(
            f"{name}: LiteRT takes symmetric weights and no input range from the table; "
            "it was quantised for another backend."
        )
    if linear.block != columns and (linear.block not in BLOCKS or columns % linear.block or linear.bits > 4):
        raise QuantizationError(
            f"{name}: {linear.bits} bits in groups of {linear.block} on {columns} columns; LiteRT stores "
            f"groups of {', '.join(map(str, BLOCKS))} that divide the columns, in at most 4 bits."
        )


@dataclasses.dataclass(frozen=True)
class _Library:
    """The parts of ai_edge_quantizer that are used."""

    Quantizer: Any
    types: Any
    manager: Any
    uniform: Any
    casting: Any
    content: Callable[..., Any]
    minmax: Any
    Calibrator: Any
    widen: Any

    def ranges(self, quantizer: Any, float_path: Path, calls: Mapping[str, Iterable[Any]]) -> Any:
        """Smallest and largest value of every tensor. The library's default is a moving average, which
        forgets rare large activations."""
        calibrator = self.Calibrator(str(float_path), num_threads=1, qsv_update_func=self.widen)
        for signature, given in calls.items():
            for call in given:  # one at a time: it would make a list of all, caches included
                calibrator.calibrate({signature: [call]}, quantizer._recipe_manager)
        return calibrator.get_model_qsvs()

    def operation(self, name: str) -> Any:
        return self.types.TFLOperationName[name]

    @contextlib.contextmanager
    def materializing(
        self, find: Callable[[NDArray[Any]], tuple[QuantizedLinear, int | None] | None]
    ) -> Iterator[None]:
        """While the library decides how each operator is stored, `find` gives the integers of a weight and
        the bits of activations."""
        own = self.manager.get_quantization_func
        uniform = {
            self.operation("FULLY_CONNECTED"): self.uniform.materialize_fc_conv,
            self.operation("CONV_2D"): self.uniform.materialize_fc_conv,
            self.operation("EMBEDDING_LOOKUP"): self.uniform.materialize_embedding_lookup,
        }

        known: dict[int, tuple[QuantizedLinear, int | None] | None] = {}

        def materialize(op_info: Any, graph_info: Any, **rest: Any) -> Any:
            tensor = graph_info.subgraph_tensors[op_info.op.inputs[1]]
            weight = self.content(tensor, graph_info.buffers)
            if tensor.buffer not in known:  # signatures share buffers
                known[tensor.buffer] = None if weight is None else find(weight)
            found = known[tensor.buffer]
            if found is None:
                return self._floats(weight, op_info, graph_info, rest)
            linear, bits = found
            config = dataclasses.replace(
                op_info.op_quant_config,
                weight_tensor_config=self._config(linear),
                activation_tensor_config=self._activation(bits),
            )
            parameters = self._parameters(linear)

            def given(info: Any, config: Any, content: Any = None, ranges: Any = None) -> Any:
                if content is None:
                    return self.minmax.get_tensor_quant_params(info, config, content, ranges)
                return parameters

            info = dataclasses.replace(op_info, op_quant_config=config)
            return uniform[op_info.op_name](given, info, graph_info, **rest)

        def chosen(algorithm: Any, operation: Any, mode: Any) -> Any:
            if mode == self.types.QuantizeMode.MATERIALIZE and operation in uniform:
                return materialize
            return own(algorithm, operation, mode)

        with mock.patch.object(self.manager, "get_quantization_func", chosen):
            yield

    def _floats(self, weight: Any, op_info: Any, graph_info: Any, rest: Mapping[str, Any]) -> Any:
        with np.errstate(over="ignore"):
            is_half = weight is not None and np.array_equal(weight, weight.astype(np.float16))
        made = self.casting.materialize_fc_conv(op_info, graph_info, **rest)
        if is_half:
            return made
        # Beyond fp16's range, or computed while running: stays as it is.
        stay = [self.types.QuantTransformation.NO_QUANTIZE]
        for one in made:
            for use in one.consumers or ():
                use.transformations[:] = stay
        return made

    def _config(self, linear: QuantizedLinear) -> Any:
        granularity = self.types.QuantGranularity
        grouped = linear.block != linear.q.shape[1]
        return self.types.TensorQuantizationConfig(
            num_bits=_container_bits(linear),
            granularity=granularity[f"BLOCKWISE_{linear.block}"] if grouped else granularity.CHANNELWISE,
        )

    def _activation(self, bits: int | None) -> Any:
        if bits is None:
            return None
        return self.types.TensorQuantizationConfig(num_bits=bits, symmetric=bits == 16)

    def _parameters(self, linear: QuantizedLinear) -> Any:
        grouped = linear.block != linear.q.shape[1]
        return self.types.UniformQuantParams(
            num_bits=_container_bits(linear),
            quantized_dimension=1 if grouped else 0,
            scale=linear.scale,
            zero_point=np.zeros(linear.scale.shape, np.int32),
            quantized_data=linear.q,
            block_size=linear.block if grouped else 0,
        )


def _container_bits(linear: QuantizedLinear) -> int:
    """3 bits are stored in 4: a .tflite file has int8, int4 and int2."""
    return 8 if linear.bits > 4 else 4


@contextlib.contextmanager
def _library() -> Iterator[_Library]:
    """For its errors see `quiet.toolkit`."""
    with quiet.toolkit("ai-edge-quantizer", "Compiling for LiteRT", "litert", ExportError):
        from ai_edge_quantizer import algorithm_manager, calibrator, qtyping, quantizer
        from ai_edge_quantizer.algorithms.nonlinear_quantize import float_casting
        from ai_edge_quantizer.algorithms.uniform_quantize import common_quantize, naive_min_max_quantize
        from ai_edge_quantizer.utils import qsv_utils, tfl_flatbuffer_utils

        yield _Library(
            quantizer.Quantizer,
            qtyping,
            algorithm_manager,
            common_quantize,
            float_casting,
            tfl_flatbuffer_utils.get_tensor_data,
            naive_min_max_quantize,
            calibrator.Calibrator,
            qsv_utils.min_max_update,
        )
