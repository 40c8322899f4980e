"""How good the demo CLIP is, and what rounding its weights costs: `python -m benchmarks.demo_clip`.

Prints three Markdown tables on pictures that training never saw. Two are about the float model; the third
sets it beside copies with rounded weights (round to nearest in torch, without calibration) on every metric
of a dual encoder. A number is in bold where the 95 % interval of its change leaves out zero.
"""

from __future__ import annotations

import argparse
import copy
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
from edgevlm_deploy.demo.captions import CLASS_TEMPLATE, full_caption, truth
from edgevlm_deploy.demo.pictures import CLASSES, Picture, counterfactual, pair_picture, unseen_picture
from edgevlm_deploy.demo.scenes import SHAPES, UNSEEN_SHAPES, Split
from edgevlm_deploy.metrics import dual, ood
from edgevlm_deploy.metrics.dual import spectrum
from edgevlm_deploy.metrics.dual.scored import OUTSIDE, Head, Scored
from edgevlm_deploy.metrics.dual.tables import DualMetrics
from edgevlm_deploy.metrics.statistics import Estimate, wilson
from edgevlm_deploy.quantize.uniform import quantize_symmetric
from edgevlm_deploy.recipe import EDGE_SUITE, Evaluation

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


@dataclass(frozen=True)
class Scheme:
    """Weight bits in groups of `group` columns (None: per channel), and int8 inputs, per token, if asked."""

    name: str
    bits: int
    group: int | None
    int8_inputs: bool = False


