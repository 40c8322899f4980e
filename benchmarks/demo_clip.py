"""How good the demo CLIP is before anything is rounded: `python -m benchmarks.demo_clip`.

Prints two Markdown tables on pictures that training never saw, of the float model in torch. What rounding
costs is `python -m benchmarks.precisions --model demo-clip`.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from edgevlm_runner.corrupt import corrupt
from numpy.typing import NDArray
from PIL import Image

from edgevlm_deploy import quiet, resources
from edgevlm_deploy.demo.captions import CLASS_TEMPLATE
from edgevlm_deploy.demo.pictures import CLASSES, Picture, counterfactual, unseen_picture
from edgevlm_deploy.demo.scenes import SHAPES, UNSEEN_SHAPES, Split
from edgevlm_deploy.metrics import ood
from edgevlm_deploy.metrics.dual import spectrum
from edgevlm_deploy.metrics.dual.scored import OUTSIDE
from edgevlm_deploy.metrics.statistics import wilson
from edgevlm_deploy.recipe import EDGE_SUITE

Floats = NDArray[np.float64]

LEVEL = 0.95
SEVERITIES = (1, 3, 5)
BATCH = 64


@dataclass(frozen=True)
class Shown:
    """One picture and what is known about it."""

    image: Image.Image
    scene: str
    label: int
    condition: str = "clean"
    group: str = ""
    split: str = ""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("checkpoint", type=Path, nargs="?", default=resources.DEMO_CLIP)
    parser.add_argument("--scenes", type=int, default=240, help="each on two grounds")
    parser.add_argument("--per-condition", type=int, default=15, help="corrupted pictures per severity")
    arguments = parser.parse_args()
    with quiet.libraries():
        model, tokenizer = load(arguments.checkpoint)
        shown = pictures(arguments.scenes, arguments.per_condition)
        found = cosines(model, tokenizer, shown)
        print(accuracy_table(found, shown), outside_table(found, shown), sep="\n\n")


def load(checkpoint: Path) -> tuple[Any, Any]:
    from transformers import CLIPModel, CLIPTokenizer

    return CLIPModel.from_pretrained(checkpoint).float().eval(), CLIPTokenizer.from_pretrained(checkpoint)


def pictures(scenes: int, per_condition: int) -> list[Shown]:
    """Clean ones on both grounds, half as many from outside, corrupted ones."""
    shown = []
    for index in range(scenes):
        for side, one in zip(("common", "counter"), counterfactual(Split.EVALUATION, index), strict=True):
            shown.append(_shown(one, f"EVALUATION {index}", side))
    for index in range(scenes):
        kind, one = unseen_picture(Split.EVALUATION, index)
        shown.append(Shown(one.image, f"outside {index}", OUTSIDE, group=kind))
    clean = [one for one in shown if one.condition == "clean" and one.label != OUTSIDE]
    place = 0
    for corruption in EDGE_SUITE:
        for severity in SEVERITIES:
            for _ in range(per_condition):
                base = clean[place * 7 % len(clean)]  # 7 and the number of classes have no common divisor
                shown.append(_corrupted(base, corruption.value, severity))
                place += 1
    return shown


def _shown(one: Picture, scene: str, side: str) -> Shown:
    thing = one.things[0]
    group = f"{thing.shape} on {one.ground}"
    return Shown(one.image, scene, CLASSES.index(thing.name), "clean", group, side)


def _corrupted(base: Shown, corruption: str, severity: int) -> Shown:
    image = corrupt(base.image, corruption, severity, seed=0, image_id=f"{base.scene} {base.split}")
    return Shown(image, base.scene, base.label, f"{corruption}/{severity}", base.group, base.split)


def cosines(model: Any, tokenizer: Any, shown: Sequence[Shown]) -> Floats:
    """Of each picture with each class, float64 [N, C]."""
    projection = model.visual_projection.weight.detach().numpy().T.astype(np.float64)
    texts = _texts(model, tokenizer, [CLASS_TEMPLATE.format(name) for name in CLASSES])
    return spectrum.cosines(_pooled(model, [one.image for one in shown]) @ projection, texts)


def _pooled(model: Any, images: Sequence[Image.Image]) -> Floats:
    """The penultimate features, float64 [N, D]."""
    from edgevlm_deploy.demo.clip import image_processor

    normalised = image_processor()
    found = []
    for start in range(0, len(images), BATCH):
        pixels = normalised(list(images[start : start + BATCH]), return_tensors="pt").pixel_values
        with torch.no_grad():
            found.append(model.vision_model(pixels).pooler_output.double().numpy())
    return np.concatenate(found)


def _texts(model: Any, tokenizer: Any, texts: Sequence[str]) -> Floats:
    """float64 [N, W]."""
    ids = tokenizer(list(texts), padding=True, return_tensors="pt").input_ids
    with torch.no_grad():
        features: Floats = model.get_text_features(input_ids=ids).pooler_output.double().numpy()
    return features


def accuracy_table(found: Floats, shown: Sequence[Shown]) -> str:
    right = found.argmax(axis=1) == np.array([one.label for one in shown])
    lines = ["| pictures | number | accuracy | 95 % interval |", "|---|---|---|---|"]

    def row(name: str, wanted: Callable[[Shown], bool]) -> None:
        inside = np.array([one.label != OUTSIDE and wanted(one) for one in shown])
        n, hits = int(inside.sum()), int(right[inside].sum())
        low, high = wilson(hits, n, LEVEL)
        lines.append(f"| {name} | {n:,} | {hits / n:.1%} | {low:.1%} – {high:.1%} |")

    for side, words in (("common", "usual ground"), ("counter", "another ground")):
        row(words, lambda one, side=side: one.condition == "clean" and one.split == side)  # type: ignore[misc]
    for shape in SHAPES:
        row(
            f"{shape}, another ground",
            lambda one, shape=shape: (  # type: ignore[misc]
                one.condition == "clean" and one.split == "counter" and one.group.startswith(shape)
            ),
        )
    row("both grounds", lambda one: one.condition == "clean")
    row("corrupted", lambda one: one.condition != "clean")
    return "\n".join(lines)


def outside_table(found: Floats, shown: Sequence[Shown]) -> str:
    """AUROC of MCM per kind of picture from outside."""
    score = ood.maximum_concept_matching(found)
    clean = np.array([one.condition == "clean" for one in shown])
    inside = clean & np.array([one.label != OUTSIDE for one in shown])
    lines = ["| pictures from outside | number | AUROC (MCM) | 95 % interval |", "|---|---|---|---|"]
    for kind in (*UNSEEN_SHAPES, "texture", "noise", "all"):
        outside = clean & ~inside & np.array([kind in (one.group, "all") for one in shown])
        used = inside | outside
        low, high = ood.delong_interval(score[used], inside[used], LEVEL)
        area = ood.auroc(score[used], inside[used])
        lines.append(f"| {kind} | {int(outside.sum())} | {area:.3f} | {low:.3f} – {high:.3f} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
