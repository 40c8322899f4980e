"""Float ONNX graphs of an encoder–decoder, traced from transformers' own modules; for their signatures see
`edgevlm_runner.runtimes.onnxruntime_encoder_decoder`.

integer: type of tokens and positions. Floats have the type of the model's weights.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import onnx_ir as ir
import torch
from edgevlm_runner.contract import EncoderDecoderSpec
from edgevlm_runner.runtimes.onnxruntime_encoder_decoder import layer_names

from edgevlm_deploy.export import onnx
from edgevlm_deploy.export.encoder_decoder import AnswerDecoder, PictureStates, QuestionEncoder

TOKENS = 5
"""Of the sample question; any other number of tokens will do as well."""

Trace = Callable[..., ir.Model]
"""`onnx.trace`, or what takes the same first five arguments."""


def export_vision_encoder(source: Any, spec: EncoderDecoderSpec, trace: Trace = onnx.trace) -> ir.Model:
    """pixel_values [1, 3, S, S] → image_states [1, image tokens, D]."""
    pixels = torch.zeros(1, 3, spec.image.side, spec.image.side, dtype=_dtype(source))
    return trace(PictureStates(source), (pixels,), (None,), ["pixel_values"], ["image_states"])


def export_text_encoder(
    source: Any, spec: EncoderDecoderSpec, trace: Trace = onnx.trace, integer: Any = torch.int64
) -> ir.Model:
    """input_ids [1, tokens], image_states → question_states [1, tokens, D], cross_key.N …"""
    states = torch.zeros(1, spec.image_tokens, spec.hidden_size, dtype=_dtype(source))
    return trace(
        QuestionEncoder(source, spec),
        (torch.ones(1, TOKENS, dtype=integer), states),
        ({1: "tokens"}, None),
        ["input_ids", "image_states"],
        ["question_states", *layer_names("cross", spec.layers)],
    )


def export_decoder(
    source: Any, spec: EncoderDecoderSpec, trace: Trace = onnx.trace, integer: Any = torch.int64
) -> ir.Model:
    """input_ids [1, 1], position [1], cross_key.N …, past_key.N … → logits [1, V], present_…"""
    shape = (1, spec.heads, TOKENS, spec.head_dim)
    dtype = _dtype(source)
    cross = tuple(torch.zeros(shape, dtype=dtype) for _ in range(2 * spec.layers))
    cache = (1, spec.heads, spec.max_new_tokens, spec.head_dim)
    past = tuple(torch.zeros(cache, dtype=dtype) for _ in range(2 * spec.layers))
    return trace(
        AnswerDecoder(source, spec),
        (torch.ones(1, 1, dtype=integer), torch.ones(1, dtype=integer), cross, past),
        (None, None, tuple({2: "tokens"} for _ in cross), tuple({} for _ in past)),
        [
            "input_ids",
            "position",
            *layer_names("cross", spec.layers),
            *layer_names("past", spec.layers),
        ],
        ["logits", *layer_names("present", spec.layers)],
    )


def _dtype(source: Any) -> Any:
    return source.vision_model.post_layernorm.weight.dtype
