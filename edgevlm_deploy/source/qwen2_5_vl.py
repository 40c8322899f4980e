"""The family `qwen2_5_vl`: most layers of its vision encoder look within windows."""

from __future__ import annotations

from edgevlm_deploy.source.qwen_vl import QwenVl

FAMILY = QwenVl(
    model_type="qwen2_5_vl",
    class_name="Qwen2_5_VLForConditionalGeneration",
    projection="merger.mlp.0",
    default_heads=64,
    default_window=112,
)
