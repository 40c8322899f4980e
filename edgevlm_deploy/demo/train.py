"""Train the demo VLM from a seed: `python -m edgevlm_deploy.demo.train OUT_DIR`.

Two stages. First the vision encoder and the projector learn to tell what stands in each grid cell
(one image token per cell, linear heads that are thrown away); a transformer this small finds no
grounding from answers alone in any sensible time. Then the whole model learns question answering.

Several questions about one picture are packed behind one image prefix: each question attends to the
prefix and to itself, and its positions go on from the prefix, which is what it meets at inference.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

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
"""Questions per picture and step."""
IGNORE = -100
CELL_WEIGHT = 0.2
CURRICULUM = ((0.25, 1), (0.45, 2), (1.0, COLUMNS))
"""Up to which share of the second stage how many objects are in a picture. With one, comparing a word with
what is seen is learnt before having to find it; with two, finding; then all at once."""
_ATTRIBUTES = (("shape", SHAPES), ("colour", COLOURS), ("size", SIZES), ("texture", TEXTURES))


@dataclass(frozen=True)
class Schedule:
    vision_steps: int
    steps: int
    pictures: int
    vision_rate: float = 1.5e-3
    rate: float = 1e-3
    warmup: int = 100
    first_scene: int = 0
    """Scenes before this one were seen by the model that training goes on from."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--vision-steps", type=int, default=350)
    parser.add_argument("--steps", type=int, default=9000)
    parser.add_argument("--pictures", type=int, default=32, help="pictures per step")
    parser.add_argument("--rate", type=float, default=1e-3, help="peak learning rate of the second stage")
    parser.add_argument("--go-on-from", type=Path, help="checkpoint folder; random weights by default")
    parser.add_argument("--first-scene", type=int, default=0, help="what that checkpoint has seen already")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    arguments = parser.parse_args()
    schedule = Schedule(
        arguments.vision_steps,
        arguments.steps,
        arguments.pictures,
        rate=arguments.rate,
        first_scene=arguments.first_scene,
    )
    train(arguments.out, arguments.seed, schedule, torch.device(arguments.device), arguments.go_on_from)


def train(
    out: Path, seed: int, schedule: Schedule, device: torch.device, go_on_from: Path | None = None
) -> None:
    """Train, save the checkpoint to `out` and the loss curve to `out/training.jsonl`."""
    torch.manual_seed(seed)
    tokenizer = demo.tokenizer() if go_on_from is None else demo.load_tokenizer(go_on_from)
    vlm = demo.architecture(tokenizer).to(device)
    if go_on_from is not None:
        vlm.load_state_dict(demo.load_weights(go_on_from))
    vlm.set_attn_implementation("eager")  # half the time of fused attention on a CPU in bfloat16
    heads = _cell_heads(vlm).to(device)
    print(f"{sum(p.numel() for p in vlm.parameters()):,} parameters on {device}", flush=True)
    out.mkdir(parents=True, exist_ok=True)
    with (out / "training.jsonl").open("w") as log:
        _teach_cells(vlm, heads, schedule, device, log)
        _teach_answers(vlm, heads, tokenizer, schedule, device, out / "snapshot", log)
    demo.save(vlm, tokenizer, out)


def _scenes(start: int, count: int, most: int = COLUMNS) -> list[Scene]:
    return [scene(Split.TRAIN, index, most) for index in range(start, start + count)]


def _pixels(scenes: list[Scene], device: torch.device) -> torch.Tensor:
    """float32 [N, 3, SIDE, SIDE] in −1 … 1, as SmolVLM's processor makes them."""
    stacked = torch.from_numpy(np.stack([s.pixels for s in scenes])).to(device)
    return stacked.permute(0, 3, 1, 2).float() / 127.5 - 1.0


def image_features(vlm: Any, pixels: torch.Tensor) -> torch.Tensor:
    """float32 [N, TOKENS_PER_TILE, D]."""
    hidden = vlm.model.vision_model(pixel_values=pixels).last_hidden_state
    features: torch.Tensor = vlm.model.connector(hidden)
    return features


def _learning_rate(step: int, steps: int, warmup: int, peak: float) -> float:
    if step < warmup:
        return peak * (step + 1) / warmup
    return peak * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup))))


