"""The device's view of a dual encoder: preprocessing numbers, classes in words, how cosines become
probabilities."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from edgevlm_runner import zero_shot
from edgevlm_runner.contract import DualEncoderSpec, TextSpec
from tokenizers import Tokenizer

from edgevlm_deploy.errors import CheckpointError, DataError, PromptError
from edgevlm_deploy.recipe import Recipe
from edgevlm_deploy.source.dual_encoder import LOGIT_BIAS, LOGIT_SCALE
from edgevlm_deploy.source.frames import clip_frame, siglip_frame
from edgevlm_deploy.source.model import DualArchitecture, SourceModel
from edgevlm_deploy.source.specification import open_tokenizers

DYNAMIC_RUNTIMES = ("onnxruntime",)
"""Where a graph takes rows of any length; elsewhere every row is padded to the text encoder's length."""


def model_spec(
    source: SourceModel,
    recipe: Recipe,
    runtime: str,
    graphs: Mapping[str, str],
    labels: Sequence[str],
) -> DualEncoderSpec:
    """Everything that the runner must know, proved on a sample picture and on every class against
    transformers' own preprocessing and tokenizer.

    labels: the classes in the data, taken where the recipe names none.
    Raises CheckpointError when preprocessing or tokenizer is not what the device can do, DataError without
    classes or with one that the text encoder cannot read whole.
    """
    classes = recipe.zero_shot.classes or tuple(labels)
    if len(classes) < 2:
        raise DataError(
            f"a classifier chooses among two classes or more, got {list(classes)}. Give labelled pictures "
            "or name them in the recipe (zero_shot.classes)."
        )
    tokenizer, on_device = open_tokenizers(source)
    architecture = source.architecture
    assert isinstance(architecture, DualArchitecture)
    is_clip = source.family == "clip"
    text = TextSpec(
        classes=classes,
        templates=recipe.zero_shot.templates,
        length=architecture.max_text,
        # Causal attention never looks at what comes after the end; SigLIP was trained on padded rows.
        padded=not is_clip or runtime not in DYNAMIC_RUNTIMES,
        pad_token_id=_token_id(source, tokenizer, "pad_token_id"),
        end_token_id=_token_id(source, tokenizer, "eos_token_id") if is_clip else None,
    )
    spec = DualEncoderSpec(
        family=source.family,
        runtime=runtime,
        graphs=dict(graphs),
        image=(clip_frame if is_clip else siglip_frame)(source, _side(source)),
        text=text,
        projection_size=architecture.projection_size,
        vocab_size=architecture.vocab_size,
        logit_scale=float(np.exp(_stored_number(source, LOGIT_SCALE))),
        logit_bias=0.0 if is_clip else _stored_number(source, LOGIT_BIAS),
        activation="softmax" if is_clip else "sigmoid",
        feature_items=recipe.evaluation.feature_items,
    )
    _check_tokens(source, spec, tokenizer, on_device)
    return spec


def _token_id(source: SourceModel, tokenizer: Any, name: str) -> int:
    found = getattr(tokenizer, name)
    if not isinstance(found, int):
        raise CheckpointError(f"{source.path}: its tokenizer has no {name}; texts could not be ended.")
    return found


def _stored_number(source: SourceModel, name: str) -> float:
    """A parameter of one element."""
    from safetensors import safe_open

    for file in source.weight_files:
        with safe_open(source.path / file, framework="pt") as stored:
            if name in stored.keys():  # noqa: SIM118 - not a mapping
                values = stored.get_tensor(name).double().flatten().tolist()
                if len(values) == 1 and np.isfinite(values[0]):
                    return float(values[0])
    raise CheckpointError(f"{source.path}: {name} is missing, or is not one number.")


def _side(source: SourceModel) -> int:
    assert isinstance(source.architecture, DualArchitecture)
    return source.architecture.image_size


def _check_tokens(source: SourceModel, spec: DualEncoderSpec, tokenizer: Any, on_device: Tokenizer) -> None:
    """The device's rows are transformers' rows, and end where the text encoder looks for their meaning."""
    text = spec.text
    for name in text.classes:
        texts = zero_shot.sentences([name], text.templates)
        try:
            ours = zero_shot.tokens(texts, text, on_device)
        except PromptError as error:
            raise DataError(str(error)) from error
        padding = {"padding": "max_length", "max_length": text.length} if text.padded else {"padding": True}
        theirs = np.asarray(tokenizer(texts, **padding)["input_ids"])
        if not np.array_equal(ours, theirs):
            raise CheckpointError(
                f"{source.path}: tokenizer.json and transformers' {type(tokenizer).__name__} disagree on "
                f"{texts[0]!r}. Save the tokenizer again."
            )
        if ours.max() >= spec.vocab_size:
            raise CheckpointError(
                f"{source.path}: its tokenizer has token {ours.max()}, its embedding {spec.vocab_size} rows."
            )
        if text.end_token_id is not None:
            ends = (ours == text.end_token_id).argmax(axis=1)
            # Older checkpoints have no end token in their config and take the largest one instead.
            if (
                not np.array_equal(ends, _places_of_the_end(source)(ours))
                or not (ours == text.end_token_id).any(axis=1).all()
            ):
                raise CheckpointError(
                    f"{source.path}: {texts[0]!r} does not end with the token that the text encoder looks "
                    "for. Tokenizer and model are of different checkpoints."
                )


def _places_of_the_end(source: SourceModel) -> Callable[[Any], Any]:
    """int64 [N, T] → [N], as transformers' text encoder finds them."""
    from transformers import AutoConfig

    end = AutoConfig.from_pretrained(source.path, local_files_only=True).text_config.eos_token_id
    if end == 2:
        return lambda rows: rows.argmax(axis=1)
    return lambda rows: (rows == end).argmax(axis=1)
