"""LiteRT: one float .tflite from the fake-quantised model, integers written into it, read back, verified."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from edgevlm_runner.contract import ModelSpec
from edgevlm_runner.inputs import Inputs
from edgevlm_runner.runtimes.litert import MODEL

from edgevlm_deploy.backends import CompiledGraphs
from edgevlm_deploy.backends.half import half_precision, in_half
from edgevlm_deploy.plan import Plan
from edgevlm_deploy.quantize.quantized_model import QuantizedModel
from edgevlm_deploy.quantize.table import QuantizedTable


def compile(
    load_source: Callable[[], Any],
    quantized: QuantizedModel | None,
    spec: ModelSpec,
    samples: Sequence[Inputs],
    out_dir: Path,
    plan: Plan,
    calibration: Callable[[], Iterable[Inputs]],
) -> CompiledGraphs:
    """See `edgevlm_deploy.backends.Compile`.

    plan         names the lengths that the graphs are made for, and the accelerator
    calibration  questions that give an NPU's activations their ranges; called once per signature
    """
    from edgevlm_deploy.export import (
        litert,
        tflite_calibration,
        tflite_integers,
        tflite_readback,
        verify_litert,
    )
    from edgevlm_deploy.quantize import fakequant

    made = in_half(quantized or QuantizedModel(QuantizedTable({})))
    lengths = litert.StaticLengths(*plan.recipe.generation.static_lengths(spec.max_context))
    reference = fakequant.apply(half_precision(load_source()), made)
    path = out_dir / spec.graphs[MODEL]
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="edgevlm-litert-") as temporary:
        root = Path(temporary)
        exact = root / spec.graphs[MODEL]
        exact.parent.mkdir(parents=True)
        litert.export(reference, lengths, exact, spec.hidden)
        bits = _activation_bits(plan)
        calibrated = None
        if bits:
            names = ["encode_image", *lengths.signatures()]
            calls = {one: tflite_calibration.calls(root, spec, one, calibration()) for one in names}
            calibrated = tflite_integers.Calibrated(bits, calls)
        tflite_integers.write(exact, made.table, path, calibrated)
        counted = tflite_readback.check(exact, path, made.table, bits)
        verification = verify_litert.verify(reference, spec, root, out_dir, samples)
    return CompiledGraphs(
        graphs=dict(spec.graphs),
        files={spec.graphs[MODEL]: path.stat().st_size},
        verification={**verification.numbers(), **dataclasses.asdict(counted)},
    )


def _activation_bits(plan: Plan) -> dict[str, int]:
    """Module → bits of its calibrated activations; empty for accelerators that compute in floats."""
    formats = {name: wanted.format for name, wanted in plan.request.items()}
    return {name: one.graph_activation_bits for name, one in formats.items() if one.graph_activation_bits}
