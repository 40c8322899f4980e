"""The family `qwen3_vl`: a learned table of positions beside the rotary ones, and features of several layers
of the vision encoder that are added behind the first layers of the decoder (DeepStack).
"""

from __future__ import annotations

from edgevlm_deploy.source.qwen_vl import QwenVl

FAMILY = QwenVl(
    model_type="qwen3_vl",
    class_name="Qwen3VLForConditionalGeneration",
    projection="merger.linear_fc1",
    default_heads=32,
)
