"""A .litertlm file asked the bundle's own questions through LiteRT-LM, beside the runner.

The only importer of litert_lm. Prompts must become the same tokens. Answers are compared as text, which is
all that LiteRT-LM gives; it prefills in other pieces, so a near tie may fall otherwise.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgevlm_runner import prompt
from edgevlm_runner.bundle import Bundle
from edgevlm_runner.contract import CLEAN, ImageSpec, Item, ModelSpec
from edgevlm_runner.inputs import load_tokenizer
from edgevlm_runner.respond import Respondent

from edgevlm_deploy import quiet
from edgevlm_deploy.errors import ExportError

QUESTIONS = 16
SAME = 0.75
"""Least share of equal answers to questions without a picture. A broken package gives none."""


@dataclass(frozen=True)
class Compared:
    """Greedy answers of LiteRT-LM and of the runner, on a CPU."""

    text_questions: int
    text_equal: int
    picture_questions: int
    """0 where the model cuts pictures into tiles, which LiteRT-LM does not."""
    picture_equal: int
    """LiteRT-LM resizes pictures with a filter of its own."""


def compare(path: Path, bundle: Bundle, spec: ModelSpec) -> Compared:
    """Ask the package at `path` up to `QUESTIONS` clean items, without and with their picture.

    Raises ExportError when it cannot be run, reads a prompt as other tokens or answers otherwise,
    MissingExtraError without litert-lm-api.
    """
    clean = [item for item in bundle.items if item.condition == CLEAN]
    items = clean[:: max(1, len(clean) // QUESTIONS)][:QUESTIONS]
    cuts = isinstance(spec.image, ImageSpec) and spec.image.split
    seen = [] if cuts else [item for item in items if item.image]
    with Respondent(bundle, threads=1) as respondent:
        own_texts = [respondent.ask(item.prompt, None, lambda _: None).text for item in items]
        own_pictures = [respondent.answer(item)[1].text for item in seen]
    with quiet.toolkit("litert-lm-api", "Checking a .litertlm file", "litert-lm", ExportError):
        import litert_lm

        cpu = litert_lm.Backend.CPU(thread_count=1)
        with litert_lm.Engine(str(path), cpu, cache_dir=":nocache", vision_backend=cpu) as engine:
            _check_tokens(path, engine, bundle, spec, items)
            texts = [_ask(engine, spec, item.prompt) for item in items]
            pictures = [_ask(engine, spec, _with_picture(bundle, item)) for item in seen]
    made = Compared(len(items), _equal(texts, own_texts), len(seen), _equal(pictures, own_pictures))
    if made.text_equal < SAME * made.text_questions:
        raise ExportError(
            f"{path}: LiteRT-LM answers {made.text_equal} of {made.text_questions} questions like the "
            f"runner, at least {SAME:.0%} are expected. Is this version of LiteRT-LM supported?"
        )
    return made


def _check_tokens(path: Path, engine: Any, bundle: Bundle, spec: ModelSpec, items: Sequence[Item]) -> None:
    tokenizer = load_tokenizer(bundle.path("tokenizer/tokenizer.json"))
    for item in items:
        text = prompt.build(item.prompt, None, spec.prompt)
        if engine.tokenize(text) != prompt.encode(tokenizer, text)[0].tolist():
            raise ExportError(f"{path}: LiteRT-LM reads {text!r} as other tokens than the runner.")
    if [list(one) for one in engine.eos_token_ids] != [[one] for one in spec.eos_token_ids]:
        raise ExportError(f"{path}: LiteRT-LM ends answers at {engine.eos_token_ids}.")


def _with_picture(bundle: Bundle, item: Item) -> dict[str, Any]:
    picture = {"type": "image", "path": str(bundle.root / item.image)}
    return {"role": "user", "content": [picture, {"type": "text", "text": item.prompt}]}


def _ask(engine: Any, spec: ModelSpec, message: Any) -> str:
    with engine.create_conversation(max_output_tokens=spec.max_new_tokens) as conversation:
        return str(conversation.send_message(message)).strip()


def _equal(ours: Sequence[str], theirs: Sequence[str]) -> int:
    return sum(one == other for one, other in zip(ours, theirs, strict=True))
