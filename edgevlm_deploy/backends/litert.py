"""LiteRT: one float .tflite from the fake-quantised model, integers written into it, read back, verified."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from edgevlm_runner.contract import DualEncoderSpec, EncoderDecoderSpec, Model, ModelSpec
from edgevlm_runner.inputs import Inputs
from edgevlm_runner.runtimes.litert import MODEL
from edgevlm_runner.runtimes.litert_encoder_decoder import (
    LiteRtEncoderDecoder,
    decode_signature,
    question_signature,
)
from edgevlm_runner.runtimes.litert_encoders import ENCODE_IMAGE, ENCODE_TEXT, LiteRtEncoders

from edgevlm_deploy.backends import CompiledGraphs
from edgevlm_deploy.backends.half import half_precision, in_half
from edgevlm_deploy.plan import Plan
from edgevlm_deploy.quantize.quantized_model import QuantizedModel
from edgevlm_deploy.quantize.table import QuantizedTable


def compile(
    load_source: Callable[[], Any],
    quantized: QuantizedModel | None,
    spec: Model,
    samples: Sequence[Inputs],
    out_dir: Path,
    plan: Plan,
    calibration: Callable[[], Iterable[Inputs]],
) -> CompiledGraphs:
    """See `edgevlm_deploy.backends.Compile`.

    plan         names the lengths that the graphs are made for, and the accelerator
    calibration  questions that give an NPU's activations their ranges; called once per signature
    """
    from edgevlm_deploy import paging
    from edgevlm_deploy.export import (
        tflite_integers,
        tflite_readback,
    )
    from edgevlm_deploy.quantize import fakequant

    made = in_half(quantized or QuantizedModel(QuantizedTable({})))
    parts = _parts(spec, plan)
    reference = fakequant.apply(half_precision(paging.unpaged(load_source())), made)
    path = out_dir / spec.graphs[MODEL]
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="edgevlm-litert-") as temporary:
        root = Path(temporary)
        exact = root / spec.graphs[MODEL]
        exact.parent.mkdir(parents=True)
        parts.export(reference, exact)
        bits = _activation_bits(plan)
        calibrated = None
        if bits:
            calibrated = tflite_integers.Calibrated(bits, parts.calls(root, calibration))
        tflite_integers.write(exact, made.table, path, calibrated)
        counted = tflite_readback.check(exact, path, made.table, bits)
        verification = parts.verify(reference, root, out_dir, samples)
    return CompiledGraphs(
        graphs=dict(spec.graphs),
        files={spec.graphs[MODEL]: path.stat().st_size},
        verification={**verification.numbers(), **dataclasses.asdict(counted)},
    )


def _parts(spec: Model, plan: Plan) -> _Parts:
    if isinstance(spec, DualEncoderSpec):
        return _Encoders(spec)
    return _EncoderDecoder(spec) if isinstance(spec, EncoderDecoderSpec) else _Generative(spec, plan)


class _Parts(Protocol):
    """What differs between kinds of models."""

    def export(self, source: Any, path: Path) -> None:
        """The float file."""

    def calls(
        self, root: Path, calibration: Callable[[], Iterable[Inputs]]
    ) -> Mapping[str, Iterable[Mapping[str, Any]]]:
        """Signature of the float file below `root` → its inputs while the calibration questions run."""

    def verify(self, reference: Any, exact: Path, root: Path, samples: Sequence[Inputs]) -> Any:
        """The float file below `exact` against torch, the file below `root` against that."""


@dataclasses.dataclass(frozen=True)
class _Generative:
    spec: ModelSpec
    plan: Plan

    @property
    def _lengths(self) -> Any:
        from edgevlm_deploy.export import litert

        caches, prefills = self.plan.recipe.generation.static_lengths(self.spec.max_context)
        # A prompt whose tokens all see each other is prefilled in one piece, however long it is.
        return litert.StaticLengths(caches, caches if self.spec.prefix else prefills)

    def export(self, source: Any, path: Path) -> None:
        from edgevlm_deploy.export import litert

        litert.export(source, self._lengths, path, self.spec.image, self.spec.hidden)

    def calls(
        self, root: Path, calibration: Callable[[], Iterable[Inputs]]
    ) -> Mapping[str, Iterable[Mapping[str, Any]]]:
        from edgevlm_deploy.export import tflite_calibration

        names = ["encode_image", *self._lengths.signatures()]
        return {one: tflite_calibration.calls(root, self.spec, one, calibration()) for one in names}

    def verify(self, reference: Any, exact: Path, root: Path, samples: Sequence[Inputs]) -> Any:
        from edgevlm_deploy.export import verify_litert

        return verify_litert.verify(reference, self.spec, exact, root, samples)


@dataclasses.dataclass(frozen=True)
class _Encoders:
    spec: DualEncoderSpec

    def export(self, source: Any, path: Path) -> None:
        from edgevlm_deploy.export import litert

        litert.export_encoders(source, self.spec.text, path)

    def calls(
        self, root: Path, calibration: Callable[[], Iterable[Inputs]]
    ) -> Mapping[str, Iterable[Mapping[str, Any]]]:
        return {
            ENCODE_IMAGE: (
                {"pixel_values": one.pixel_values} for one in calibration() if one.pixel_values is not None
            ),
            ENCODE_TEXT: ({"token_ids": one.input_ids.astype(np.int32)} for one in calibration()),
        }

    def verify(self, reference: Any, exact: Path, root: Path, samples: Sequence[Inputs]) -> Any:
        from edgevlm_deploy.export import verify_encoders
        from edgevlm_deploy.export.verify_litert import TOLERANCE

        with LiteRtEncoders(exact, self.spec) as runtime:
            observed = verify_encoders.observe_runtime(runtime, samples)
        with LiteRtEncoders(root, self.spec) as shipped:
            empty = QuantizedTable({})
            return verify_encoders.conclude(reference, empty, samples, observed, shipped, TOLERANCE)


@dataclasses.dataclass(frozen=True)
class _EncoderDecoder:
    spec: EncoderDecoderSpec

    def export(self, source: Any, path: Path) -> None:
        from edgevlm_deploy.export import litert_encoder_decoder

        litert_encoder_decoder.export(source, self.spec, path)

    def calls(
        self, root: Path, calibration: Callable[[], Iterable[Inputs]]
    ) -> Mapping[str, Iterable[Mapping[str, Any]]]:
        from edgevlm_deploy.export import tflite_calibration

        lengths = self.spec.question_lengths
        names = [ENCODE_IMAGE, *map(question_signature, lengths), *map(decode_signature, lengths)]
        return {one: tflite_calibration.answering_calls(root, self.spec, one, calibration()) for one in names}

    def verify(self, reference: Any, exact: Path, root: Path, samples: Sequence[Inputs]) -> Any:
        from edgevlm_deploy.export import verify_encoder_decoder
        from edgevlm_deploy.export.verify_litert import TOLERANCE

        with LiteRtEncoderDecoder(exact, self.spec) as runtime:
            observed = [verify_encoder_decoder.observe(runtime, self.spec, one) for one in samples]
        for length in self.spec.question_lengths:
            longer = dataclasses.replace(self.spec, question_lengths=(length,))
            with LiteRtEncoderDecoder(exact, longer) as runtime:
                verify_encoder_decoder.check_same_tokens(runtime, longer, samples, observed)
        with LiteRtEncoderDecoder(root, self.spec) as shipped:
            return verify_encoder_decoder.conclude(
                reference, QuantizedTable({}), self.spec, samples, observed, shipped, TOLERANCE
            )


def _activation_bits(plan: Plan) -> dict[str, int]:
    """Module → bits of its calibrated activations; empty for accelerators that compute in floats."""
    formats = {name: wanted.format for name, wanted in plan.request.items()}
    return {name: one.graph_activation_bits for name, one in formats.items() if one.graph_activation_bits}
