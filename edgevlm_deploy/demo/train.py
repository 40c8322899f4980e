"""Train the demo VLM from a seed: `python -m edgevlm_deploy.demo.train OUT_DIR`.

Two stages. First the vision encoder and the projector learn to tell what stands in each grid cell
(one image token per cell, linear heads that are thrown away); a transformer this small finds no
grounding from answers alone in any sensible time. Then the whole model learns question answering.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import torch
from torch.nn import functional as F
from torch.utils.data import DataLoader

from edgevlm_deploy.demo import model as demo
from edgevlm_deploy.demo.lessons import ATTRIBUTES, IGNORE, PREFIX, Lesson, Lessons
from edgevlm_deploy.demo.optimiser import Optimiser
from edgevlm_deploy.demo.questions import KINDS
from edgevlm_deploy.demo.scenes import MOST_OBJECTS, SHAPES, Split

CELL_WEIGHT = 0.2
CURRICULUM = ((0.06, 1), (0.3, 2), (1.0, MOST_OBJECTS))
"""Up to which share of the second stage how many objects are in a picture. With one, comparing a word with
what is seen is learnt before having to find it; with two, finding; then all at once."""
REPORT_EVERY = 250
"""Steps between two lines of the log."""
HELD_OUT = 4
"""Lessons of the tuning split that the accuracies in the log are taken on."""


@dataclass(frozen=True)
class Schedule:
    vision_steps: int
    steps: int
    pictures: int
    vision_rate: float = 1.5e-3
    rate: float = 1e-3
    warmup: int = 100


@dataclass(frozen=True)
class Training:
    """One run: what both stages work on."""

    vlm: Any
    heads: torch.nn.ModuleList
    tokenizer: Any
    schedule: Schedule
    device: torch.device
    workers: int
    """Processes that render; 0 renders between two steps."""
    log: TextIO
    began: float

    def course(self, lessons: Lessons) -> Iterator[Lesson]:
        loader = DataLoader(
            lessons,
            batch_size=None,
            num_workers=self.workers,
            pin_memory=self.device.type == "cuda",
            prefetch_factor=4 if self.workers else None,
        )
        return (lesson.to(self.device) for lesson in loader)

    def report(self, stage: str, step: int, row: dict[str, float]) -> None:
        seconds = round(time.monotonic() - self.began)
        rounded = {name: round(value, 4) for name, value in row.items()}
        line = json.dumps({"stage": stage, "step": step, "seconds": seconds, **rounded})
        print(line, flush=True)
        self.log.write(line + "\n")
        self.log.flush()


def main() -> None:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--vision-steps", type=int, default=350)
    parser.add_argument("--steps", type=int, default=9000)
    parser.add_argument("--pictures", type=int, default=32, help="pictures per step")
    parser.add_argument("--rate", type=float, default=1e-3, help="peak learning rate of the second stage")
    parser.add_argument("--device", default=device)
    parser.add_argument(
        "--workers",
        type=int,
        default=max(1, (os.cpu_count() or 1) - 1) if device == "cuda" else 0,
        help="processes that render; on a CPU they would compete with training",
    )
    arguments = parser.parse_args()
    schedule = Schedule(arguments.vision_steps, arguments.steps, arguments.pictures, rate=arguments.rate)
    train(arguments.out, arguments.seed, schedule, torch.device(arguments.device), arguments.workers)


def train(out: Path, seed: int, schedule: Schedule, device: torch.device, workers: int = 0) -> None:
    """Train, save the checkpoint to `out` and the log of losses and accuracies to `out/training.jsonl`."""
    torch.manual_seed(seed)
    tokenizer = demo.tokenizer()
    vlm = demo.architecture(tokenizer).to(device)
    # Eager attention takes half the time of the fused one on a CPU in bfloat16.
    vlm.set_attn_implementation("eager" if device.type == "cpu" else "sdpa")
    heads = _cell_heads(vlm).to(device)
    vlm.model.vision_model.compile(dynamic=False)
    vlm.model.text_model.compile(dynamic=False)
    print(f"{sum(p.numel() for p in vlm.parameters()):,} parameters on {device}", flush=True)
    out.mkdir(parents=True, exist_ok=True)
    with (out / "training.jsonl").open("w") as log:
        training = Training(vlm, heads, tokenizer, schedule, device, workers, log, time.monotonic())
        _teach_cells(training)
        _teach_answers(training)
    demo.save(vlm, tokenizer, out)


def most_objects(steps: int) -> list[int]:
    """The curriculum: for each step of the second stage, how many objects a picture may hold."""
    return [next(most for share, most in CURRICULUM if step < share * steps) for step in range(steps)]


def _pixels(lesson: Lesson) -> torch.Tensor:
    """float32 [N, 3, SIDE, SIDE] in −1 … 1, as SmolVLM's processor makes them."""
    return lesson.pixels.permute(0, 3, 1, 2).float() / 127.5 - 1.0


def image_features(vlm: Any, pixels: torch.Tensor) -> torch.Tensor:
    """float32 [N, TOKENS_PER_TILE, D]."""
    hidden = vlm.model.vision_model(pixel_values=pixels).last_hidden_state
    features: torch.Tensor = vlm.model.connector(hidden)
    return features


def _cell_heads(vlm: Any) -> torch.nn.ModuleList:
    """One linear classifier per attribute on an image token; thrown away after training."""
    width = vlm.config.text_config.hidden_size
    classes = [len(values) + (values is SHAPES) for _, values in ATTRIBUTES]
    return torch.nn.ModuleList(torch.nn.Linear(width, n) for n in classes)


