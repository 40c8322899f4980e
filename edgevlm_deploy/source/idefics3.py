"""The families `idefics3` and `smolvlm`: SigLIP tiles, pixel shuffle, a Llama decoder.

Both have the same modules and tensor names; only the class names differ.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

from edgevlm_deploy.errors import CheckpointError, MissingExtraError
from edgevlm_deploy.recipe import Component
from edgevlm_deploy.source.checkpoint import Checkpoint
from edgevlm_deploy.source.header import StoredTensor, stored_dtype
from edgevlm_deploy.source.model import Architecture, SourceModel

FAMILIES = {
    "idefics3": "Idefics3ForConditionalGeneration",
    "smolvlm": "SmolVLMForConditionalGeneration",
}
PREFIXES = {
    Component.VISION_ENCODER.value: "model.vision_model",
    Component.PROJECTOR.value: "model.connector",
    Component.EMBEDDING.value: "model.text_model.embed_tokens",
    Component.DECODER.value: "model.text_model.layers",
    Component.HEAD.value: "lm_head",
}
EMBEDDING = "model.text_model.embed_tokens.weight"
HEAD = "lm_head.weight"
PATCHES = "model.vision_model.embeddings.patch_embedding.weight"
POSITIONS = "model.vision_model.embeddings.position_embedding.weight"
PROJECTION = "model.connector.modality_projection.proj.weight"
KEYS = "model.text_model.layers.0.self_attn.k_proj.weight"

# Defaults of transformers' configurations: `save_pretrained` leaves out what equals them.
DEFAULT_IMAGE_SIZE = 224
DEFAULT_IMAGE_TOKEN_ID = 128257
DEFAULT_HEADS = 32
DEFAULT_MAX_CONTEXT = 2048
DEFAULT_ROPE_THETA = 10000.0
DEFAULT_TIED = {"idefics3": True, "smolvlm": False}


def describe(checkpoint: Checkpoint) -> SourceModel:
    """The model's components and numbers from its configuration and its tensors' shapes.

    Raises CheckpointError when tensors are missing or disagree with the configuration.
    """
    family = str(checkpoint.config["model_type"])
    tensors = checkpoint.tensors
    tied = HEAD not in tensors
    if tied and not checkpoint.config.get("tie_word_embeddings", DEFAULT_TIED[family]):
        raise CheckpointError(f"{checkpoint.path}: has no {HEAD}, and its config does not tie the head.")
    shapes = _matrices(tensors)
    if tied:
        shapes["lm_head"] = shapes["model.text_model.embed_tokens"]
    return SourceModel(
        path=checkpoint.path,
        name=checkpoint.name,
        revision=checkpoint.revision,
        digest=checkpoint.digest,
        family=family,
        dtype=stored_dtype(tensors),
        weight_files=tuple(sorted({tensor.file for tensor in tensors.values()})),
        architecture=_architecture(checkpoint),
        prefixes=PREFIXES,
        modules={
            component: tuple(name for name in shapes if f"{name}.".startswith(f"{prefix}."))
            for component, prefix in PREFIXES.items()
        },
        shapes=shapes,
        parameters=sum(tensor.values for tensor in tensors.values()),
        tied_head=tied,
    )


def _matrices(tensors: Mapping[str, StoredTensor]) -> dict[str, tuple[int, int]]:
    """Module → (N, K) of every weight matrix in model order; the table of patch positions is none."""
    names = sorted(tensors, key=_model_order)
    return {
        name.removesuffix(".weight"): (tensors[name].shape[0], tensors[name].shape[1])
        for name in names
        if name.endswith(".weight") and len(tensors[name].shape) == 2 and name != POSITIONS
    }


def _model_order(name: str) -> list[tuple[int, str]]:
    """layers.2 before layers.10."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in name.split(".")]


