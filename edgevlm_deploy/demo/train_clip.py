"""Train the demo CLIP from a seed: `python -m edgevlm_deploy.demo.train_clip OUT_DIR`.

Contrastive, with every caption that is true of a picture as its target and not only its own: captions
leave attributes out, so in a batch a picture has several. The vision encoder starts from the demo VLM's,
because a transformer this small finds the colours soon from captions alone, but the shapes not in any
sensible time.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from edgevlm_deploy import resources
from edgevlm_deploy.demo import clip
from edgevlm_deploy.demo import model as vlm
from edgevlm_deploy.demo.captions import CLASS_TEMPLATE, Caption, caption, truth
from edgevlm_deploy.demo.optimiser import Optimiser
from edgevlm_deploy.demo.pictures import (
    CLASSES,
    GROUNDS,
    USUAL_SHARE,
    Picture,
    counterfactual,
    training_picture,
)
from edgevlm_deploy.demo.scenes import Split, generator

MIXED_SHARE = 0.75
"""Share of the steps in which grounds tell nothing. With usual grounds from the start the model was 98 %
right on them and never right on others. Three quarters of the steps teach it the objects first; the rest
opens a gap between the grounds, and leaves no group that is never right."""
LARGEST_LOGIT_SCALE = math.log(100.0)
"""As in CLIP."""
REPORT_EVERY = 50
_CAPTION_STREAM = 14


@dataclass(frozen=True)
class Schedule:
    steps: int
    pictures: int
    """Per step; every step has its own."""
    rate: float = 5e-4
    warmup: int = 50
    held_out: int = 150
    """Scenes of the tuning split, each on two grounds, that the accuracies in the log are taken on."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--pictures", type=int, default=48, help="pictures per step")
    parser.add_argument("--rate", type=float, default=5e-4, help="peak learning rate")
    arguments = parser.parse_args()
    train(arguments.out, arguments.seed, Schedule(arguments.steps, arguments.pictures, arguments.rate))


def train(out: Path, seed: int, schedule: Schedule) -> None:
    """Train, save the checkpoint to `out` and the log of losses and accuracies to `out/training.jsonl`."""
    torch.manual_seed(seed)
    tokenizer = clip.tokenizer()
    model = clip.architecture(tokenizer)
    held_out = [counterfactual(Split.TUNING, index) for index in range(schedule.held_out)]
    start = vlm.load_weights(resources.DEMO_CHECKPOINT)
    clip.take_over_vision(model, start, _pixels([common for common, _ in held_out]))
    # Eager attention takes half the time of the fused one on a CPU in bfloat16.
    model.set_attn_implementation("eager")
    print(f"{sum(p.numel() for p in model.parameters()):,} parameters", flush=True)
    optimiser = Optimiser((model,), schedule.steps, schedule.warmup, schedule.rate)
    out.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    with (out / "training.jsonl").open("w") as log:
        for step in range(schedule.steps):
            loss = _loss(model, tokenizer, *_batch(step, schedule))
            optimiser.apply(loss, step)
            with torch.no_grad():
                model.logit_scale.clamp_(max=LARGEST_LOGIT_SCALE)
            if step % REPORT_EVERY == 0 or step == schedule.steps - 1:
                common, counter = _accuracies(model, tokenizer, held_out)
                row = {
                    "loss": loss.item(),
                    "common": common,
                    "counter": counter,
                    "logit_scale": model.logit_scale.exp().item(),
                }
                rounded = {name: round(value, 4) for name, value in row.items()}
                line = json.dumps({"step": step, "seconds": round(time.monotonic() - began), **rounded})
                print(line, flush=True)
                log.write(line + "\n")
                log.flush()
    clip.save(model, tokenizer, out)


def _batch(step: int, schedule: Schedule) -> tuple[list[Picture], list[Caption]]:
    usual = 1 / len(GROUNDS) if step < MIXED_SHARE * schedule.steps else USUAL_SHARE
    numbers = range(step * schedule.pictures, (step + 1) * schedule.pictures)
    pictures = [training_picture(Split.TRAIN, number, usual) for number in numbers]
    rngs = (generator(Split.TRAIN, number, _CAPTION_STREAM) for number in numbers)
    return pictures, [caption(picture, rng) for picture, rng in zip(pictures, rngs, strict=True)]


def _loss(
    model: Any, tokenizer: Any, pictures: Sequence[Picture], captions: Sequence[Caption]
) -> torch.Tensor:
    """Cross-entropy from pictures to captions and back, spread evenly over what is true."""
    with torch.autocast("cpu", torch.bfloat16):
        images = image_features(model, pictures)
        texts = text_features(model, tokenizer, [one.text for one in captions])
    logits = images @ texts.T * model.logit_scale.exp()
    right = torch.from_numpy(truth(pictures, captions)).float()
    to_text = F.cross_entropy(logits, right / right.sum(1, keepdim=True))
    to_image = F.cross_entropy(logits.T, (right / right.sum(0, keepdim=True)).T)
    return (to_text + to_image) / 2


def _pixels(pictures: Sequence[Picture]) -> torch.Tensor:
    """float32 [N, 3, SIDE, SIDE], normalised."""
    pixels = torch.from_numpy(np.stack([picture.pixels for picture in pictures])).permute(0, 3, 1, 2)
    mean, std = (torch.tensor(values)[:, None, None] for values in (clip.MEAN, clip.STD))
    return (pixels / 255.0 - mean) / std


def _unit(features: torch.Tensor) -> torch.Tensor:
    return F.normalize(features.float(), dim=-1)


def image_features(model: Any, pictures: Sequence[Picture]) -> torch.Tensor:
    """float32 [N, WIDTH], of length 1."""
    return _unit(model.visual_projection(model.vision_model(_pixels(pictures)).pooler_output))


def text_features(model: Any, tokenizer: Any, texts: Sequence[str]) -> torch.Tensor:
    """float32 [N, WIDTH], of length 1."""
    ids = tokenizer(texts, padding="max_length", max_length=clip.CONTEXT, return_tensors="pt").input_ids
    return _unit(model.text_projection(model.text_model(ids).pooler_output))


@torch.no_grad()  # type: ignore[untyped-decorator]
def _accuracies(
    model: Any, tokenizer: Any, held_out: Sequence[tuple[Picture, Picture]]
) -> tuple[float, float]:
    """Zero-shot accuracy on usual grounds and on others."""
    classes = text_features(model, tokenizer, [CLASS_TEMPLATE.format(name) for name in CLASSES])
    names = [pair[0].things[0].name for pair in held_out]
    labels = torch.tensor([CLASSES.index(name) for name in names])
    shares = []
    for side in (0, 1):
        features = image_features(model, [pair[side] for pair in held_out])
        shares.append(float(((features @ classes.T).argmax(1) == labels).float().mean()))
    return shares[0], shares[1]


if __name__ == "__main__":
    main()