class _Optimiser:
    """AdamW, warm-up then cosine, gradients clipped to norm 1; bfloat16 matrix products."""

    def __init__(self, parameters: list[torch.nn.Parameter], steps: int, warmup: int, peak: float) -> None:
        decayed = [p for p in parameters if p.ndim > 1]
        plain = [p for p in parameters if p.ndim <= 1]
        groups = [{"params": decayed, "weight_decay": 0.05}, {"params": plain, "weight_decay": 0.0}]
        self._adam = torch.optim.AdamW(groups, lr=peak, betas=(0.9, 0.98))
        self._parameters, self._steps, self._warmup, self._peak = parameters, steps, warmup, peak

    def apply(self, loss: torch.Tensor, step: int) -> None:
        for group in self._adam.param_groups:
            group["lr"] = _learning_rate(step, self._steps, self._warmup, self._peak)
        self._adam.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self._parameters, 1.0)
        self._adam.step()


def _cell_labels(scenes: list[Scene], device: torch.device) -> torch.Tensor:
    """int64 [attribute, N, cells]: the object's value in its cell, IGNORE in empty ones.

    Shape has one more class for "nothing here", so empty cells are learnt as well.
    """
    labels = np.full((len(_ATTRIBUTES), len(scenes), COLUMNS * COLUMNS), IGNORE)
    labels[0] = len(SHAPES)
    for n, one in enumerate(scenes):
        for thing in one.things:
            for a, (attribute, values) in enumerate(_ATTRIBUTES):
                labels[a, n, thing.row * COLUMNS + thing.column] = values.index(getattr(thing, attribute))
    return torch.from_numpy(labels).to(device)


def _cell_heads(vlm: Any) -> torch.nn.ModuleList:
    """One linear classifier per attribute on an image token; thrown away after training."""
    width = vlm.config.text_config.hidden_size
    classes = [len(values) + (name == "shape") for name, values in _ATTRIBUTES]
    return torch.nn.ModuleList(torch.nn.Linear(width, n) for n in classes)


def _cell_losses(heads: torch.nn.ModuleList, features: torch.Tensor, scenes: list[Scene]) -> torch.Tensor:
    """Cross-entropy per attribute, float32 [attributes]."""
    labels = _cell_labels(scenes, features.device)
    losses = [
        F.cross_entropy(head(features).float().flatten(0, 1), wanted.flatten(), ignore_index=IGNORE)
        for head, wanted in zip(heads, labels, strict=True)
    ]
    return torch.stack(losses)


def _teach_cells(
    vlm: Any, heads: torch.nn.ModuleList, schedule: Schedule, device: torch.device, log: Any
) -> None:
    modules = (vlm.model.vision_model, vlm.model.connector, heads)
    parameters = [parameter for module in modules for parameter in module.parameters()]
    optimiser = _Optimiser(parameters, schedule.vision_steps, schedule.warmup, schedule.vision_rate)
    pictures = 2 * schedule.pictures
    began = time.monotonic()
    for step in range(schedule.vision_steps):
        scenes = _scenes(schedule.first_scene + step * pictures, pictures)
        with torch.autocast(device.type, torch.bfloat16):
            losses = _cell_losses(heads, image_features(vlm, _pixels(scenes, device)), scenes)
        optimiser.apply(losses.sum(), step)
        if step % 50 == 0 or step == schedule.vision_steps - 1:
            row = {name: round(loss, 4) for (name, _), loss in zip(_ATTRIBUTES, losses.tolist(), strict=True)}
            _log(log, {"stage": "cells", "step": step, "seconds": round(time.monotonic() - began), **row})


@dataclass(frozen=True)
class Packed:
    """One row per picture: image prefix, then every question with its answer.

    ids, positions, labels: int64 [N, T]; segment: int64 [N, T], 0 for the prefix, 1… for questions,
    −1 for padding; kind: index into KINDS of the question that a token belongs to; length: tokens of the
    answer that a label belongs to.
    """

    ids: torch.Tensor
    positions: torch.Tensor
    labels: torch.Tensor
    segment: torch.Tensor
    kind: torch.Tensor
    length: torch.Tensor


