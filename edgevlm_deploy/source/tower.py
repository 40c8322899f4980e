"""What LLaVA and its relatives share: a vision tower, a projector and a language model in a row.

transformers stores their tensors under older names than its modules have; here names are those of modules.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from edgevlm_deploy.errors import CheckpointError
from edgevlm_deploy.recipe import Component
from edgevlm_deploy.source import loading
from edgevlm_deploy.source.checkpoint import Checkpoint
from edgevlm_deploy.source.header import stored_dtype
from edgevlm_deploy.source.model import Architecture, SourceModel
from edgevlm_deploy.source.numbers import matrices, number, rope_theta, section, shape

TOWER, PROJECTOR, TEXT = "model.vision_tower", "model.multi_modal_projector", "model.language_model"
PREFIXES = {
    Component.VISION_ENCODER.value: f"{TOWER}.encoder",
    Component.PROJECTOR.value: PROJECTOR,
    Component.EMBEDDING.value: f"{TEXT}.embed_tokens",
    Component.DECODER.value: f"{TEXT}.layers",
    Component.HEAD.value: "lm_head",
}
EMBEDDING, HEAD = f"{TEXT}.embed_tokens.weight", "lm_head.weight"
PATCHES = f"{TOWER}.embeddings.patch_embedding.weight"
POSITIONS = f"{TOWER}.embeddings.position_embedding.weight"
KEYS = f"{TEXT}.layers.0.self_attn.k_proj.weight"
CLIP = "clip_vision_model"
TOWERS = (CLIP, "siglip_vision_model")

_OLDER_NAMES = (
    (re.compile(r"^language_model\.lm_head\."), "lm_head."),
    (re.compile(r"^language_model\.model\."), f"{TEXT}."),
    (re.compile(r"^(?:model\.)?vision_tower\.(?:vision_model\.)?"), f"{TOWER}."),
    (re.compile(r"^(?=multi_modal_projector\.|image_newline$)"), "model."),
)


@dataclass(frozen=True)
class TextDefaults:
    """What transformers' configuration of a language model says where a checkpoint's is silent."""

    heads: int
    max_context: int
    head_dim: int | None = None


LANGUAGE_MODELS = {
    "llama": TextDefaults(32, 2048),
    "mistral": TextDefaults(32, 131072),
    "qwen2": TextDefaults(32, 32768),
    "gemma": TextDefaults(16, 8192, 256),
}


@dataclass(frozen=True)
class Layout:
    """What tells one family from another."""

    class_name: str
    """In transformers."""
    language_models: tuple[str, ...]
    """`model_type` of the decoders that it may have."""
    feature_layer: int | None
    """Default of `vision_feature_layer`; None: always the tower's normed output."""
    select: str
    """Default of `vision_feature_select_strategy`: "default" drops the first place, "full" keeps all."""
    image_token_id: int
    last_projection: str
    """The projector's last linear layer, whose rows are the decoder's width."""
    tied: bool = False
    prefix: bool = False
    """As `Architecture.prefix`."""
    default_image_size: int = 336
    default_tower: str = CLIP
    newline: bool = False
    """Whether a learnt token ends each row of image tokens; it counts as the last of every tile."""


def module_name(stored: str) -> str:
    """The module's name for a tensor's name in the file."""
    for pattern, new in _OLDER_NAMES:
        name, found = pattern.subn(new, stored, count=1)
        if found:
            return name
    return stored


def describe(checkpoint: Checkpoint, layout: Layout) -> SourceModel:
    """The model's components and numbers from its configuration and its tensors' shapes.

    Layers of the tower behind the one whose output is used are no modules: they are never computed.
    Raises CheckpointError when tensors are missing or disagree with the configuration.
    """
    named = {module_name(name): tensor for name, tensor in checkpoint.tensors.items()}
    checkpoint = replace(checkpoint, tensors=named)
    tied = HEAD not in named
    config, text = checkpoint.config, section(checkpoint, "text_config")
    if tied and not config.get("tie_word_embeddings", text.get("tie_word_embeddings", layout.tied)):
        raise CheckpointError(f"{checkpoint.path}: has no {HEAD}, and its config does not tie the head.")
    architecture = _architecture(checkpoint, layout)
    unused = _unused(checkpoint, layout)
    shapes = {
        name: size for name, size in matrices(named, (POSITIONS,)).items() if not name.startswith(unused)
    }
    if tied:
        shapes["lm_head"] = shapes[PREFIXES[Component.EMBEDDING.value]]
    return SourceModel(
        path=checkpoint.path,
        name=checkpoint.name,
        revision=checkpoint.revision,
        digest=checkpoint.digest,
        family=str(config["model_type"]),
        dtype=stored_dtype(named),
        weight_files=tuple(sorted({tensor.file for tensor in named.values()})),
        architecture=architecture,
        prefixes=PREFIXES,
        modules={
            component: tuple(name for name in shapes if f"{name}.".startswith(f"{prefix}."))
            for component, prefix in PREFIXES.items()
        },
        shapes=shapes,
        parameters=sum(tensor.values for tensor in named.values()),
        tied_head=tied,
    )


def _unused(checkpoint: Checkpoint, layout: Layout) -> tuple[str, ...]:
    """Beginnings of the names of modules that give nothing to the picture's features."""
    layers = _count(checkpoint, f"{TOWER}.encoder.layers.")
    used = layers
    if layout.feature_layer is not None:
        chosen = checkpoint.config.get("vision_feature_layer", layout.feature_layer)
        if type(chosen) is not int or not -layers <= chosen <= layers:
            raise CheckpointError(
                f"{checkpoint.path}: vision_feature_layer in config.json is {chosen!r}, expected one of the "
                f"{layers} layers of its vision tower."
            )
        used = layers + 1 + chosen if chosen < 0 else chosen
    behind = (f"{TOWER}.encoder.layers.{layer}." for layer in range(used, layers))
    return (f"{TOWER}.head.", *behind)


