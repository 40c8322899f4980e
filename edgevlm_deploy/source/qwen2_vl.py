"""The family `qwen2_vl`: every layer of its vision encoder sees the whole picture."""

from __future__ import annotations

from edgevlm_deploy.source.qwen_vl import QwenVl

FAMILY = QwenVl(
    model_type="qwen2_vl",
    class_name="Qwen2VLForConditionalGeneration",
    projection="merger.mlp.0",
    default_heads=64,
)