def _pack(scenes: list[Scene], first: int, tokenizer: Any, device: torch.device) -> Packed:
    image = (
        f"<fake_token_around_image><global-img>{'<image>' * demo.TOKENS_PER_TILE}<fake_token_around_image>"
    )
    prefix = tokenizer.encode(f"<|im_start|>User:{image}", add_special_tokens=False)
    rows = []
    for offset, one in enumerate(scenes):
        columns = [(token, i, IGNORE, 0, 0, 1) for i, token in enumerate(prefix)]
        questions = ask_any(one, QUESTIONS, generator(Split.TRAIN, first + offset, 2))
        for number, question in enumerate(questions, 1):
            prompt = tokenizer.encode(
                f"{question.text}<end_of_utterance>\nAssistant:", add_special_tokens=False
            )
            answer = tokenizer.encode(f" {question.answer}<end_of_utterance>", add_special_tokens=False)
            tokens = prompt + answer
            for i, token in enumerate(tokens):
                label = tokens[i + 1] if len(prompt) - 1 <= i < len(tokens) - 1 else IGNORE
                row = (token, len(prefix) + i, label, number, KINDS.index(question.kind), len(answer))
                columns.append(row)
        rows.append(columns)
    # A few fixed lengths: CPU kernels are compiled per shape.
    length = -(-max(map(len, rows)) // 32) * 32
    packed = np.full((len(rows), length, 6), (tokenizer.pad_token_id, 0, IGNORE, -1, 0, 1))
    for into, columns in zip(packed, rows, strict=True):
        into[: len(columns)] = columns
    return Packed(*(torch.from_numpy(packed[..., i].copy()).to(device) for i in range(6)))


def _attention(packed: Packed) -> torch.Tensor:
    """float32 [N, 1, T, T], added to the scores: causal, own segment or prefix; padding sees itself."""
    length = packed.ids.shape[1]
    causal = torch.ones(length, length, dtype=torch.bool, device=packed.ids.device).tril()
    query, key = packed.segment[:, :, None], packed.segment[:, None, :]
    visible = (causal & ((key == query) | (key == 0)))[:, None]
    return torch.zeros(visible.shape, device=visible.device).masked_fill(~visible, -1e9)


def _answer_loss(vlm: Any, packed: Packed, features: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean cross-entropy over answer tokens, and the loss of each of them.

    A token weighs 1/√(length of its answer): between counting tokens, where captions drown the yes and
    no, and counting answers, where they starve.
    """
    embeddings = vlm.get_input_embeddings()(packed.ids)
    is_image = packed.ids == vlm.config.image_token_id
    embeddings = embeddings.masked_scatter(is_image[..., None], features.to(embeddings.dtype))
    hidden = vlm.model.text_model(
        inputs_embeds=embeddings,
        attention_mask=_attention(packed),
        position_ids=packed.positions,
        use_cache=False,
    ).last_hidden_state
    logits = vlm.lm_head(hidden).float().flatten(0, 1)
    losses = F.cross_entropy(logits, packed.labels.flatten(), ignore_index=IGNORE, reduction="none")
    asked = packed.labels.flatten() != IGNORE
    losses, weights = losses[asked], packed.length.flatten()[asked].float().rsqrt()
    return (losses * weights).sum() / weights.sum(), losses.detach()


def _teach_answers(
    vlm: Any,
    heads: torch.nn.ModuleList,
    tokenizer: Any,
    schedule: Schedule,
    device: torch.device,
    snapshot: Path,
    log: Any,
) -> None:
    """The first stage's task goes on beside: what no question asks for yet would be forgotten."""
    parameters = [*vlm.parameters(), *heads.parameters()]
    optimiser = _Optimiser(parameters, schedule.steps, schedule.warmup, schedule.rate)
    first = schedule.first_scene + 2 * schedule.pictures * schedule.vision_steps
    began = time.monotonic()
    by_kind: dict[str, list[float]] = {kind: [] for kind in KINDS}
    for step in range(schedule.steps):
        start = first + step * schedule.pictures
        most = next(most for share, most in CURRICULUM if step < share * schedule.steps)
        scenes = _scenes(start, schedule.pictures, most)
        packed = _pack(scenes, start, tokenizer, device)
        with torch.autocast(device.type, torch.bfloat16):
            features = image_features(vlm, _pixels(scenes, device))
            loss, losses = _answer_loss(vlm, packed, features)
            cells = _cell_losses(heads, features, scenes)
        optimiser.apply(loss + CELL_WEIGHT * cells.sum(), step)
        kinds = packed.kind[packed.labels != IGNORE].cpu().numpy()
        _collect(by_kind, losses.cpu().numpy(), kinds)
        if step % 50 == 0 or step == schedule.steps - 1:
            row = {kind: round(float(np.mean(values)), 4) for kind, values in by_kind.items() if values}
            row["cells"] = round(cells.sum().item(), 4)
            by_kind = {kind: [] for kind in KINDS}
            demo.save(copy.deepcopy(vlm), tokenizer, snapshot)
            _log(log, {"stage": "answers", "step": step, "seconds": round(time.monotonic() - began), **row})


def _collect(by_kind: dict[str, list[float]], losses: NDArray[np.float32], kinds: NDArray[np.int64]) -> None:
    for index, kind in enumerate(KINDS):
        if (kinds == index).any():
            by_kind[kind].append(float(losses[kinds == index].mean()))


def _log(log: Any, row: dict[str, Any]) -> None:
    print(json.dumps(row), flush=True)
    log.write(json.dumps(row) + "\n")
    log.flush()


if __name__ == "__main__":
    main()
