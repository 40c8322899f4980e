"""What one training step of the demo VLM is made of: pictures, what stands in their cells, questions.

Several questions about one picture are packed behind one image prefix: each question attends to the
prefix and to itself, and its positions go on from the prefix, which is what it meets at inference.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.utils.data import Dataset

from edgevlm_deploy.demo import model as demo
from edgevlm_deploy.demo.questions import KINDS, ask_any
from edgevlm_deploy.demo.scenes import (
    COLOURS,
    COLUMNS,
    SHAPES,
    SIZES,
    TEXTURES,
    Scene,
    Split,
    generator,
    scene,
)

QUESTIONS = 8
"""Questions per picture and step, fewer where they would not fit into a row."""
ROW = 160
"""Tokens per row. One length only, because kernels are compiled per shape."""
IGNORE = -100
PREFIX = 0
PADDING = -1
ATTRIBUTES: tuple[tuple[str, Sequence[object]], ...] = (
    ("shape", SHAPES),
    ("colour", COLOURS),
    ("size", SIZES),
    ("texture", TEXTURES),
    ("row", range(COLUMNS)),
    ("column", range(COLUMNS)),
)
"""What a cell is asked for. Row and column, because nothing else makes an image token keep its place."""
_STREAM = 2
"""Stream of `scenes.generator` that draws the questions of a lesson."""


class Lesson(NamedTuple):
    """N pictures, each with a packed row of T = ROW tokens: image prefix, then questions with their answers.

    pixels: uint8 [N, SIDE, SIDE, 3]; cells: int64 [attribute, N, cells], the object's value in its cell and
    IGNORE in empty ones, but shape has one more class for "nothing here"; ids, positions, labels: int64
    [N, T]; segment: int64 [N, T], PREFIX, 1… for questions, PADDING; kind: int64 [N, T], index into KINDS of
    the question that a token belongs to; length: int64 [N, T], tokens of the answer that a label belongs to.
    """

    pixels: torch.Tensor
    cells: torch.Tensor
    ids: torch.Tensor
    positions: torch.Tensor
    labels: torch.Tensor
    segment: torch.Tensor
    kind: torch.Tensor
    length: torch.Tensor

    def to(self, device: torch.device) -> Lesson:
        return Lesson(*(tensor.to(device, non_blocking=True) for tensor in self))


@dataclass(frozen=True)
class Lessons(Dataset[Lesson]):  # type: ignore[misc]
    """Lesson `i` of a course: `pictures` scenes that no other lesson shows, always the same ones.

    most_objects: for each lesson, how many objects a picture of it may hold.
    """

    tokenizer: Any
    split: Split
    first_scene: int
    pictures: int
    most_objects: Sequence[int]

    def __len__(self) -> int:
        return len(self.most_objects)

    def __getitem__(self, index: int) -> Lesson:
        first = self.first_scene + index * self.pictures
        numbers = range(first, first + self.pictures)
        scenes = [scene(self.split, number, self.most_objects[index]) for number in numbers]
        rows = [
            _row(one, self.tokenizer, generator(self.split, number, _STREAM))
            for one, number in zip(scenes, numbers, strict=True)
        ]
        pixels = torch.from_numpy(np.stack([one.pixels for one in scenes]))
        return Lesson(pixels, _cells(scenes), *_pack(rows, self.tokenizer.pad_token_id))


def _cells(scenes: Sequence[Scene]) -> torch.Tensor:
    labels = np.full((len(ATTRIBUTES), len(scenes), COLUMNS * COLUMNS), IGNORE)
    labels[0] = len(SHAPES)
    for n, one in enumerate(scenes):
        for thing in one.things:
            for a, (attribute, values) in enumerate(ATTRIBUTES):
                labels[a, n, thing.row * COLUMNS + thing.column] = values.index(getattr(thing, attribute))
    return torch.from_numpy(labels)


Column = tuple[int, int, int, int, int, int]
"""id, position, label, segment, kind, length of one token."""


def _row(one: Scene, tokenizer: Any, rng: np.random.Generator) -> list[Column]:
    image = (
        f"<fake_token_around_image><global-img>{'<image>' * demo.TOKENS_PER_TILE}<fake_token_around_image>"
    )
    prefix = tokenizer.encode(f"<|im_start|>User:{image}", add_special_tokens=False)
    columns: list[Column] = [(token, i, IGNORE, PREFIX, 0, 1) for i, token in enumerate(prefix)]
    for number, question in enumerate(ask_any(one, QUESTIONS, rng), 1):
        prompt = tokenizer.encode(f"{question.text}<end_of_utterance>\nAssistant:", add_special_tokens=False)
        answer = tokenizer.encode(f" {question.answer}<end_of_utterance>", add_special_tokens=False)
        tokens = prompt + answer
        if len(columns) + len(tokens) > ROW:
            continue
        for i, token in enumerate(tokens):
            label = tokens[i + 1] if len(prompt) - 1 <= i < len(tokens) - 1 else IGNORE
            kind = KINDS.index(question.kind)
            columns.append((token, len(prefix) + i, label, number, kind, len(answer)))
    return columns


def _pack(rows: Sequence[Sequence[Column]], pad: int) -> list[torch.Tensor]:
    packed = np.full((len(rows), ROW, 6), (pad, 0, IGNORE, PADDING, 0, 1))
    for into, columns in zip(packed, rows, strict=True):
        into[: len(columns)] = columns
    return [torch.from_numpy(packed[..., i].copy()) for i in range(packed.shape[-1])]
