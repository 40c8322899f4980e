"""Source models: a checkpoint folder or hub id, inspected without torch, loaded with transformers.

inspect     path or hub id → SourceModel (checked, digested, described)
load        SourceModel → torch model, float32, proved equal to what is stored
model_spec  SourceModel × recipe → ModelSpec, what the device must know
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from edgevlm_runner.contract import DUAL_ENCODER, ENCODER_DECODER, AnyresSpec, Model, ModelSpec

from edgevlm_deploy.errors import CheckpointError
from edgevlm_deploy.recipe import Recipe
from edgevlm_deploy.source import (
    blip,
    clip,
    idefics3,
    llava,
    llava_next,
    paligemma,
    qwen2_5_vl,
    qwen2_vl,
    qwen3_vl,
    siglip,
    specification,
)
from edgevlm_deploy.source.checkpoint import Checkpoint, open_checkpoint
from edgevlm_deploy.source.model import (
    AnyArchitecture,
    Architecture,
    DualArchitecture,
    EncoderDecoderArchitecture,
    SourceModel,
)
from edgevlm_deploy.source.specification import Picturing

__all__ = [
    "AnyArchitecture",
    "Architecture",
    "DualArchitecture",
    "EncoderDecoderArchitecture",
    "SourceModel",
    "inspect",
    "load",
    "model_spec",
]


class Family(Protocol):
    """A module of this package that knows one kind of checkpoint."""

    def describe(self, checkpoint: Checkpoint) -> SourceModel: ...

    def load(self, source: SourceModel) -> Any: ...


class Generative(Family, Picturing, Protocol):
    """The same for checkpoints whose decoder reads picture and question."""


GENERATIVE: Mapping[str, Generative] = {
    **dict.fromkeys(idefics3.FAMILIES, idefics3),
    "llava": llava,
    "llava_next": llava_next.NEXT,
    "llava_onevision": llava_next.ONEVISION,
    "paligemma": paligemma,
    "qwen2_vl": qwen2_vl.FAMILY,
    "qwen2_5_vl": qwen2_5_vl.FAMILY,
    "qwen3_vl": qwen3_vl.FAMILY,
}
DUAL_ENCODERS: Mapping[str, Family] = {"clip": clip, "siglip": siglip}
ENCODER_DECODERS: Mapping[str, Family] = {"blip": blip}
FAMILIES: Mapping[str, Family] = {**GENERATIVE, **DUAL_ENCODERS, **ENCODER_DECODERS}
"""`model_type` in config.json → the module that knows it."""


def inspect(path: str | Path, revision: str | None = None, offline: bool = False) -> SourceModel:
    """Check and describe a checkpoint: a folder in `save_pretrained` layout, or a hub id with a revision.

    Reads configuration, safetensors headers and digests; loads neither torch nor weights.
    Raises CheckpointError for what is missing, damaged, unsafe or of another model family.
    """
    checkpoint = open_checkpoint(path, revision, offline)
    family = checkpoint.config.get("model_type")
    if family not in FAMILIES:
        raise CheckpointError(
            f"{checkpoint.path}: model family {family!r} is not supported; supported: {', '.join(FAMILIES)}."
        )
    return FAMILIES[str(family)].describe(checkpoint)


def load(source: SourceModel, spec: Model | None = None) -> Any:
    """The torch model (transformers class): float32 on the CPU, in eval mode.

    spec: where the recipe left out grids of tiles, the model must not choose them either.
    Raises CheckpointError when a weight is missing, unexpected or not loaded as it is stored.
    """
    model = FAMILIES[source.family].load(source)
    if isinstance(spec, ModelSpec) and isinstance(spec.image, AnyresSpec):
        model.config.image_grid_pinpoints = [
            list(grid) for grid in zip(spec.image.heights, spec.image.widths, strict=True)
        ]
    return model


def model_spec(
    source: SourceModel,
    recipe: Recipe,
    runtime: str,
    graphs: Mapping[str, str],
    labels: Sequence[str] = (),
) -> Model:
    """What the runner must know about the compiled model; see `specification.model_spec`,
    `dual_specification.model_spec` and `encoder_decoder_specification.model_spec`.

    labels: the classes in the data, for a dual encoder whose recipe names none.
    """
    if source.kind == DUAL_ENCODER:
        from edgevlm_deploy.source import dual_specification

        return dual_specification.model_spec(source, recipe, runtime, graphs, labels)
    if source.kind == ENCODER_DECODER:
        from edgevlm_deploy.source import encoder_decoder_specification

        return encoder_decoder_specification.model_spec(source, recipe, runtime, graphs)
    return specification.model_spec(source, recipe, runtime, graphs, GENERATIVE[source.family])
