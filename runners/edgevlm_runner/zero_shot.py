"""Zero-shot classification with a dual encoder: classes become texts, the nearest text is the answer.

Radford et al., "Learning Transferable Visual Models From Natural Language Supervision", ICML 2021: the
embeddings of a class's sentences are normalised, averaged and normalised again. SigLIP (Zhai et al., ICCV
2023) is used the same way, with a sigmoid in place of the softmax.

Python 3.8, NumPy and tokenizers only: host and device compute the same numbers.
"""

from __future__ import annotations

import dataclasses
from typing import Callable, List, Sequence, Tuple

import numpy as np
from tokenizers import Tokenizer

from edgevlm_runner.contract import DualEncoderSpec, TextSpec
from edgevlm_runner.errors import PromptError

CLASS_SLOT = "{}"
TEXTS_AT_ONCE = 32

Encode = Callable[[np.ndarray], np.ndarray]
"""int64 [N, T] → float32 [N, D]"""


@dataclasses.dataclass(frozen=True)
class Choice:
    """The likeliest class of one picture."""

    place: int
    """Among the classes."""
    log_probability: float
    scores: Tuple[float, ...]
    """Cosine of every class, six decimals."""


def sentences(classes: Sequence[str], templates: Sequence[str]) -> List[str]:
    """Every template filled with every class, class by class."""
    return [template.replace(CLASS_SLOT, name) for name in classes for template in templates]


def tokens(texts: Sequence[str], spec: TextSpec, tokenizer: Tokenizer) -> np.ndarray:
    """int64 [N, T] with the tokenizer's special tokens; T is the longest text's, or `spec.length`.

    Raises PromptError for a text that the text encoder cannot read whole, or that is not Unicode.
    """
    tokenizer.no_truncation()
    tokenizer.no_padding()
    try:
        rows = [list(one.ids) for one in tokenizer.encode_batch(list(texts))]
    except (UnicodeEncodeError, TypeError) as error:
        raise PromptError(f"A class is not valid Unicode ({error}). Pass it as UTF-8.") from error
    for text, row in zip(texts, rows):
        if len(row) > spec.length:
            raise PromptError(
                f"{text!r} has {len(row)} tokens, the text encoder reads {spec.length}. Shorten it."
            )
    width = spec.length if spec.padded else max(map(len, rows))
    ids = np.full((len(rows), width), spec.pad_token_id, np.int64)
    for row, out in zip(rows, ids):
        out[: len(row)] = row
    return ids


def embed_classes(encode: Encode, classes: Sequence[str], spec: TextSpec, tokenizer: Tokenizer) -> np.ndarray:
    """float32 [classes, D], each of length 1."""
    found = embed_texts(encode, sentences(classes, spec.templates), spec, tokenizer)
    each = normalize(found).reshape(len(classes), len(spec.templates), -1)
    return normalize(each.mean(axis=1))


def embed_texts(
    encode: Encode, texts: Sequence[str], spec: TextSpec, tokenizer: Tokenizer, width: int = 0
) -> np.ndarray:
    """float32 [N, D] as the text encoder gives them; `width` is D where there may be no text."""
    found = [
        encode(tokens(texts[first : first + TEXTS_AT_ONCE], spec, tokenizer))
        for first in range(0, len(texts), TEXTS_AT_ONCE)
    ]
    embeds: np.ndarray = np.concatenate(found) if found else np.zeros((0, width), np.float32)
    return embeds


def normalize(embeds: np.ndarray) -> np.ndarray:
    """float32 [N, D] with rows of length 1; a row of zeros stays."""
    wide = embeds.astype(np.float64)
    length = np.linalg.norm(wide, axis=-1, keepdims=True)
    unit: np.ndarray = (wide / np.maximum(length, np.finfo(np.float64).tiny)).astype(np.float32)
    return unit


def choose(embed: np.ndarray, classes: np.ndarray, spec: DualEncoderSpec) -> Choice:
    """embed: float32 [D], as the vision encoder gives it; classes: float32 [classes, D] of length 1."""
    cosines = classes.astype(np.float64) @ normalize(embed).astype(np.float64)
    logprobs = log_probabilities(cosines, spec)
    place = int(cosines.argmax())
    return Choice(place, float(logprobs[place]), tuple(round(float(one), 6) for one in cosines))


def tempered(spec: DualEncoderSpec, temperature: float) -> DualEncoderSpec:
    """`spec` with its logits divided by `Certainty.temperature`: the order of the classes stays."""
    return dataclasses.replace(
        spec, logit_scale=spec.logit_scale / temperature, logit_bias=spec.logit_bias / temperature
    )


def log_probabilities(cosines: np.ndarray, spec: DualEncoderSpec) -> np.ndarray:
    """float64 [classes], natural logarithms: a softmax over the classes, or a sigmoid of each alone."""
    logits = cosines * spec.logit_scale + spec.logit_bias
    if spec.activation == "sigmoid":
        found: np.ndarray = -np.logaddexp(0.0, -logits)
        return found
    shifted = logits - logits.max()
    found = shifted - np.log(np.exp(shifted).sum())
    return found