def _cell_losses(heads: torch.nn.ModuleList, features: torch.Tensor, lesson: Lesson) -> torch.Tensor:
    """Cross-entropy per attribute, float32 [attributes]."""
    losses = [
        F.cross_entropy(head(features).float().flatten(0, 1), wanted.flatten(), ignore_index=IGNORE)
        for head, wanted in zip(heads, lesson.cells, strict=True)
    ]
    return torch.stack(losses)


def _teach_cells(training: Training) -> None:
    vlm, heads, schedule = training.vlm, training.heads, training.schedule
    modules = (vlm.model.vision_model, vlm.model.connector, heads)
    optimiser = Optimiser(modules, schedule.vision_steps, schedule.warmup, schedule.vision_rate)
    objects = [MOST_OBJECTS] * schedule.vision_steps
    lessons = Lessons(training.tokenizer, Split.TRAIN, 0, 2 * schedule.pictures, objects)
    for step, lesson in enumerate(training.course(lessons)):
        with torch.autocast(training.device.type, torch.bfloat16):
            losses = _cell_losses(heads, image_features(vlm, _pixels(lesson)), lesson)
        optimiser.apply(losses.sum(), step)
        if step % 50 == 0 or step == schedule.vision_steps - 1:
            names = [name for name, _ in ATTRIBUTES]
            training.report("cells", step, dict(zip(names, losses.tolist(), strict=True)))


def _attention(lesson: Lesson) -> torch.Tensor:
    """float32 [N, 1, T, T], added to the scores: causal, own segment or prefix; padding sees itself."""
    length = lesson.ids.shape[1]
    causal = torch.ones(length, length, dtype=torch.bool, device=lesson.ids.device).tril()
    query, key = lesson.segment[:, :, None], lesson.segment[:, None, :]
    visible = (causal & ((key == query) | (key == PREFIX)))[:, None]
    return torch.zeros(visible.shape, device=visible.device).masked_fill(~visible, -1e9)


def _answers(vlm: Any, lesson: Lesson, features: torch.Tensor) -> torch.Tensor:
    """Logits of the M tokens that have a label, in the order of the rows: float32 [M, V]."""
    embeddings = vlm.get_input_embeddings()(lesson.ids)
    is_image = lesson.ids == vlm.config.image_token_id
    embeddings = embeddings.masked_scatter(is_image[..., None], features.to(embeddings.dtype))
    hidden = vlm.model.text_model(
        inputs_embeds=embeddings,
        attention_mask=_attention(lesson),
        position_ids=lesson.positions,
        use_cache=False,
    ).last_hidden_state
    logits: torch.Tensor = vlm.lm_head(hidden[lesson.labels != IGNORE]).float()
    return logits


def _answer_loss(logits: torch.Tensor, lesson: Lesson) -> torch.Tensor:
    """Cross-entropy over answer tokens.

    A token weighs 1/√(length of its answer): between counting tokens, where captions drown the yes and
    no, and counting answers, where they starve.
    """
    asked = lesson.labels != IGNORE
    losses = F.cross_entropy(logits, lesson.labels[asked], reduction="none")
    weights = lesson.length[asked].float().rsqrt()
    return (losses * weights).sum() / weights.sum()


def _accuracy(vlm: Any, lessons: Sequence[Lesson]) -> dict[str, float]:
    """Share of answers that greedy decoding gets wholly right, per kind of question and over all."""
    right: dict[str, list[bool]] = {kind: [] for kind in KINDS}
    for lesson in lessons:
        asked = lesson.labels != IGNORE
        with torch.no_grad(), torch.autocast(lesson.ids.device.type, torch.bfloat16):
            said = _answers(vlm, lesson, image_features(vlm, _pixels(lesson))).argmax(-1)
        rows = torch.arange(len(lesson.ids), device=asked.device)[:, None].expand_as(asked)
        tokens = (rows[asked], lesson.segment[asked], lesson.kind[asked], said == lesson.labels[asked])
        answers: dict[tuple[int, int, int], bool] = {}
        for row, segment, kind, hit in zip(*(column.tolist() for column in tokens), strict=True):
            answers[row, segment, kind] = answers.get((row, segment, kind), True) and hit
        for (_, _, kind), hit in answers.items():
            right[KINDS[kind]].append(hit)
    shares = {kind: sum(hits) / len(hits) for kind, hits in right.items()}
    total = [hit for hits in right.values() for hit in hits]
    return {**shares, "all": sum(total) / len(total)}


def _teach_answers(training: Training) -> None:
    """The first stage's task goes on beside: what no question asks for yet would be forgotten."""
    vlm, heads, schedule, tokenizer = training.vlm, training.heads, training.schedule, training.tokenizer
    optimiser = Optimiser((vlm, heads), schedule.steps, schedule.warmup, schedule.rate)
    first = 2 * schedule.pictures * schedule.vision_steps
    lessons = Lessons(tokenizer, Split.TRAIN, first, schedule.pictures, most_objects(schedule.steps))
    tuning = Lessons(tokenizer, Split.TUNING, 0, schedule.pictures, [MOST_OBJECTS] * HELD_OUT)
    held_out = [tuning[index].to(training.device) for index in range(HELD_OUT)]
    for step, lesson in enumerate(training.course(lessons)):
        with torch.autocast(training.device.type, torch.bfloat16):
            features = image_features(vlm, _pixels(lesson))
            loss = _answer_loss(_answers(vlm, lesson, features), lesson)
            cells = _cell_losses(heads, features, lesson).sum()
        optimiser.apply(loss + CELL_WEIGHT * cells, step)
        if step % REPORT_EVERY == 0 or step == schedule.steps - 1:
            with torch.compiler.set_stance("force_eager"):
                shares = _accuracy(vlm, held_out)
            training.report("answers", step, {"loss": loss.item(), "cells": cells.item(), **shares})


if __name__ == "__main__":
    main()
