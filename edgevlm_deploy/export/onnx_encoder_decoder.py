"""Float ONNX graphs of an encoder–decoder, traced from transformers' own modules."""

from __future__ import annotations

from typing import Any

import onnx_ir as ir
import torch
from edgevlm_runner.contract import EncoderDecoderSpec
from edgevlm_runner.runtimes.onnxruntime_encoder_decoder import layer_names

from edgevlm_deploy.export import onnx
from edgevlm_deploy.export.encoder_decoder import AnswerDecoder, PictureStates, QuestionEncoder

TOKENS = 5
"""Of the sample question; any other number of tokens will do as well."""


def export_vision_encoder(source: Any, spec: EncoderDecoderSpec, opset: int = onnx.OPSET) -> ir.Model:
    """pixel_values [1, 3, S, S] → image_states [1, image tokens, D]."""
    pixels = torch.zeros(1, 3, spec.image.side, spec.image.side, dtype=_dtype(source))
    return onnx.trace(
        PictureStates(source), (pixels,), (None,), ["pixel_values"], ["image_states"], opset=opset
    )


def export_text_encoder(source: Any, spec: EncoderDecoderSpec, opset: int = onnx.OPSET) -> ir.Model:
    """input_ids int64 [1, tokens], image_states → question_states [1, tokens, D], cross_key.N …"""
    states = torch.zeros(1, spec.image_tokens, spec.hidden_size, dtype=_dtype(source))
    return onnx.trace(
        QuestionEncoder(source, spec),
        (torch.ones(1, TOKENS, dtype=torch.int64), states),
        ({1: "tokens"}, None),
        ["input_ids", "image_states"],
        ["question_states", *layer_names("cross", spec.layers)],
        opset=opset,
    )


def export_decoder(source: Any, spec: EncoderDecoderSpec, opset: int = onnx.OPSET) -> ir.Model:
    """input_ids int64 [1, 1], position int64 [1], cross_key.N …, past_key.N … → logits [1, V], present_…"""
    shape = (1, spec.heads, TOKENS, spec.head_dim)
    dtype = _dtype(source)
    cross = tuple(torch.zeros(shape, dtype=dtype) for _ in range(2 * spec.layers))
    cache = (1, spec.heads, spec.max_new_tokens, spec.head_dim)
    past = tuple(torch.zeros(cache, dtype=dtype) for _ in range(2 * spec.layers))
    return onnx.trace(
        AnswerDecoder(source, spec),
        (torch.ones(1, 1, dtype=torch.int64), torch.ones(1, dtype=torch.int64), cross, past),
        (None, None, tuple({2: "tokens"} for _ in cross), tuple({} for _ in past)),
        [
            "input_ids",
            "position",
            *layer_names("cross", spec.layers),
            *layer_names("past", spec.layers),
        ],
        ["logits", *layer_names("present", spec.layers)],
        opset=opset,
    )


def _dtype(source: Any) -> Any:
    return source.vision_model.post_layernorm.weight.dtype
