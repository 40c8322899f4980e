"""What the families CLIP and SigLIP share: a vision encoder and a text encoder side by side."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from edgevlm_deploy.errors import CheckpointError
from edgevlm_deploy.recipe import Component
from edgevlm_deploy.source import loading
from edgevlm_deploy.source.checkpoint import Checkpoint
from edgevlm_deploy.source.header import StoredTensor, stored_dtype
from edgevlm_deploy.source.model import DualArchitecture, SourceModel
from edgevlm_deploy.source.numbers import matrices, number, section, shape

PREFIXES = {
    Component.VISION_ENCODER.value: "vision_model.encoder",
    Component.TEXT_ENCODER.value: "text_model.encoder",
    Component.EMBEDDING.value: "text_model.embeddings.token_embedding",
}
PATCHES = "vision_model.embeddings.patch_embedding.weight"
PATCH_POSITIONS = "vision_model.embeddings.position_embedding.weight"
TOKENS = "text_model.embeddings.token_embedding.weight"
TOKEN_POSITIONS = "text_model.embeddings.position_embedding.weight"
LOGIT_SCALE, LOGIT_BIAS = "logit_scale", "logit_bias"


@dataclass(frozen=True)
class Layout:
    """What tells one family of dual encoders from another."""

    class_name: str
    """In transformers."""
    projectors: tuple[str, ...]
    """Linear layers between the encoders and the common space."""
    text_projection: str
    """The last of them on the side of the text: its rows are the common space."""
    extra_patches: int
    """Places in the vision encoder's sequence that are no patches (CLIP's class token)."""
    default_image_size: int = 224


def describe(checkpoint: Checkpoint, layout: Layout) -> SourceModel:
    """The model's components and numbers from its configuration and its tensors' shapes.

    Raises CheckpointError when tensors are missing or disagree with the configuration.
    """
    tensors = checkpoint.tensors
    shapes = matrices(tensors, (PATCH_POSITIONS, TOKEN_POSITIONS))
    missing = [name for name in layout.projectors if name not in shapes]
    if missing:
        raise CheckpointError(
            f"{checkpoint.path}: has no {missing[0]}.weight; these are not the weights of "
            f"a {checkpoint.config['model_type']} model."
        )
    modules = {component: _below(prefix, shapes) for component, prefix in PREFIXES.items()}
    modules[Component.PROJECTOR.value] = layout.projectors
    return SourceModel(
        path=checkpoint.path,
        name=checkpoint.name,
        revision=checkpoint.revision,
        digest=checkpoint.digest,
        family=str(checkpoint.config["model_type"]),
        dtype=stored_dtype(tensors),
        weight_files=tuple(sorted({tensor.file for tensor in tensors.values()})),
        architecture=_architecture(checkpoint, layout),
        prefixes=PREFIXES,
        modules=modules,
        shapes=shapes,
        parameters=sum(tensor.values for tensor in tensors.values()),
        tied_head=False,
    )


def _below(prefix: str, names: Collection[str]) -> tuple[str, ...]:
    return tuple(name for name in names if f"{name}.".startswith(f"{prefix}."))


def _architecture(checkpoint: Checkpoint, layout: Layout) -> DualArchitecture:
    vision = section(checkpoint, "vision_config")
    patch_size = shape(checkpoint, PATCHES, 4)[-1]
    places = shape(checkpoint, PATCH_POSITIONS, 2)[0]
    vocab_size = shape(checkpoint, TOKENS, 2)[0]
    image_size = number(checkpoint, vision, "image_size", layout.default_image_size)
    if (image_size // patch_size) ** 2 + layout.extra_patches != places:
        raise CheckpointError(
            f"{checkpoint.path}: config and weights disagree: image_size {image_size}, patch_size "
            f"{patch_size}, {places} places in the vision encoder. They are of different models."
        )
    return DualArchitecture(
        image_size=image_size,
        patch_size=patch_size,
        vision_layers=_layers(checkpoint.tensors, Component.VISION_ENCODER),
        text_layers=_layers(checkpoint.tensors, Component.TEXT_ENCODER),
        max_text=shape(checkpoint, TOKEN_POSITIONS, 2)[0],
        vocab_size=vocab_size,
        projection_size=shape(checkpoint, f"{layout.text_projection}.weight", 2)[0],
    )


def _layers(tensors: Mapping[str, StoredTensor], component: Component) -> int:
    prefix = f"{PREFIXES[component.value]}.layers."
    return len({name.removeprefix(prefix).split(".")[0] for name in tensors if name.startswith(prefix)})


def load(source: SourceModel, layout: Layout) -> Any:
    """The transformers model with the checkpoint's weights as float32, on the CPU, in eval mode.

    The text encoder computes its attention in plain operators with its mask as a tensor, so that a
    quantiser which watches the stack of layers alone is given the mask too.
    Raises CheckpointError when transformers leaves out, adds or changes a single weight.
    """
    model = loading.load(source, layout.class_name, {"vision_config": "sdpa", "text_config": "eager"})
    text, vision = model.config.text_config, model.config.vision_config
    theirs = DualArchitecture(
        image_size=vision.image_size,
        patch_size=vision.patch_size,
        vision_layers=vision.num_hidden_layers,
        text_layers=text.num_hidden_layers,
        max_text=text.max_position_embeddings,
        vocab_size=text.vocab_size,
        projection_size=model.get_submodule(layout.text_projection).weight.shape[0],
    )
    assert isinstance(source.architecture, DualArchitecture)
    loading.check_architecture(source, theirs)
    loading.check_weights(model, source)
    return model
