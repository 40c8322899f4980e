"""The family `siglip`: a ViT pooled by attention and a bidirectional text transformer, with a sigmoid loss.

Zhai et al., "Sigmoid Loss for Language Image Pre-Training", ICCV 2023. The attention that pools the
patches keeps its weights in one matrix for query, key and value, and stays in fp16.
"""

from __future__ import annotations

from typing import Any

from edgevlm_deploy.source import dual_encoder
from edgevlm_deploy.source.checkpoint import Checkpoint
from edgevlm_deploy.source.model import SourceModel

LAYOUT = dual_encoder.Layout(
    class_name="SiglipModel",
    projectors=("vision_model.head.mlp.fc1", "vision_model.head.mlp.fc2", "text_model.head"),
    text_projection="text_model.head",
    extra_patches=0,
)


def describe(checkpoint: Checkpoint) -> SourceModel:
    """Raises CheckpointError when tensors are missing or disagree with the configuration."""
    return dual_encoder.describe(checkpoint, LAYOUT)


def load(source: SourceModel) -> Any:
    """Raises CheckpointError when transformers leaves out, adds or changes a single weight."""
    return dual_encoder.load(source, LAYOUT)