def _architecture(checkpoint: Checkpoint) -> Architecture:
    """Shapes where they tell, the configuration where they do not."""
    text, vision = (_section(checkpoint, name) for name in ("text_config", "vision_config"))
    if text.get("model_type", "llama") != "llama":
        raise CheckpointError(
            f"{checkpoint.path}: its decoder is of type {text['model_type']!r}; supported is llama."
        )
    vocab_size, hidden_size = _shape(checkpoint, EMBEDDING, 2)
    patch_size = _shape(checkpoint, PATCHES, 4)[-1]
    patches, vision_size = _shape(checkpoint, POSITIONS, 2)
    head_dim = _number(checkpoint, text, "head_dim", 0)
    if not head_dim:
        head_dim = hidden_size // _number(checkpoint, text, "num_attention_heads", DEFAULT_HEADS)
    image_size = _number(checkpoint, vision, "image_size", DEFAULT_IMAGE_SIZE)
    key_rows, shuffled = _shape(checkpoint, KEYS, 2)[0], _shape(checkpoint, PROJECTION, 2)[1]
    # Pixel shuffle folds scale × scale patches into the channels of one image token.
    folded = shuffled // vision_size
    side = image_size // patch_size
    if (
        side * side != patches
        or shuffled % vision_size
        or math.isqrt(folded) ** 2 != folded
        or side % math.isqrt(folded)
        or key_rows % head_dim
    ):
        raise CheckpointError(
            f"{checkpoint.path}: config and weights disagree: image_size {image_size}, "
            f"patch_size {patch_size}, {patches} patches of width {vision_size}, projection of {shuffled} "
            f"columns, k_proj of {key_rows} rows, head_dim {head_dim}. They are of different models."
        )
    return Architecture(
        layers=_layers(checkpoint.tensors),
        kv_heads=key_rows // head_dim,
        head_dim=head_dim,
        hidden_size=hidden_size,
        vocab_size=vocab_size,
        max_context=_number(checkpoint, text, "max_position_embeddings", DEFAULT_MAX_CONTEXT),
        rope_theta=_rope_theta(checkpoint, text),
        image_token_id=_number(checkpoint, checkpoint.config, "image_token_id", DEFAULT_IMAGE_TOKEN_ID),
        image_size=image_size,
        patch_size=patch_size,
        tokens_per_tile=patches // folded,
    )


def _rope_theta(checkpoint: Checkpoint, text: Mapping[str, Any]) -> float:
    """At the top in configurations of transformers 4, in `rope_parameters` since 5."""
    theta = text.get("rope_theta")
    parameters = text.get("rope_parameters")
    if theta is None and isinstance(parameters, dict):
        theta = parameters.get("rope_theta")
    if theta is None:
        return DEFAULT_ROPE_THETA
    if type(theta) not in (int, float):
        raise CheckpointError(
            f"{checkpoint.path}: rope_theta in config.json is {theta!r}, expected a number."
        )
    return float(theta)


def _layers(tensors: Mapping[str, StoredTensor]) -> int:
    prefix = PREFIXES[Component.DECODER.value] + "."
    return len({name.removeprefix(prefix).split(".")[0] for name in tensors if name.startswith(prefix)})


def _section(checkpoint: Checkpoint, name: str) -> Mapping[str, Any]:
    section = checkpoint.config.get(name, {})
    if not isinstance(section, dict):
        raise CheckpointError(f"{checkpoint.path}: {name} in config.json is no object.")
    return section


def _number(checkpoint: Checkpoint, section: Mapping[str, Any], key: str, default: int) -> int:
    value = section.get(key)
    if value is None:
        return default
    if type(value) is not int or value < 1:
        raise CheckpointError(
            f"{checkpoint.path}: {key} in config.json is {value!r}, expected a whole number above 0."
        )
    return value


def _shape(checkpoint: Checkpoint, name: str, dimensions: int) -> tuple[int, ...]:
    tensor = checkpoint.tensors.get(name)
    if tensor is None or len(tensor.shape) != dimensions or 0 in tensor.shape:
        found = "is not there" if tensor is None else f"has shape {list(tensor.shape)}"
        raise CheckpointError(
            f"{checkpoint.path}: {name} {found}; these are not the weights of "
            f"a {checkpoint.config['model_type']} model."
        )
    return tensor.shape


