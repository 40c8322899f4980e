"""Float ONNX graphs of a dual encoder for ONNX Runtime, traced from transformers' own modules."""

from __future__ import annotations

from typing import Any

import onnx_ir as ir
import torch
from edgevlm_runner.contract import TextSpec

from edgevlm_deploy.export import onnx
from edgevlm_deploy.export.attention import MULTI_HEAD_ATTENTION, attention
from edgevlm_deploy.export.encoders import PictureEncoder, TextEncoder


def export_vision_encoder(source: Any) -> ir.Model:
    """pixel_values float32 [pictures, 3, S, S] → image_embeds float32 [pictures, D]."""
    side = source.config.vision_config.image_size
    with attention(source.vision_model.config, MULTI_HEAD_ATTENTION):
        return onnx.trace(
            PictureEncoder(source),
            (torch.zeros(2, 3, side, side),),
            ({0: "pictures"},),
            ["pixel_values"],
            ["image_embeds"],
        )


def export_text_encoder(source: Any, text: TextSpec) -> ir.Model:
    """input_ids int64 [texts, tokens] → text_embeds float32 [texts, D]; padded rows have one length."""
    ids = torch.zeros(2, text.length, dtype=torch.int64)
    axes = {0: "texts"} if text.padded else {0: "texts", 1: "tokens"}
    with attention(source.text_model.config, MULTI_HEAD_ATTENTION):
        return onnx.trace(TextEncoder(source, text), (ids,), (axes,), ["input_ids"], ["text_embeds"])
