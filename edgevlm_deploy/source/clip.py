"""The family `clip`: a ViT and a causal text transformer, each with a linear projection.

Radford et al., "Learning Transferable Visual Models From Natural Language Supervision", ICML 2021.
"""

from __future__ import annotations

from typing import Any

from edgevlm_deploy.source import dual_encoder
from edgevlm_deploy.source.checkpoint import Checkpoint
from edgevlm_deploy.source.model import SourceModel

LAYOUT = dual_encoder.Layout(
    class_name="CLIPModel",
    projectors=("visual_projection", "text_projection"),
    text_projection="text_projection",
    extra_patches=1,
)


def describe(checkpoint: Checkpoint) -> SourceModel:
    """Raises CheckpointError when tensors are missing or disagree with the configuration."""
    return dual_encoder.describe(checkpoint, LAYOUT)


def load(source: SourceModel) -> Any:
    """Raises CheckpointError when transformers leaves out, adds or changes a single weight."""
    return dual_encoder.load(source, LAYOUT)
