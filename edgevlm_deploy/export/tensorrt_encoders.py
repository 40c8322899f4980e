"""Float ONNX graphs of a dual encoder in the words that one generation of TensorRT knows.

    vision_encoder  pixel_values [pictures, 3, S, S] → image_embeds [pictures, D]
    text_encoder    input_ids int32 [texts, T] → text_embeds [texts, D]

Rows of text have the text encoder's whole length, and a causal mask is a constant in the graph.
"""

from __future__ import annotations

from typing import Any

import onnx_ir as ir
import torch
from edgevlm_runner.contract import TextSpec

from edgevlm_deploy.export.attention import PLAIN_ATTENTION, STANDARD_ATTENTION, attention
from edgevlm_deploy.export.encoders import PictureEncoder, TextEncoder
from edgevlm_deploy.export.tensorrt import Dialect, cast, layer_norms, trace


def export_vision_encoder(source: Any, dialect: Dialect) -> ir.Model:
    side = source.config.vision_config.image_size
    wanted = STANDARD_ATTENTION if dialect.standard else PLAIN_ATTENTION
    with attention(source.vision_model.config, wanted), layer_norms(dialect):
        return trace(
            PictureEncoder(cast(source, dialect)),
            (torch.zeros(2, 3, side, side, dtype=dialect.dtype),),
            ({0: "pictures"},),
            ["pixel_values"],
            ["image_embeds"],
            dialect,
        )


def export_text_encoder(source: Any, text: TextSpec, dialect: Dialect) -> ir.Model:
    ids = torch.zeros(2, text.length, dtype=torch.int32)
    with attention(source.text_model.config, PLAIN_ATTENTION), layer_norms(dialect):
        return trace(
            TextEncoder(cast(source, dialect), text, with_mask=True),
            (ids,),
            ({0: "texts"},),
            ["input_ids"],
            ["text_embeds"],
            dialect,
        )
