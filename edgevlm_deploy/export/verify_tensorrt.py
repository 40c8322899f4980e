"""TensorRT's graphs against the torch model that computes with the same integers, in ONNX Runtime.

*Exact* are the written graphs with their fp16 tensors widened to fp32 and no optimisation: they must agree
with torch to `verify.TOLERANCE`, and give the same tokens. *Shipped* are the graphs as they are written;
what fp16 adds is measured and reported, apart from the effect of quantisation. TensorRT itself does not run
here.
"""

from __future__ import annotations

import tempfile
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from edgevlm_runner.contract import DualEncoderSpec, EncoderDecoderSpec, ModelSpec
from edgevlm_runner.inputs import Inputs
from edgevlm_runner.runtimes.emulation import SETTINGS, EmulatedTensorRt
from edgevlm_runner.runtimes.onnxruntime_encoder_decoder import OnnxEncoderDecoder
from edgevlm_runner.runtimes.onnxruntime_encoders import OnnxEncoders
from numpy.typing import NDArray

from edgevlm_deploy.export import graph
from edgevlm_deploy.export.observation import open_exactly
from edgevlm_deploy.export.passes import widen
from edgevlm_deploy.export.verify import (
    TOLERANCE,
    Floats,
    Verification,
    conclude,
    observe,
)
from edgevlm_deploy.export.verify_encoder_decoder import AnswerVerification, ObservedRuntime
from edgevlm_deploy.export.verify_encoder_decoder import conclude as conclude_answers
from edgevlm_deploy.export.verify_encoders import EncoderVerification, Observed, pixels_of
from edgevlm_deploy.export.verify_encoders import conclude as conclude_encoders
from edgevlm_deploy.quantize.table import QuantizedTable


class ObservedTensorRt(EmulatedTensorRt):
    """The emulation without optimisation; keeps what one question computed, until `clear`.

    The graphs are `write_observable`'s: their quantised inputs are outputs too.
    """

    def __init__(self, root: Path, spec: ModelSpec) -> None:
        super().__init__(root, spec, optimize=False)
        self.clear()

    def clear(self) -> None:
        self.features: Floats | None = None
        self.logits: list[Floats] = []
        self.states: list[Floats] = []
        self._pieces: dict[str, list[NDArray[np.int8]]] = defaultdict(list)

    @property
    def quantized(self) -> dict[str, NDArray[np.int8]]:
        """Module with a static activation → its int8 inputs, all rows one after the other: [rows, K]."""
        return {
            module: np.concatenate([one.reshape(-1, one.shape[-1]) for one in pieces])
            for module, pieces in self._pieces.items()
        }

    def encode_image(self, pixel_values: Floats) -> Floats:
        self.features = super().encode_image(pixel_values)
        return self.features

    def step(self, embeds: Floats, positions: NDArray[np.int64] | None = None) -> Floats:
        self.logits.append(super().step(embeds, positions))
        self.states.append(self.hidden())
        return self.logits[-1]

    def _run(self, component: str, inputs: dict[str, Any]) -> dict[str, Any]:
        outputs = super()._run(component, inputs)
        for name in [one for one in outputs if one.startswith(_OBSERVED)]:
            self._pieces[name[len(_OBSERVED) :]].append(outputs.pop(name))
        return outputs


_OBSERVED = "observed:"


def verify(
    reference: Any, table: QuantizedTable, spec: ModelSpec, root: Path, samples: Sequence[Inputs]
) -> Verification:
    """Compare the graphs below `root` with `reference`, the fake-quantised torch model.

    Raises ExportError when the widened graphs differ from it by more than `TOLERANCE`.
    """
    with tempfile.TemporaryDirectory(prefix="edgevlm-verify-") as temporary:
        exact = Path(temporary)
        for name in spec.graphs.values():
            (exact / name).parent.mkdir(parents=True, exist_ok=True)
            write_observable(root / name, exact / name)
        with ObservedTensorRt(exact, spec) as runtime:
            runtime.start(spec.max_context)
            observed = [observe(runtime, spec, sample) for sample in samples]
    with EmulatedTensorRt(root, spec) as shipped:
        return conclude(reference, table, spec, samples, observed, shipped, TOLERANCE)