SCHEMES = (
    Scheme("W8A8", 8, None, True),
    Scheme("W4A16 g64", 4, 64),
    Scheme("W4A8 g64", 4, 64, True),
    Scheme("W3A16 g64", 3, 64),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("checkpoint", type=Path, nargs="?", default=resources.DEMO_CLIP)
    parser.add_argument("--scenes", type=int, default=240, help="each on two grounds")
    parser.add_argument("--per-condition", type=int, default=15, help="corrupted pictures per severity")
    arguments = parser.parse_args()
    with quiet.libraries():
        model, tokenizer = load(arguments.checkpoint)
        shown = pictures(arguments.scenes, arguments.per_condition)
        pairs = [pair_picture(Split.EVALUATION, index) for index in range(arguments.scenes // 2)]
        float_model = Model(model, tokenizer, shown, pairs)
        print(accuracy_table(float_model, shown), outside_table(float_model, shown), sep="\n\n", end="\n\n")
        print(scheme_table(float_model, [Model(rounded(model, s), tokenizer, shown, pairs) for s in SCHEMES]))


def load(checkpoint: Path) -> tuple[Any, Any]:
    from transformers import CLIPModel, CLIPTokenizer

    return CLIPModel.from_pretrained(checkpoint).float().eval(), CLIPTokenizer.from_pretrained(checkpoint)


def pictures(scenes: int, per_condition: int) -> list[Shown]:
    """Clean ones on both grounds, half as many from outside, corrupted ones, and some for the logit scale."""
    shown = []
    for split, count, condition in ((Split.EVALUATION, scenes, "clean"), (Split.TUNING, 60, "temperature")):
        for index in range(count):
            for side, one in zip(("common", "counter"), counterfactual(split, index), strict=True):
                shown.append(_shown(one, f"{split.name} {index}", condition, side))
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


def _shown(one: Picture, scene: str, condition: str, side: str) -> Shown:
    thing = one.things[0]
    group = f"{thing.shape} on {one.ground}"
    return Shown(one.image, scene, CLASSES.index(thing.name), condition, group, side)


def _corrupted(base: Shown, corruption: str, severity: int) -> Shown:
    image = corrupt(base.image, corruption, severity, seed=0, image_id=f"{base.scene} {base.split}")
    return Shown(image, base.scene, base.label, f"{corruption}/{severity}", base.group, base.split)


class Model:
    """What one model makes of the pictures: features, cosines, retrieval."""

    def __init__(self, model: Any, tokenizer: Any, shown: Sequence[Shown], pairs: Sequence[Picture]) -> None:
        self.shown = shown
        self.features = _pooled(model, [one.image for one in shown])
        self.projection: Floats = model.visual_projection.weight.detach().numpy().T.astype(np.float64)
        self.texts = _texts(model, tokenizer, [CLASS_TEMPLATE.format(name) for name in CLASSES])
        self.cosines = spectrum.cosines(self.features @ self.projection, self.texts)
        self.head = Head(float(model.logit_scale.exp()))
        captions = [full_caption(one) for one in pairs]
        found = _pooled(model, [one.image for one in pairs]) @ self.projection
        self.relevant = truth(pairs, captions)
        self.similarity = spectrum.cosines(found, _texts(model, tokenizer, [one.text for one in captions]))


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


def rounded(model: Any, scheme: Scheme) -> Any:
    """A copy whose linear layers, both encoders' and the projections, compute with rounded numbers."""
    copied = copy.deepcopy(model)
    for module in copied.modules():
        if isinstance(module, torch.nn.Linear):
            weight = module.weight.detach().numpy()
            block = scheme.group or weight.shape[1]
            q, scale = quantize_symmetric(weight, scheme.bits, block)
            module.weight.data = torch.from_numpy(q * np.repeat(scale, block, axis=1)[:, : weight.shape[1]])
            if scheme.int8_inputs:
                module.register_forward_pre_hook(_int8_inputs)
    return copied


def _int8_inputs(_: Any, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
    """Symmetric, one scale per token, found while running."""
    scale = arguments[0].abs().amax(-1, keepdim=True).clamp(min=1e-8) / 127
    return ((arguments[0] / scale).round() * scale, *arguments[1:])


def measured(reference: Model, artifact: Model) -> DualMetrics:
    shown = reference.shown
    given = Scored(
        classes=CLASSES,
        labels=np.array([one.label for one in shown]),
        image_ids=tuple(one.scene for one in shown),
        conditions=tuple(one.condition for one in shown),
        groups=tuple(one.group if one.label != OUTSIDE else "" for one in shown),
        splits=tuple(one.split for one in shown),
        reference=reference.cosines,
        artifact=artifact.cosines,
        reference_head=reference.head,
        artifact_head=artifact.head,
    )
    inside = given.inside
    return dual.compute(given, Evaluation(bootstrap_resamples=1000, confidence_level=LEVEL)).model_copy(
        update={
            "retrieval": dual.retrieval_table(
                reference.similarity, artifact.similarity, reference.relevant, LEVEL
            ),
            "spectral": dual.spectral_table(
                reference.features[inside],
                artifact.features[inside],
                reference.texts,
                artifact.texts,
                given.labels[inside],
                (reference.projection, artifact.projection),
            ),
        }
    )


def accuracy_table(model: Model, shown: Sequence[Shown]) -> str:
    right = model.cosines.argmax(axis=1) == np.array([one.label for one in shown])
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
    row("corrupted", lambda one: one.condition not in ("clean", "temperature"))
    return "\n".join(lines)


def scheme_table(reference: Model, artifacts: Sequence[Model]) -> str:
    found = [measured(reference, artifact) for artifact in artifacts]
    lines = [
        f"| | FP32 | {' | '.join(scheme.name for scheme in SCHEMES)} |",
        "|---|---|" + "---|" * len(SCHEMES),
    ]

    def row(name: str, before: Estimate | None, now: Sequence[Estimate], moved: Sequence[Estimate]) -> None:
        first = "" if before is None else _number(before)
        cells = [_bold(_number(one), change) for one, change in zip(now, moved, strict=True)]
        lines.append(f"| {name} | {first} | {' | '.join(cells)} |")

    for name, change in _SHARED.items():
        tables = [one.answers.estimates for one in found]
        changes = [table[change] if change else table[name] for table in tables]
        row(_title(name), tables[0].get(f"reference_{name}"), [table[name] for table in tables], changes)
    for name, change in _OWN.items():
        tables = [one.estimates for one in found]
        changes = [table[f"{name}_{change}"] for table in tables]
        row(_title(name), tables[0][f"reference_{name}"], [table[name] for table in tables], changes)
    for title, way in (("picture → text", "image_to_text"), ("text → picture", "text_to_image")):
        tables = [getattr(one.retrieval, way).estimates for one in found]
        for name in ("recall_at_1", "recall_at_5"):
            changes = [table[f"{name}_drop"] for table in tables]
            values = [table[name] for table in tables]
            row(f"{title}, {_title(name)}", tables[0][f"reference_{name}"], values, changes)
    lines += _spectral_rows(found) + _scale_row(found)
    return "\n".join(lines)


_SHARED = {
    "accuracy": "accuracy_drop",
    "divergence_rate": "",
    "negative_flip_rate": "",
    "positive_flip_rate": "",
    "corrupted_accuracy": "robustness_gap",
    "relative_robustness": "robustness_gap",
    "mean_accuracy_drop": "robustness_gap",
    "ece": "ece_increase",
    "brier": "brier_increase",
    "coverage_at_risk_5": "coverage_at_risk_5_drop",
}
_OWN = {
    "top_5_accuracy": "drop",
    "worst_group_accuracy": "drop",
    "relative_spurious_gap": "increase",
    "mcm_auroc": "drop",
    "mcm_fpr_at_least_95": "increase",
    "mcm_fpr_closest_95": "increase",
    "energy_auroc": "drop",
    "max_logit_auroc": "drop",
    "entropy_auroc": "drop",
}


def _title(name: str) -> str:
    return name.replace("_", " ")


def _number(one: Estimate) -> str:
    return "–" if one.value is None else f"{one.value:.3f}"


def _bold(text: str, change: Estimate) -> str:
    apart = change.low is not None and change.high is not None and not change.low <= 0 <= change.high
    return f"**{text}**" if apart else text


def _spectral_rows(found: Sequence[DualMetrics]) -> list[str]:
    lines = []
    tables = [one.spectral for one in found]
    assert all(tables)
    for number, band in enumerate(tables[0].bands):  # type: ignore[union-attr]
        rows = [table.bands[number] for table in tables]  # type: ignore[union-attr]
        ranks = f"ranks {band.first} – {band.last}"
        decibels = ["∞" if row.sqnr_db is None else f"{row.sqnr_db:.1f}" for row in rows]
        lines.append(f"| {ranks}, SQNR in dB | | {' | '.join(decibels)} |")
        shares = " | ".join(f"{row.artifact_accuracy:.3f}" for row in rows)
        lines.append(f"| {ranks}, accuracy by them alone | {band.reference_accuracy:.3f} | {shares} |")
    return lines


def _scale_row(found: Sequence[DualMetrics]) -> list[str]:
    """ECE with the trained logit scale, and with the one fitted on held-out pictures."""
    before, *now = [
        found[0].logit_scale.get("reference"),
        *(one.logit_scale.get("artifact") for one in found),
    ]
    cells = ["–" if row is None else f"{row.ece_after:.3f} ({row.fitted:.1f})" for row in (before, *now)]
    return [f"| ece, logit scale fitted | {' | '.join(cells)} |"]


def outside_table(model: Model, shown: Sequence[Shown]) -> str:
    """AUROC of MCM per kind of picture from outside."""
    score = ood.maximum_concept_matching(model.cosines)
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