def load(source: SourceModel) -> Any:
    """The transformers model with the checkpoint's weights as float32, on the CPU, in eval mode.

    Raises CheckpointError when transformers leaves out, adds or changes a single weight.
    """
    try:
        import torch
        import transformers
    except ImportError as error:
        raise MissingExtraError("Loading a model needs `pip install edgevlm[compile]`.") from error
    with _without_progress_bar():
        try:
            model, report = getattr(transformers, FAMILIES[source.family]).from_pretrained(
                source.path,
                dtype=torch.float32,
                attn_implementation="sdpa",
                local_files_only=True,
                use_safetensors=True,
                output_loading_info=True,
            )
        except Exception as error:
            raise CheckpointError(f"{source.path}: transformers cannot load it ({error}).") from error
    wrong = {kind: sorted(map(str, names)) for kind, names in report.items() if names}
    if wrong:
        listed = "; ".join(f"{kind}: {', '.join(names[:3])}" for kind, names in wrong.items())
        raise CheckpointError(f"{source.path}: weights do not fit the config ({listed}).")
    _check_architecture(model.config, source)
    _check_weights(model, source)
    for module in model.modules():
        # The same computation, spelled so that quantisers and exporters understand it.
        if isinstance(module, torch.nn.Conv2d) and module.padding == "valid":
            module.padding = (0, 0)
    return model.eval()


@contextmanager
def _without_progress_bar() -> Iterator[None]:
    """transformers draws one per loaded model; progress is shown by the caller."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def _check_architecture(config: Any, source: SourceModel) -> None:
    """transformers reads old configurations through conversions; see that the numbers survived."""
    text, vision = config.text_config, config.vision_config
    theirs = Architecture(
        layers=text.num_hidden_layers,
        kv_heads=text.num_key_value_heads,
        head_dim=text.head_dim,
        hidden_size=text.hidden_size,
        vocab_size=text.vocab_size,
        max_context=text.max_position_embeddings,
        rope_theta=text.rope_parameters["rope_theta"],
        image_token_id=config.image_token_id,
        image_size=vision.image_size,
        patch_size=vision.patch_size,
        tokens_per_tile=(vision.image_size // vision.patch_size) ** 2 // config.scale_factor**2,
    )
    ours, made = asdict(source.architecture), asdict(theirs)
    wrong = [f"{key} {made[key]}, not {ours[key]}" for key in ours if made[key] != ours[key]]
    if wrong:
        raise CheckpointError(f"{source.path}: transformers made a model of {'; '.join(wrong)}.")


def _check_weights(model: Any, source: SourceModel) -> None:
    """Every stored tensor is in the model, equal and finite; everything in the model was stored."""
    import torch
    from safetensors import safe_open

    state = model.state_dict()
    missing = set(state) - ({HEAD} if source.tied_head else set())
    for file in source.weight_files:
        with safe_open(source.path / file, framework="pt") as stored:
            for name in stored.keys():  # noqa: SIM118 - not a mapping
                tensor = stored.get_tensor(name).to(torch.float32)
                if not torch.isfinite(tensor).all():
                    raise CheckpointError(f"{source.path}: {name} holds values that are not finite.")
                if name not in state or not torch.equal(state[name], tensor):
                    raise CheckpointError(f"{source.path}: transformers did not load {name} as it is stored.")
                missing.discard(name)
    if missing:
        raise CheckpointError(f"{source.path}: {sorted(missing)[0]} has no stored weight.")
    head, embedding = model.get_output_embeddings().weight, model.get_input_embeddings().weight
    if source.tied_head and head is not embedding:
        raise CheckpointError(f"{source.path}: transformers did not tie the head to the embedding.")
