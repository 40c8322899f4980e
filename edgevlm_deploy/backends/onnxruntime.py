"""ONNX Runtime on a CPU: float graphs, integers written into them, read back, verified."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from edgevlm_runner.contract import DualEncoderSpec, EncoderDecoderSpec, Model, ModelSpec
from edgevlm_runner.inputs import Inputs

from edgevlm_deploy.backends import CompiledGraphs
from edgevlm_deploy.backends.half import half_precision, in_half
from edgevlm_deploy.quantize.quantized_model import QuantizedModel
from edgevlm_deploy.quantize.table import QuantizedTable

Exporter = Callable[[Any], Any]
"""Source model → float graph of one component."""


def compile(
    load_source: Callable[[], Any],
    quantized: QuantizedModel | None,
    spec: Model,
    samples: Sequence[Inputs],
    out_dir: Path,
) -> CompiledGraphs:
    """See `edgevlm_deploy.backends.Compile`."""
    from edgevlm_deploy.export import verify, verify_encoder_decoder, verify_encoders
    from edgevlm_deploy.quantize import fakequant

    made = in_half(quantized or QuantizedModel(QuantizedTable({})))
    files = _write(half_precision(load_source()), made, spec, out_dir)
    reference = fakequant.apply(half_precision(load_source()), made)
    verification: Any
    if isinstance(spec, DualEncoderSpec):
        verification = verify_encoders.verify(reference, made.table, spec, out_dir, samples)
    elif isinstance(spec, EncoderDecoderSpec):
        verification = verify_encoder_decoder.verify(reference, made.table, spec, out_dir, samples)
    else:
        verification = verify.verify(reference, made.table, spec, out_dir, samples)
    return CompiledGraphs(
        graphs=dict(spec.graphs),
        files={str(path.relative_to(out_dir)): path.stat().st_size for path in files},
        verification=verification.numbers(),
    )


def _write(source: Any, quantized: QuantizedModel, spec: Model, out_dir: Path) -> list[Path]:
    """Export one component after the other, so that one float graph at a time is in memory."""
    from edgevlm_deploy.export import readback
    from edgevlm_deploy.quantize import fakequant

    # The integers are written into the graph later; here only the floats change.
    fakequant.apply(source, dataclasses.replace(quantized, table=QuantizedTable({})))

    exporters = _exporters(spec)
    files: list[Path] = []
    found: set[str] = set()
    for component, export in exporters.items():
        path = out_dir / spec.graphs[component]
        path.parent.mkdir(parents=True, exist_ok=True)
        modules, written = _write_component(export(source), quantized.table, path)
        readback.check(path, quantized.table, modules)
        files += written
        found |= modules
    quantized.table.require(found)
    return files


def _exporters(spec: Model) -> dict[str, Exporter]:
    if isinstance(spec, DualEncoderSpec):
        return _encoders(spec)
    return _encoder_decoder(spec) if isinstance(spec, EncoderDecoderSpec) else _generative(spec)


def _generative(spec: ModelSpec) -> dict[str, Exporter]:
    from edgevlm_deploy.export import onnx
    from edgevlm_deploy.export.passes import rms_norm, rotary

    def decoder(source: Any) -> Any:
        layer = None if spec.pruning is None else spec.pruning.layer
        model = onnx.export_decoder(source, layer, spec.hidden, spec.max_context)
        rms_norm.fuse_rms_norm(model)
        # The attention that takes the rotation in is always causal, and positions follow each other.
        if not spec.prefix and spec.position_rows == 1:
            rotary.fuse_rotary(model, *onnx.rotary_table(source, spec.max_context), layer)
        return model

    return {
        "vision_encoder": lambda source: onnx.export_vision_encoder(source, spec.image),
        "embedding": onnx.export_embedding,
        "decoder": decoder,
    }


def _encoders(spec: DualEncoderSpec) -> dict[str, Exporter]:
    from edgevlm_deploy.export import onnx_encoders

    return {
        "vision_encoder": onnx_encoders.export_vision_encoder,
        "text_encoder": lambda source: onnx_encoders.export_text_encoder(source, spec.text),
    }


def _encoder_decoder(spec: EncoderDecoderSpec) -> dict[str, Exporter]:
    from edgevlm_deploy.export import onnx_encoder_decoder

    return {
        "vision_encoder": lambda source: onnx_encoder_decoder.export_vision_encoder(source, spec),
        "text_encoder": lambda source: onnx_encoder_decoder.export_text_encoder(source, spec),
        "decoder": lambda source: onnx_encoder_decoder.export_decoder(source, spec),
    }


def _write_component(model: Any, table: QuantizedTable, path: Path) -> tuple[set[str], tuple[Path, ...]]:
    from onnx_ir.passes.common import RemoveUnusedNodesPass

    from edgevlm_deploy.export import graph
    from edgevlm_deploy.export.passes import (
        embedding_int8,
        half_initializers,
        matmul_integer,
        matmul_nbits,
        strip_traces,
    )

    modules = {
        *matmul_nbits.quantize_weights(model, table, matmul_nbits.INT8),
        *matmul_integer.quantize_static(model, table),
        *embedding_int8.quantize_embeddings(model, table),
    }
    RemoveUnusedNodesPass()(model)
    half_initializers.store_half(model)
    strip_traces.strip_traces(model)
    return modules, graph.save(model, path)