def verify_encoders(
    reference: Any, table: QuantizedTable, spec: DualEncoderSpec, root: Path, samples: Sequence[Inputs]
) -> EncoderVerification:
    """The same for a dual encoder."""
    with tempfile.TemporaryDirectory(prefix="edgevlm-verify-") as temporary:
        exact = {name: Path(temporary) / f"{name}.onnx" for name in spec.graphs}
        for name, path in spec.graphs.items():
            write_observable(root / path, exact[name])
        vision, text = (_Observing(exact[name]) for name in ("vision_encoder", "text_encoder"))
        observed = []
        for sample in samples:
            image, seen = vision.run("pixel_values", pixels_of(sample))
            words, also = text.run("input_ids", sample.input_ids.astype(np.int32))
            observed.append(Observed(image, words, {**seen, **also}))
    with OnnxEncoders(root, spec, settings=SETTINGS) as shipped:
        return conclude_encoders(reference, table, samples, observed, shipped, TOLERANCE)


def verify_answers(
    reference: Any, table: QuantizedTable, spec: EncoderDecoderSpec, root: Path, samples: Sequence[Inputs]
) -> AnswerVerification:
    """The same for an encoder–decoder."""
    with tempfile.TemporaryDirectory(prefix="edgevlm-verify-") as temporary:
        exact = Path(temporary)
        for name in spec.graphs.values():
            (exact / name).parent.mkdir(parents=True, exist_ok=True)
            write_observable(root / name, exact / name)
        with _ObservedAnswers(exact, spec, optimize=False, settings=SETTINGS) as runtime:
            observed = [runtime.observe(sample) for sample in samples]
    with OnnxEncoderDecoder(root, spec, settings=SETTINGS) as shipped:
        return conclude_answers(reference, table, spec, samples, observed, shipped, TOLERANCE)


class _ObservedAnswers(ObservedRuntime):
    """On graphs of `write_observable`."""

    def _quantized(self, component: str, outputs: dict[str, Any]) -> dict[str, NDArray[np.int8]]:
        return {
            name[len(_OBSERVED) :]: array for name, array in outputs.items() if name.startswith(_OBSERVED)
        }


class _Observing:
    """One graph of `write_observable`."""

    def __init__(self, path: Path) -> None:
        self._session = open_exactly(path)

    def run(self, name: str, array: NDArray[Any]) -> tuple[Floats, dict[str, NDArray[np.int8]]]:
        """(the graph's own output, module → its int8 input)"""
        names = [one.name for one in self._session.get_outputs()]
        outputs = dict(zip(names, self._session.run(names, {name: array}), strict=True))
        seen = {one[len(_OBSERVED) :]: outputs[one] for one in names if one.startswith(_OBSERVED)}
        return outputs[names[0]], seen


def write_observable(path: Path, out: Path) -> None:
    """The graph at `path` in fp32, with the quantised input of every module as an output
    `observed:MODULE`.
    """
    import onnx_ir as ir

    model = graph.load(path)
    widen.widen(model)
    for module, node in _with_quantized_inputs(model).items():
        quantize = node.inputs[0].producer().inputs[0].producer()
        copy = ir.node("Identity", [quantize.outputs[0]], name=f"{module}/observed")
        copy.outputs[0].name = _OBSERVED + module
        copy.outputs[0].dtype, copy.outputs[0].shape = ir.DataType.INT8, quantize.outputs[0].shape
        model.graph.append(copy)
        model.graph.outputs.append(copy.outputs[0])
    graph.save(model, out)


def _with_quantized_inputs(model: Any) -> dict[str, Any]:
    """Module → its MatMul behind QuantizeLinear and DequantizeLinear."""
    found = {}
    for node in model.graph:
        module = graph.module_of(node)
        dequantize = node.inputs[0].producer() if node.op_type == "MatMul" else None
        if module is None or dequantize is None or dequantize.op_type != "DequantizeLinear":
            continue
        quantize = dequantize.inputs[0].producer()
        if quantize is not None and quantize.op_type == "QuantizeLinear":
            found[module] = node
    return found
