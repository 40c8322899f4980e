"""Source models: a checkpoint folder or hub id, inspected without torch, loaded with transformers.

inspect     path or hub id → SourceModel (checked, digested, described)
load        SourceModel → torch model, float32, proved equal to what is stored
model_spec  SourceModel × recipe → ModelSpec, what the device must know
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgevlm_runner.contract import ModelSpec

from edgevlm_deploy.errors import CheckpointError
from edgevlm_deploy.recipe import Recipe
from edgevlm_deploy.source import idefics3
from edgevlm_deploy.source.checkpoint import open_checkpoint
from edgevlm_deploy.source.model import Architecture, SourceModel

__all__ = ["Architecture", "SourceModel", "inspect", "load", "model_spec"]


def inspect(path: str | Path, revision: str | None = None, offline: bool = False) -> SourceModel:
    """Check and describe a checkpoint: a folder in `save_pretrained` layout, or a hub id with a revision.

    Reads configuration, safetensors headers and digests; loads neither torch nor weights.
    Raises CheckpointError for what is missing, damaged, unsafe or of another model family.
    """
    checkpoint = open_checkpoint(path, revision, offline)
    family = checkpoint.config.get("model_type")
    if family not in idefics3.FAMILIES:
        raise CheckpointError(
            f"{checkpoint.path}: model family {family!r} is not supported; supported: "
            f"{', '.join(idefics3.FAMILIES)}."
        )
    return idefics3.describe(checkpoint)


def load(source: SourceModel) -> Any:
    """The torch model (transformers class): float32 on the CPU, eval mode, sdpa attention.

    Raises CheckpointError when a weight is missing, unexpected or not loaded as it is stored.
    """
    return idefics3.load(source)


def model_spec(source: SourceModel, recipe: Recipe, runtime: str, graphs: Mapping[str, str]) -> ModelSpec:
    """What the runner must know about the compiled model; see `specification.model_spec`."""
    from edgevlm_deploy.source import specification

    return specification.model_spec(source, recipe, runtime, graphs)
