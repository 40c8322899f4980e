"""Questions into tokens, as transformers' processors make them.

The chat template was rendered once on the host (`PromptSpec`); what is left for the device is to fill in
the image tokens and the question.

Python 3.8, NumPy and tokenizers only.
"""

from __future__ import annotations

import re
from typing import List, Optional, Tuple

import numpy as np
from tokenizers import Tokenizer

from edgevlm_runner.contract import EncoderDecoderSpec, PromptSpec
from edgevlm_runner.errors import PromptError

IMAGE_SLOT = "{image}"
QUESTION_SLOT = "{question}"
_POSITION = re.compile(r"<row_\d+_col_\d+>")


def build(
    question: str, grid: Optional[Tuple[int, int]], spec: PromptSpec, tokens: Optional[int] = None
) -> str:
    """The text of the whole prompt up to where the answer begins.

    grid: (rows, cols) of the picture's tiles, (0, 0) for a single tile, None without a picture.
    tokens: image tokens of a tile where they depend on the picture; None: `spec.tokens_per_tile`.
    Raises PromptError when the question holds a token that stands for image content.
    """
    for token in (spec.image_token, spec.fake_token, spec.global_token):
        if token and token in question:
            raise PromptError(_injected(token))
    position = _POSITION.search(question)
    if position:
        raise PromptError(_injected(position.group()))
    if grid is None:
        return spec.text_only.replace(QUESTION_SLOT, question)
    # The question goes in last: nothing in it is taken for a slot.
    return spec.with_image.replace(IMAGE_SLOT, expand(grid, spec, tokens)).replace(QUESTION_SLOT, question)


def _injected(token: str) -> str:
    return (
        f"The question contains {token!r}, which the model reads as image content. "
        "Take it out; the picture is placed by edgevlm."
    )


def expand(grid: Tuple[int, int], spec: PromptSpec, tokens: Optional[int] = None) -> str:
    """The tokens of one picture: a line per row of tiles, then the global view. tokens: as in `build`."""
    rows, cols = grid
    tile = spec.image_token * (spec.tokens_per_tile if tokens is None else tokens)
    view = spec.fake_token + spec.global_token + tile + spec.fake_token
    if rows == 0 and cols == 0:
        return view
    lines = [
        "".join(f"{spec.fake_token}<row_{row + 1}_col_{col + 1}>{tile}" for col in range(cols)) + "\n"
        for row in range(rows)
    ]
    return "".join(lines) + "\n" + view


def encode(tokenizer: Tokenizer, text: str) -> np.ndarray:
    """int64 [1, T]. The text has all special tokens already, so none are added.

    Raises PromptError for text that is not valid Unicode.
    """
    return np.array([_ids(tokenizer, text, with_special=False)], dtype=np.int64)


def encode_question(tokenizer: Tokenizer, question: str, spec: EncoderDecoderSpec) -> np.ndarray:
    """int64 [1, T]: the question alone between the special tokens that the tokenizer puts round a text.

    Raises PromptError for a question that the text encoder cannot read whole, or that is not Unicode.
    """
    ids = _ids(tokenizer, question, with_special=True)
    longest = spec.question_lengths[-1]
    if len(ids) > longest:
        raise PromptError(
            f"The question has {len(ids)} tokens, the text encoder reads {longest}. Shorten the question."
        )
    return np.array([ids], dtype=np.int64)


def _ids(tokenizer: Tokenizer, text: str, with_special: bool) -> List[int]:
    # A tokenizer.json may carry the padding and truncation of its training; a prompt is never cut silently.
    tokenizer.no_truncation()
    tokenizer.no_padding()
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise PromptError(f"The question is not valid Unicode ({error}). Pass it as UTF-8.") from error
    return list(tokenizer.encode(text, add_special_tokens=with_special).ids)
