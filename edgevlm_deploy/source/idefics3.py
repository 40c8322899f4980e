"""The families `idefics3` and `smolvlm`: SigLIP tiles, pixel shuffle, a Llama decoder.

Both have the same modules and tensor names; only the class names differ.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from edgevlm_runner.contract import ImageSpec, PromptSpec

from edgevlm_deploy.errors import CheckpointError
from edgevlm_deploy.recipe import Component, Recipe
from edgevlm_deploy.source import loading
from edgevlm_deploy.source.checkpoint import Checkpoint
from edgevlm_deploy.source.header import StoredTensor, stored_dtype
from edgevlm_deploy.source.model import Architecture, SourceModel
from edgevlm_deploy.source.numbers import matrices, number, rope_theta, section, shape
from edgevlm_deploy.source.specification import (
    chat_prompt,
    check_image_processor_type,
    numbers_of,
    optional_json,
    three,
)

FAMILIES = {
    "idefics3": "Idefics3ForConditionalGeneration",
    "smolvlm": "SmolVLMForConditionalGeneration",
}
IMAGE_PROCESSORS = ("Idefics3ImageProcessor", "SmolVLMImageProcessor")
"""With these names, or with transformers' suffixes Fast and Pil."""
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
    shapes = matrices(tensors, (POSITIONS,))
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


def _architecture(checkpoint: Checkpoint) -> Architecture:
    """Shapes where they tell, the configuration where they do not."""
    text, vision = (section(checkpoint, name) for name in ("text_config", "vision_config"))
    if text.get("model_type", "llama") != "llama":
        raise CheckpointError(
            f"{checkpoint.path}: its decoder is of type {text['model_type']!r}; supported is llama."
        )
    vocab_size, hidden_size = shape(checkpoint, EMBEDDING, 2)
    patch_size = shape(checkpoint, PATCHES, 4)[-1]
    patches, vision_size = shape(checkpoint, POSITIONS, 2)
    head_dim = number(checkpoint, text, "head_dim", 0)
    if not head_dim:
        head_dim = hidden_size // number(checkpoint, text, "num_attention_heads", DEFAULT_HEADS)
    image_size = number(checkpoint, vision, "image_size", DEFAULT_IMAGE_SIZE)
    key_rows, shuffled = shape(checkpoint, KEYS, 2)[0], shape(checkpoint, PROJECTION, 2)[1]
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
        max_context=number(checkpoint, text, "max_position_embeddings", DEFAULT_MAX_CONTEXT),
        rope_theta=rope_theta(checkpoint, text),
        image_token_id=number(checkpoint, checkpoint.config, "image_token_id", DEFAULT_IMAGE_TOKEN_ID),
        image_size=image_size,
        patch_size=patch_size,
        tokens_per_tile=patches // folded,
        shuffle=math.isqrt(folded),
    )


def _layers(tensors: Mapping[str, StoredTensor]) -> int:
    prefix = PREFIXES[Component.DECODER.value] + "."
    return len({name.removeprefix(prefix).split(".")[0] for name in tensors if name.startswith(prefix)})


def load(source: SourceModel) -> Any:
    """The transformers model with the checkpoint's weights as float32, on the CPU, in eval mode.

    Raises CheckpointError when transformers leaves out, adds or changes a single weight.
    """
    model = loading.load(source, FAMILIES[source.family], "sdpa")
    _check_architecture(model.config, source)
    loading.check_weights(model, source, {HEAD} if source.tied_head else set())
    head, embedding = model.get_output_embeddings().weight, model.get_input_embeddings().weight
    if source.tied_head and head is not embedding:
        raise CheckpointError(f"{source.path}: transformers did not tie the head to the embedding.")
    return model


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
        shuffle=config.scale_factor,
    )
    loading.check_architecture(source, theirs)


def image_spec(source: SourceModel, recipe: Recipe) -> ImageSpec:
    """The image processor's numbers, defaults filled in by transformers itself."""
    from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil

    check_image_processor_type(source, IMAGE_PROCESSORS)
    try:
        # Idefics3's and SmolVLM's are the same class under two names.
        processor = Idefics3ImageProcessorPil.from_pretrained(source.path, local_files_only=True)
    except Exception as error:
        raise CheckpointError(f"{source.path}: its image processor cannot be loaded ({error}).") from error
    steps = ("do_resize", "do_rescale", "do_normalize", "do_convert_rgb")
    skipped = [step for step in steps if not getattr(processor, step)]
    tile_size = dict(processor.max_image_size).get("longest_edge")
    longest_edge = dict(processor.size).get("longest_edge")
    if skipped or not tile_size or not longest_edge:
        raise CheckpointError(
            f"{source.path}: its image processor goes without {', '.join(skipped) or 'longest_edge'}; "
            "the device always resizes by the longest edge, rescales and normalises."
        )
    if tile_size != numbers_of(source).image_size:
        raise CheckpointError(
            f"{source.path}: the image processor cuts tiles of {tile_size} pixels, the vision "
            f"encoder is made for {numbers_of(source).image_size}. They are of different models."
        )
    mean, std = (three(value) for value in (processor.image_mean, processor.image_std))
    return ImageSpec(
        tile_size=int(tile_size),
        longest_edge=int(longest_edge),
        split=bool(processor.do_image_splitting),
        max_tiles=recipe.image.max_tiles,
        resample=int(processor.resample),
        rescale_factor=float(processor.rescale_factor),
        mean=mean,
        std=std,
    )


def prompt_spec(source: SourceModel, tokenizer: Any) -> PromptSpec:
    """The chat template; every tile stands between tokens that say what it is."""
    stated = optional_json(source.path / "processor_config.json").get("image_seq_len")
    if stated not in (None, numbers_of(source).tokens_per_tile):
        raise CheckpointError(
            f"{source.path}: processor_config.json has image_seq_len {stated}, the vision encoder gives "
            f"{numbers_of(source).tokens_per_tile} tokens per tile. They are of different models."
        )
    return replace(
        chat_prompt(source, tokenizer),
        fake_token=getattr(tokenizer, "fake_image_token", "<fake_token_around_image>"),
        global_token=getattr(tokenizer, "global_image_token", "<global-img>"),
    )