def _architecture(checkpoint: Checkpoint, layout: Layout) -> Architecture:
    """Shapes where they tell, the configuration where they do not."""
    text, vision = (section(checkpoint, name) for name in ("text_config", "vision_config"))
    defaults = _text_defaults(checkpoint, layout, text)
    tower = vision.get("model_type", layout.default_tower)
    if tower not in TOWERS:
        raise CheckpointError(
            f"{checkpoint.path}: its vision tower is of type {tower!r}; supported: {', '.join(TOWERS)}."
        )
    vocab_size, hidden_size = shape(checkpoint, EMBEDDING, 2)
    patch_size = shape(checkpoint, PATCHES, 4)[-1]
    image_size = number(checkpoint, vision, "image_size", layout.default_image_size)
    patches, first = (image_size // patch_size) ** 2, int(tower == CLIP)
    head_dim = number(checkpoint, text, "head_dim", defaults.head_dim or 0)
    head_dim = head_dim or hidden_size // number(checkpoint, text, "num_attention_heads", defaults.heads)
    key_rows = shape(checkpoint, KEYS, 2)[0]
    width = shape(checkpoint, f"{PROJECTOR}.{layout.last_projection}.weight", 2)[0]
    places = shape(checkpoint, POSITIONS, 2)[0]
    if patches + first != places or key_rows % head_dim or width != hidden_size:
        raise CheckpointError(
            f"{checkpoint.path}: config and weights disagree: image_size {image_size}, patch_size "
            f"{patch_size}, {places} places in the vision tower, a projector of {width} rows, embeddings of "
            f"width {hidden_size}, k_proj of {key_rows} rows, head_dim {head_dim}. They are of different "
            "models."
        )
    config = checkpoint.config
    key = "image_token_id" if "image_token_id" in config else "image_token_index"
    select = config.get("vision_feature_select_strategy", layout.select)
    return Architecture(
        layers=_count(checkpoint, f"{TEXT}.layers."),
        kv_heads=key_rows // head_dim,
        head_dim=head_dim,
        hidden_size=hidden_size,
        vocab_size=vocab_size,
        max_context=number(checkpoint, text, "max_position_embeddings", defaults.max_context),
        rope_theta=rope_theta(checkpoint, text),
        image_token_id=number(checkpoint, config, key, layout.image_token_id),
        image_size=image_size,
        patch_size=patch_size,
        tokens_per_tile=places - int(select == "default") + int(layout.newline),
        prefix=layout.prefix,
    )


def _text_defaults(checkpoint: Checkpoint, layout: Layout, text: Mapping[str, Any]) -> TextDefaults:
    """Raises CheckpointError for a language model that is not exported."""
    kind = text.get("model_type", layout.language_models[0])
    if kind not in layout.language_models:
        raise CheckpointError(
            f"{checkpoint.path}: its decoder is of type {kind!r}; supported for "
            f"{checkpoint.config['model_type']}: {', '.join(layout.language_models)}."
        )
    if text.get("sliding_window") is not None and text.get("use_sliding_window", kind != "qwen2"):
        raise CheckpointError(
            f"{checkpoint.path}: its decoder looks back {text['sliding_window']} tokens only "
            "(sliding_window), which is not exported; supported are decoders that see the whole context."
        )
    return LANGUAGE_MODELS[kind]


def _count(checkpoint: Checkpoint, prefix: str) -> int:
    return len({name[len(prefix) :].split(".")[0] for name in checkpoint.tensors if name.startswith(prefix)})


def load(source: SourceModel, layout: Layout, respell: Callable[[Any], Any] = lambda model: model) -> Any:
    """The transformers model with the checkpoint's weights as float32, on the CPU, in eval mode.

    respell: what is changed in place once the weights are proved, to the same computation in other modules.
    Raises CheckpointError when transformers leaves out, adds or changes a single weight.
    """
    model = loading.load(source, layout.class_name, "sdpa")
    _check_architecture(model, source, layout)
    loading.check_weights(model, source, {HEAD} if source.tied_head else set(), module_name)
    head, embedding = model.get_output_embeddings().weight, model.get_input_embeddings().weight
    if source.tied_head and head is not embedding:
        raise CheckpointError(f"{source.path}: transformers did not tie the head to the embedding.")
    return respell(model)


def _check_architecture(model: Any, source: SourceModel, layout: Layout) -> None:
    """transformers reads old configurations through conversions; see that the numbers survived."""
    config, text, vision = model.config, model.config.text_config, model.config.vision_config
    attention = model.get_decoder().layers[0].self_attn
    select = "full" if layout.feature_layer is None else config.vision_feature_select_strategy
    theirs = Architecture(
        layers=text.num_hidden_layers,
        kv_heads=text.num_key_value_heads,
        head_dim=attention.head_dim,
        hidden_size=text.hidden_size,
        vocab_size=text.vocab_size,
        max_context=text.max_position_embeddings,
        rope_theta=text.rope_parameters["rope_theta"],
        image_token_id=config.image_token_id,
        image_size=vision.image_size,
        patch_size=vision.patch_size,
        tokens_per_tile=(vision.image_size // vision.patch_size) ** 2
        + int(vision.model_type == CLIP)
        - int(select == "default")
        + int(layout.newline),
        prefix=bool(getattr(text, "use_bidirectional_attention", False)),
    )
    loading.check_architecture(source, theirs)
