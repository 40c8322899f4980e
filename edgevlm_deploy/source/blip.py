"""The family `blip`, where it answers questions: a ViT, a text encoder that reads question and picture, and a
decoder that attends to what was read.

Li et al., "BLIP: Bootstrapping Language-Image Pre-training", ICML 2022; `BlipForQuestionAnswering` of
transformers.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from edgevlm_deploy.errors import CheckpointError
from edgevlm_deploy.recipe import Component
from edgevlm_deploy.source import loading
from edgevlm_deploy.source.checkpoint import Checkpoint
from edgevlm_deploy.source.header import StoredTensor, stored_dtype
from edgevlm_deploy.source.model import EncoderDecoderArchitecture, SourceModel
from edgevlm_deploy.source.numbers import matrices, number, section, shape

CLASS_NAME = "BlipForQuestionAnswering"
PREFIXES = {
    Component.VISION_ENCODER.value: "vision_model.encoder",
    Component.TEXT_ENCODER.value: "text_encoder.encoder",
    Component.DECODER.value: "text_decoder.bert.encoder",
    Component.HEAD.value: "text_decoder.cls.predictions",
}
QUESTION_WORDS = "text_encoder.embeddings.word_embeddings"
ANSWER_WORDS = "text_decoder.bert.embeddings.word_embeddings"
POSITIONS = (
    "text_encoder.embeddings.position_embeddings.weight",
    "text_decoder.bert.embeddings.position_embeddings.weight",
)
PATCHES = "vision_model.embeddings.patch_embedding.weight"
PATCH_POSITIONS = "vision_model.embeddings.position_embedding"
HEAD = "text_decoder.cls.predictions.decoder"
HEAD_BIAS = "text_decoder.cls.predictions.bias"
CROSS_KEYS = "text_decoder.bert.encoder.layer.0.crossattention.self.key.weight"

# Defaults of transformers' configurations: `save_pretrained` leaves out what equals them.
DEFAULT_IMAGE_SIZE = 384
DEFAULT_HEADS = 8
DEFAULT_START, DEFAULT_END, DEFAULT_PAD = 30522, 102, 0

_LAYER = re.compile(r"\.\d+\.")


def describe(checkpoint: Checkpoint) -> SourceModel:
    """The model's components and numbers from its configuration and its tensors' shapes.

    Raises CheckpointError when tensors are missing or disagree with the configuration.
    """
    tensors = checkpoint.tensors
    if f"{QUESTION_WORDS}.weight" not in tensors or CROSS_KEYS not in tensors:
        raise CheckpointError(
            f"{checkpoint.path}: has no text encoder for questions with a decoder for answers. Of the family "
            f"blip, {CLASS_NAME} is supported; models for captions and for retrieval are not."
        )
    shapes = matrices(tensors, POSITIONS)
    tied = HEAD not in shapes
    if tied:
        if not checkpoint.config.get("tie_word_embeddings", True):
            raise CheckpointError(f"{checkpoint.path}: has no {HEAD}.weight, and its config does not tie it.")
        shapes[HEAD] = shapes[ANSWER_WORDS]
    modules = {
        component: tuple(name for name in shapes if name.startswith(f"{prefix}."))
        for component, prefix in PREFIXES.items()
    }
    for component in (Component.VISION_ENCODER, Component.TEXT_ENCODER, Component.DECODER):
        _check_layers(checkpoint, modules[component.value], shapes)
    modules[Component.EMBEDDING.value] = (QUESTION_WORDS, ANSWER_WORDS)
    return SourceModel(
        path=checkpoint.path,
        name=checkpoint.name,
        revision=checkpoint.revision,
        digest=checkpoint.digest,
        family="blip",
        dtype=stored_dtype(tensors),
        weight_files=tuple(sorted({tensor.file for tensor in tensors.values()})),
        architecture=_architecture(checkpoint),
        prefixes=PREFIXES,
        modules=modules,
        shapes=shapes,
        parameters=sum(tensor.values for tensor in tensors.values()),
        tied_head=tied,
    )


def _architecture(checkpoint: Checkpoint) -> EncoderDecoderArchitecture:
    """Shapes where they tell, the configuration where they do not."""
    text, vision = (section(checkpoint, name) for name in ("text_config", "vision_config"))
    words, others = (shape(checkpoint, f"{name}.weight", 2) for name in (QUESTION_WORDS, ANSWER_WORDS))
    positions, again = (shape(checkpoint, name, 2)[0] for name in POSITIONS)
    patches = shape(checkpoint, PATCH_POSITIONS, 3)[1]
    found = EncoderDecoderArchitecture(
        image_size=number(checkpoint, vision, "image_size", DEFAULT_IMAGE_SIZE),
        patch_size=shape(checkpoint, PATCHES, 4)[-1],
        vision_layers=_count(checkpoint.tensors, "vision_model.encoder.layers."),
        text_layers=_count(checkpoint.tensors, "text_encoder.encoder.layer."),
        layers=_count(checkpoint.tensors, "text_decoder.bert.encoder.layer."),
        heads=number(checkpoint, text, "num_attention_heads", DEFAULT_HEADS),
        hidden_size=words[1],
        max_text=positions,
        vocab_size=words[0],
        start_token_id=_token(checkpoint, text, "bos_token_id", DEFAULT_START, words[0]),
        end_token_id=_token(checkpoint, text, "sep_token_id", DEFAULT_END, words[0]),
        pad_token_id=_token(checkpoint, text, "pad_token_id", DEFAULT_PAD, words[0]),
    )
    if (
        words != others
        or positions != again
        or found.image_tokens != patches
        or found.hidden_size % found.heads
        or shape(checkpoint, CROSS_KEYS, 2) != (words[1], words[1])
    ):
        raise CheckpointError(
            f"{checkpoint.path}: config and weights disagree: image_size {found.image_size}, patch_size "
            f"{found.patch_size}, {patches} places in the vision encoder, {found.heads} heads, embeddings "
            f"{list(words)} of questions and {list(others)} of answers, {positions} and {again} positions. "
            "They are of different models."
        )
    return found


def _check_layers(
    checkpoint: Checkpoint, names: Iterable[str], shapes: Mapping[str, tuple[int, int]]
) -> None:
    """Every layer of a stack has matrices of the same shapes."""
    first: dict[str, str] = {}
    for name in names:
        like = first.setdefault(_LAYER.sub(".", name, count=1), name)
        if shapes[name] != shapes[like]:
            raise CheckpointError(
                f"{checkpoint.path}: {name} has shape {list(shapes[name])}, {like} {list(shapes[like])}. "
                "The weights are damaged, or of several models."
            )


def _count(tensors: Mapping[str, StoredTensor], prefix: str) -> int:
    return len({name.removeprefix(prefix).split(".")[0] for name in tensors if name.startswith(prefix)})


def _token(checkpoint: Checkpoint, text: Mapping[str, Any], name: str, default: int, vocabulary: int) -> int:
    found = text.get(name, default)
    if type(found) is not int or not 0 <= found < vocabulary:
        raise CheckpointError(
            f"{checkpoint.path}: {name} in text_config is {found!r}, expected a token below {vocabulary:,}."
        )
    return found


def load(source: SourceModel) -> Any:
    """The transformers model with the checkpoint's weights as float32, on the CPU, in eval mode.

    Raises CheckpointError when transformers leaves out, adds or changes a single weight.
    """
    model = loading.load(source, CLASS_NAME, "eager")
    text, vision = model.config.text_config, model.config.vision_config
    theirs = EncoderDecoderArchitecture(
        image_size=vision.image_size,
        patch_size=vision.patch_size,
        vision_layers=vision.num_hidden_layers,
        text_layers=text.num_hidden_layers,
        layers=text.num_hidden_layers,
        heads=text.num_attention_heads,
        hidden_size=text.hidden_size,
        max_text=text.max_position_embeddings,
        vocab_size=text.vocab_size,
        start_token_id=model.decoder_start_token_id,
        end_token_id=text.sep_token_id,
        pad_token_id=text.pad_token_id,
    )
    assert isinstance(source.architecture, EncoderDecoderArchitecture)
    loading.check_architecture(source, theirs)
    # One bias under two names; checkpoints store either, or both.
    tied = {f"{HEAD}.bias", HEAD_BIAS, *([f"{HEAD}.weight"] if source.tied_head else [])}
    loading.check_weights(model, source, tied)
    answers = model.get_submodule(ANSWER_WORDS).weight
    if source.tied_head and model.get_submodule(HEAD).weight is not answers:
        raise CheckpointError(f"{source.path}: transformers did not tie the head to the embedding.")
    return model
