"""From an item to what the graphs take: the same pixels and tokens on host and device."""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path
from typing import Optional, Tuple

import numpy as np
from PIL import Image
from tokenizers import Tokenizer

from edgevlm_runner import anyres, native, prompt, zero_shot
from edgevlm_runner.contract import (
    GREY,
    Answering,
    AnyresSpec,
    DualEncoderSpec,
    EncoderDecoderSpec,
    Item,
    Model,
    NativeSpec,
)
from edgevlm_runner.corrupt import corrupt
from edgevlm_runner.errors import BundleError, PromptError
from edgevlm_runner.preprocess import frame, load_image, tiles

MID_GREY = 128


@dataclasses.dataclass(frozen=True)
class Inputs:
    """One question, ready for the model; for a dual encoder, a picture and a sentence about its class.

    pixel_values  float32 [tiles, 3, S, S], or [1, 3, H, W] at its own resolution; None without a picture
    input_ids     int64 [1, T], image tokens already expanded
    size          height and width of the picture itself, where its image tokens depend on them (`anyres`)
    """

    pixel_values: Optional[np.ndarray]
    input_ids: np.ndarray
    size: Optional[Tuple[int, int]] = None


def load_tokenizer(path: Path) -> Tokenizer:
    """Raises BundleError when the file is not a tokenizer."""
    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # the Rust binding raises nothing narrower
        raise BundleError(f"{path}: not a tokenizer that `tokenizers` can read ({error}).") from error


def from_picture(
    picture: Optional[Image.Image], question: str, spec: Answering, tokenizer: Tokenizer
) -> Inputs:
    """Preprocess one picture and question. Raises PromptError without the picture that the model needs."""
    if isinstance(spec, EncoderDecoderSpec):
        if picture is None:
            raise PromptError("This model answers questions about a picture; give one (`--image`).")
        return Inputs(frame(picture, spec.image), prompt.encode_question(tokenizer, question, spec))
    if picture is None:
        return Inputs(None, prompt.encode(tokenizer, prompt.build(question, None, spec.prompt)))
    if isinstance(spec.image, NativeSpec):
        whole = native.resized(picture, spec.image)
        text = prompt.build(question, (0, 0), spec.prompt, native.tokens(whole, spec.image))
        return Inputs(whole, prompt.encode(tokenizer, text))
    if isinstance(spec.image, AnyresSpec):
        size = picture.height, picture.width
        text = prompt.build(question, (0, 0), spec.prompt, anyres.tokens(size, spec.image))
        return Inputs(anyres.tiles(picture, spec.image), prompt.encode(tokenizer, text), size)
    cut = tiles(picture, spec.image)
    text = prompt.build(question, (cut.rows, cut.cols), spec.prompt)
    return Inputs(cut.pixel_values, prompt.encode(tokenizer, text))


def from_class(
    picture: Optional[Image.Image], label: str, spec: DualEncoderSpec, tokenizer: Tokenizer
) -> Inputs:
    """Preprocess one picture, and the first sentence about a class."""
    texts = zero_shot.sentences([label or spec.text.classes[0]], spec.text.templates[:1])
    pixels = None if picture is None else frame(picture, spec.image)
    return Inputs(pixels, zero_shot.tokens(texts, spec.text, tokenizer))


def from_item(item: Item, root: Path, seed: int, spec: Model, tokenizer: Tokenizer) -> Inputs:
    """Load the item's picture below `root`, corrupt it as its condition says, preprocess it."""
    picture = picture_of(item, root, seed)
    if isinstance(spec, DualEncoderSpec):
        return from_class(picture, item.answers[0] if item.answers else "", spec, tokenizer)
    return from_picture(picture, item.prompt, spec, tokenizer)


def picture_of(item: Item, root: Path, seed: int) -> Optional[Image.Image]:
    """The item's picture as its condition has it: corrupted, one grey area of its size, or as it is.

    None for a question without one.
    """
    if not item.image:
        return None
    clean = _decode(root / item.image)
    if item.condition == GREY:
        return Image.new("RGB", clean.size, (MID_GREY,) * 3)
    if item.corruption is None:
        return clean
    name, severity = item.corruption
    return corrupt(clean, name, severity, seed=seed, image_id=item.image_id)


@functools.lru_cache(maxsize=8)
def _decode(path: Path) -> Image.Image:
    """Questions about one picture follow each other, so a few decoded pictures are kept."""
    return load_image(path)
