"""TensorRT: fp16 or fp32 graphs with explicit quantisation, read back, linted and verified in ONNX Runtime.

What goes into a bundle is portable; engines are built on the device, where the GPU and the driver are known.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from edgevlm_runner.contract import (
    DualEncoderSpec,
    EncoderDecoderSpec,
    Model,
    ModelSpec,
    Profiles,
    sides,
)
from edgevlm_runner.inputs import Inputs
from edgevlm_runner.preprocess import most_tiles
from edgevlm_runner.runtimes import decoder_window
from edgevlm_runner.runtimes.onnxruntime_encoder_decoder import layer_names

from edgevlm_deploy.backends import CompiledGraphs
from edgevlm_deploy.backends.half import half_precision, in_half
from edgevlm_deploy.errors import ExportError, PlanError
from edgevlm_deploy.plan import Plan
from edgevlm_deploy.quantize.quantized_model import QuantizedModel
from edgevlm_deploy.quantize.table import QuantizedTable
from edgevlm_deploy.target import Target

INT4_OPSET = 21
"""The first with INT4 in blocks. Without it the graphs stay at 20, the last one that TensorRT 10.3
documents.
"""
WEAKLY_TYPED_OPSET = 17
STANDARD_OPSET = 24
QUESTION_TOKENS = 32
"""Text of a usual prompt, where the recipe does not say."""


def compile(
    load_source: Callable[[], Any],
    quantized: QuantizedModel | None,
    spec: Model,
    samples: Sequence[Inputs],
    out_dir: Path,
    plan: Plan,
) -> CompiledGraphs:
    """See `edgevlm_deploy.backends.Compile`; the plan's target names the release."""
    from edgevlm_deploy import paging
    from edgevlm_deploy.export import verify_tensorrt
    from edgevlm_deploy.quantize import fakequant

    made = in_half(quantized or QuantizedModel(QuantizedTable({})))

    chosen = dialect(plan.target, with_int4=any(linear.bits == 4 for linear in made.table.values()))

    def load() -> Any:
        source = half_precision(paging.unpaged(load_source()))
        return _half_constants(source) if chosen.half else source

    with _half_scores(spec, chosen):
        files = _write(load(), made, spec, out_dir, chosen)
        estimates = _lint(spec, out_dir, plan.target)
        reference = fakequant.apply(load(), made)
        verification: Any
        if isinstance(spec, DualEncoderSpec):
            verification = verify_tensorrt.verify_encoders(reference, made.table, spec, out_dir, samples)
        elif isinstance(spec, EncoderDecoderSpec):
            verification = verify_tensorrt.verify_answers(reference, made.table, spec, out_dir, samples)
        else:
            verification = verify_tensorrt.verify(reference, made.table, spec, out_dir, samples)
    return CompiledGraphs(
        graphs=dict(spec.graphs),
        files={str(path.relative_to(out_dir)): path.stat().st_size for path in files},
        verification={
            **verification.numbers(),
            "exact_modules": len(made.table),
            "exact_integers": sum(linear.q.size for linear in made.table.values()),
            **estimates,
        },
    )


@contextlib.contextmanager
def _half_scores(spec: Model, chosen: Any) -> Iterator[None]:
    """What `_half_constants` does, for attention that computes its scale anew each time."""
    if not (chosen.half and isinstance(spec, EncoderDecoderSpec)):
        yield
        return
    from edgevlm_deploy.export import encoder_decoder

    with encoder_decoder.half_scores():
        yield


def _half_constants(source: Any) -> Any:
    """Round what attention scores, the inputs of CLIP's GELU and Gemma's embeddings are multiplied by to
    fp16, in place: fp16 graphs hold them as constants."""
    import torch
    from transformers.activations import QuickGELUActivation

    def quick_gelu(x: Any) -> Any:
        return x * torch.sigmoid(_HALF_QUICK_GELU * x)

    for module in source.modules():
        for name in ("scale", "scaling"):
            if isinstance(getattr(module, name, None), float):
                setattr(module, name, float(np.float16(getattr(module, name))))
        scale = getattr(module, "embed_scale", None)
        if isinstance(scale, torch.Tensor):
            scale.copy_(scale.half())
        if isinstance(module, QuickGELUActivation):
            module.forward = quick_gelu
    return source


