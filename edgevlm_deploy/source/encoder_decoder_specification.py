"""The device's view of an encoder–decoder: preprocessing numbers, tokens of questions and answers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from edgevlm_runner import prompt
from edgevlm_runner.contract import EncoderDecoderSpec
from tokenizers import Tokenizer

from edgevlm_deploy.errors import CheckpointError
from edgevlm_deploy.recipe import Recipe
from edgevlm_deploy.source.frames import open_processor, squashed_frame
from edgevlm_deploy.source.model import EncoderDecoderArchitecture, SourceModel
from edgevlm_deploy.source.specification import open_tokenizers

DYNAMIC_RUNTIMES = ("onnxruntime", "tensorrt")
"""Where a graph takes questions of any length; elsewhere they are padded to one of a few lengths."""
MOST_TOKENS = 512
"""More than a sample has, whatever the vocabulary."""
SAMPLES = ("What is this?", "Is it 12 or 3.5 cm,\n or “naïve”?", "")


def model_spec(
    source: SourceModel, recipe: Recipe, runtime: str, graphs: Mapping[str, str]
) -> EncoderDecoderSpec:
    """Everything that the runner must know, proved on sample pictures and questions against transformers'
    own image processor and tokenizer.

    `max_context` of the recipe bounds the question, `max_new_tokens` the answer; both are cut to the places
    that text encoder and decoder have.
    Raises CheckpointError when preprocessing or tokenizer is not what the device can do.
    """
    from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil

    architecture = source.architecture
    assert isinstance(architecture, EncoderDecoderArchitecture)
    tokenizer, on_device = open_tokenizers(source)
    processor = open_processor(source, BlipImageProcessorPil, ("BlipImageProcessor",))
    longest = min(recipe.generation.max_context, architecture.max_text)
    lengths: tuple[int, ...] = (longest,)
    if runtime not in DYNAMIC_RUNTIMES:
        _, prefills = recipe.generation.static_lengths(longest)
        lengths = prefills or lengths
    spec = EncoderDecoderSpec(
        family=source.family,
        runtime=runtime,
        graphs=dict(graphs),
        image=squashed_frame(source, processor, architecture.image_size),
        image_tokens=architecture.image_tokens,
        question_lengths=lengths,
        pad_token_id=architecture.pad_token_id,
        start_token_id=architecture.start_token_id,
        eos_token_ids=(architecture.end_token_id,),
        max_new_tokens=min(recipe.generation.max_new_tokens, architecture.max_text),
        layers=architecture.layers,
        heads=architecture.heads,
        head_dim=architecture.head_dim,
        hidden_size=architecture.hidden_size,
        vocab_size=architecture.vocab_size,
    )
    _check_tokens(source, spec, tokenizer, on_device)
    return spec


def _check_tokens(
    source: SourceModel, spec: EncoderDecoderSpec, tokenizer: Any, on_device: Tokenizer
) -> None:
    """The device's tokens are those of transformers' tokenizer, which the processor passes on."""
    roomy = replace(spec, question_lengths=(MOST_TOKENS,))
    for question in SAMPLES:
        ours = prompt.encode_question(on_device, question, roomy)[0].tolist()
        theirs = list(tokenizer(question).input_ids)
        if ours != theirs:
            raise CheckpointError(
                f"{source.path}: tokenizer.json and transformers' {type(tokenizer).__name__} disagree on a "
                f"question ({ours} and {theirs}). Save the tokenizer again."
            )
        if max(ours, default=0) >= spec.vocab_size:
            raise CheckpointError(
                f"{source.path}: its tokenizer has token {max(ours)}, its embedding {spec.vocab_size} rows."
            )
    if tokenizer.sep_token_id not in spec.eos_token_ids:
        raise CheckpointError(
            f"{source.path}: its tokenizer ends texts with token {tokenizer.sep_token_id}, the model's "
            f"sep_token_id is {spec.eos_token_ids[0]}. Tokenizer and model are of different checkpoints."
        )
