"""Float ONNX graphs of an encoder–decoder in the words that one generation of TensorRT knows.

Names and shapes are those of ONNX Runtime's graphs; tokens and positions are int32.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import onnx_ir as ir
import torch
from edgevlm_runner.contract import EncoderDecoderSpec

from edgevlm_deploy.export import onnx_encoder_decoder
from edgevlm_deploy.export.tensorrt import Dialect, cast, layer_norms, trace


def exporters(source: Any, spec: EncoderDecoderSpec, dialect: Dialect) -> dict[str, Callable[[], ir.Model]]:
    """component → what traces its graph."""
    in_dialect = functools.partial(trace, dialect=dialect)

    def export(component: Callable[..., ir.Model], **integer: Any) -> ir.Model:
        with layer_norms(dialect):
            return component(cast(source, dialect), spec, in_dialect, **integer)

    return {
        "vision_encoder": lambda: export(onnx_encoder_decoder.export_vision_encoder),
        "text_encoder": lambda: export(onnx_encoder_decoder.export_text_encoder, integer=torch.int32),
        "decoder": lambda: export(onnx_encoder_decoder.export_decoder, integer=torch.int32),
    }