_HALF_QUICK_GELU = float(np.float16(1.702))


def dialect(target: Target, with_int4: bool) -> Any:
    """What the target's release of TensorRT knows, as an `export.tensorrt.Dialect`."""
    from edgevlm_deploy.export.tensorrt import Dialect
    from edgevlm_deploy.lint.generations import generation

    release = generation(target.software["tensorrt"])
    half = release.since >= (10, 0)
    standard = {"Attention", "RotaryEmbedding", "RMSNormalization", "TensorScatter"} <= set(release.operators)
    opset = min(WEAKLY_TYPED_OPSET, release.opset[1])
    if half:
        opset = STANDARD_OPSET if standard else INT4_OPSET if with_int4 else INT4_OPSET - 1
    return Dialect(
        opset=opset, half=half, standard=standard, layer_norm="LayerNormalization" in release.operators
    )


def profiles(target: Target, spec: ModelSpec, usual_tiles: int | None, usual_tokens: int | None) -> Profiles:
    """Smallest, usual and largest shapes of every input: what the engines are built for.

    usual_tiles, usual_tokens: what to tune for; one tile, and all tokens of a picture of that many tiles with
    a short question, where they are None.
    """
    context, width = spec.max_context, spec.embed_size
    (height, wide), most = sides(spec.image), most_tiles(spec.image)
    tiles = min(usual_tiles or most, most)
    usual = usual_tokens or tiles * spec.prompt.tokens_per_tile + QUESTION_TOKENS
    usual = min(usual, context)

    rows = [spec.position_rows] if spec.position_rows > 1 else []

    def fixed(shape: list[int]) -> list[list[int]]:
        return [shape, shape, shape]

    def decoder(tokens: tuple[int, int, int]) -> dict[str, list[list[int]]]:
        least, longest = decoder_window.SMALLEST_PAST, decoder_window.rows(context)
        pasts = (least, decoder_window.bucket(usual, context), longest)
        inputs = {
            "inputs_embeds": [[1, n, width] for n in tokens],
            "position_ids": [[*rows, 1, n] for n in tokens],
            "mask": [[1, 1, n, n + past] for n, past in zip(tokens, pasts, strict=True)],
        }
        cache = [[1, past, spec.kv_heads, spec.head_dim] for past in pasts]
        if standard:
            inputs["mask"] = [[1, 1, n, context] for n in tokens]
            inputs["write_index"] = fixed([1])
            cache = fixed([1, spec.kv_heads, context, spec.head_dim])
        for layer in range(spec.layers):
            inputs |= {f"past_key.{layer}": cache, f"past_value.{layer}": cache}
        return inputs

    standard = dialect(target, with_int4=False).standard
    return {
        "vision_encoder": [{"pixel_values": [[n, 3, height, wide] for n in (1, tiles, most)]}],
        "embedding": [{"input_ids": [[1, n] for n in (1, usual, context)]}],
        "decoder": [decoder((1, usual, context)), decoder((1, 1, 1))],
    }


def encoder_profiles(spec: DualEncoderSpec) -> Profiles:
    """One picture, one text: a camera gives pictures one by one, and texts are embedded once."""
    side = spec.image.side
    return {
        "vision_encoder": [{"pixel_values": [[1, 3, side, side]] * 3}],
        "text_encoder": [{"input_ids": [[1, spec.text.length]] * 3}],
    }


def answering_profiles(spec: EncoderDecoderSpec) -> Profiles:
    """One picture, one question of any length, one token of the answer at a time."""
    side, longest = spec.image.side, spec.question_lengths[-1]
    lengths = (1, min(QUESTION_TOKENS, longest), longest)
    states = [[1, spec.image_tokens, spec.hidden_size]] * 3
    cross = [[1, spec.heads, tokens, spec.head_dim] for tokens in lengths]
    cache = [[1, spec.heads, spec.max_new_tokens, spec.head_dim]] * 3
    return {
        "vision_encoder": [{"pixel_values": [[1, 3, side, side]] * 3}],
        "text_encoder": [{"input_ids": [[1, tokens] for tokens in lengths], "image_states": states}],
        "decoder": [
            {
                "input_ids": [[1, 1]] * 3,
                "position": [[1]] * 3,
                **dict.fromkeys(layer_names("cross", spec.layers), cross),
                **dict.fromkeys(layer_names("past", spec.layers), cache),
            }
        ],
    }


