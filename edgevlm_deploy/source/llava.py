"""The family `llava`: CLIP's (or SigLIP's) ViT up to its last layer but one, an MLP, a Llama-like decoder.

Liu et al., "Improved Baselines with Visual Instruction Tuning", CVPR 2024 (LLaVA-1.5).
"""

from __future__ import annotations

from typing import Any

from edgevlm_runner.contract import FrameSpec, PromptSpec

from edgevlm_deploy.recipe import Recipe
from edgevlm_deploy.source import tower
from edgevlm_deploy.source.checkpoint import Checkpoint
from edgevlm_deploy.source.frames import frame
from edgevlm_deploy.source.model import SourceModel
from edgevlm_deploy.source.specification import chat_prompt

LAYOUT = tower.Layout(
    class_name="LlavaForConditionalGeneration",
    language_models=("llama", "mistral", "qwen2"),
    feature_layer=-2,
    select="default",
    image_token_id=32000,
    last_projection="linear_2",
)


def describe(checkpoint: Checkpoint) -> SourceModel:
    """Raises CheckpointError when tensors are missing or disagree with the configuration."""
    return tower.describe(checkpoint, LAYOUT)


def load(source: SourceModel) -> Any:
    """Raises CheckpointError when transformers leaves out, adds or changes a single weight."""
    return tower.load(source, LAYOUT)


def image_spec(source: SourceModel, recipe: Recipe) -> FrameSpec:
    """One square, as the image processor of the tower makes it."""
    return frame(source)


def prompt_spec(source: SourceModel, tokenizer: Any) -> PromptSpec:
    """The chat template; nothing surrounds the image tokens."""
    return chat_prompt(source, tokenizer)