def _write(source: Any, quantized: QuantizedModel, spec: Model, out_dir: Path, chosen: Any) -> list[Path]:
    """Export one component after the other, so that one float graph at a time is in memory."""
    from onnx_ir.passes.common import RemoveUnusedNodesPass

    from edgevlm_deploy.export import graph, readback
    from edgevlm_deploy.export.passes import half_initializers, quantize_dequantize, strip_traces
    from edgevlm_deploy.quantize import fakequant

    table = quantized.table
    fakequant.apply(source, dataclasses.replace(quantized, table=QuantizedTable({})))
    exporters = _exporters(source, spec, chosen)
    files: list[Path] = []
    found: set[str] = set()
    for component, export in exporters.items():
        path = out_dir / spec.graphs[component]
        path.parent.mkdir(parents=True, exist_ok=True)
        model = export()
        modules = quantize_dequantize.insert(model, table)
        RemoveUnusedNodesPass()(model)
        if not chosen.half:
            half_initializers.store_half(model)
        strip_traces.strip_traces(model)
        files += graph.save(model, path)
        readback.check(path, table, modules)
        found |= modules
    table.require(found)
    return files


def _exporters(source: Any, spec: Model, chosen: Any) -> dict[str, Callable[[], Any]]:
    from edgevlm_deploy.export import tensorrt, tensorrt_encoder_decoder, tensorrt_encoders

    if isinstance(spec, DualEncoderSpec):
        text = spec.text
        return {
            "vision_encoder": lambda: tensorrt_encoders.export_vision_encoder(source, chosen),
            "text_encoder": lambda: tensorrt_encoders.export_text_encoder(source, text, chosen),
        }
    if isinstance(spec, EncoderDecoderSpec):
        return tensorrt_encoder_decoder.exporters(source, spec, chosen)
    context, hidden = spec.max_context, spec.hidden
    return {
        "vision_encoder": lambda: tensorrt.export_vision_encoder(source, chosen, spec.image),
        "embedding": lambda: tensorrt.export_embedding(source, chosen),
        "decoder": lambda: tensorrt.export_decoder(source, chosen, context, hidden),
    }


def _lint(spec: Model, out_dir: Path, target: Target) -> Mapping[str, int]:
    """Every rule on every graph; returns the memory estimates. Raises ExportError for what TensorRT
    refuses.
    """
    from edgevlm_deploy.lint import tensorrt
    from edgevlm_deploy.lint.subject import Profile, Severity

    weights = activations = 0
    for component, name in spec.graphs.items():
        ranges: dict[str, Profile] = {}
        for profile in spec.profiles[component]:
            for value, shapes in profile.items():
                low, usual, high = (tuple(shape) for shape in shapes)
                before = ranges.get(value)
                ranges[value] = Profile(
                    low if before is None else tuple(map(min, low, before.min)),
                    usual if before is None else before.opt,
                    high if before is None else tuple(map(max, high, before.max)),
                )
        report = tensorrt.lint(out_dir / name, target, ranges)
        refused = [one for one in report.findings if one.severity is Severity.ERROR]
        if any(one.rule == "memory" for one in refused):
            raise PlanError(next(one.message for one in refused if one.rule == "memory"))
        if refused:
            lines = "\n".join(f"  {one.rule}: {one.where}: {one.message}" for one in refused)
            raise ExportError(f"TensorRT {report.release} would refuse the {component}:\n{lines}")
        weights += report.memory.weights_bytes
        activations = max(activations, report.memory.total_bytes - report.memory.weights_bytes)
    return {"estimated_weights_bytes": weights, "estimated_memory_bytes": weights + activations}
