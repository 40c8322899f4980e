"""What calibration sees, and what that changes: `python -m benchmarks.calibration_composition`.

The demo model is quantised once per composition of its calibration set and per precision, and asked the same
questions as the float model, on clean and on corrupted pictures. Fake-quantised in torch: the integers are
those of a compilation, the arithmetic is float32.
"""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from edgevlm_runner.contract import CLEAN, Item, ModelSpec
from edgevlm_runner.inputs import from_item, load_tokenizer

from benchmarks import conditions, page
from benchmarks.process import say
from edgevlm_deploy import (
    backends,
    bundle,
    calibration,
    quantize,
    quiet,
    reference,
    resources,
    source,
    suites,
)
from edgevlm_deploy.demo.dataset import samples
from edgevlm_deploy.demo.scenes import Split
from edgevlm_deploy.metrics.consistency import diverges
from edgevlm_deploy.metrics.statistics import wilson
from edgevlm_deploy.quantize import fakequant
from edgevlm_deploy.recipe import (
    Algorithm,
    Calibration,
    Component,
    Composition,
    Evaluation,
    Mixture,
    Precision,
    Quantizer,
    Scheme,
)
from edgevlm_deploy.target import Backend

LEVEL = 0.95
QUESTIONS_PER_PICTURE = 4

PRECISIONS: Mapping[str, Mapping[Component, Precision]] = {
    "decoder int3, GPTQ": {
        Component.DECODER: Precision(scheme=Scheme.W3A16_CHANNEL, algorithm=Algorithm.GPTQ)
    },
    "decoder int4, GPTQ": {
        Component.DECODER: Precision(scheme=Scheme.W4A16_CHANNEL, algorithm=Algorithm.GPTQ)
    },
    "vision W8A8, min-max": dict.fromkeys(
        (Component.VISION_ENCODER, Component.PROJECTOR), Precision(scheme=Scheme.W8A8)
    ),
}
ROUNDED = {"decoder int3, GPTQ": Scheme.W3A16_CHANNEL, "decoder int4, GPTQ": Scheme.W4A16_CHANNEL}
"""The same scheme rounded to nearest, which looks at no data."""


def compositions(count: int) -> dict[str, Calibration]:
    def mixed(**shares: float) -> Calibration:
        return Calibration(samples=count, mixture=Mixture(**{"clean": 0.0, **shares}))

    return {
        "balanced over kinds of question": Calibration(samples=count),
        "as drawn": Calibration(samples=count, modality_balanced=False),
        "80 % clean, 10 % dark, 10 % noise": mixed(clean=0.8, dark=0.1, noise=0.1),
        "dark": mixed(dark=1.0),
        "grey": mixed(grey=1.0),
        "noise": mixed(noise=1.0),
        "text only": Calibration(samples=count, composition=Composition.TEXT_ONLY),
        "image only": Calibration(samples=count, composition=Composition.IMAGE_ONLY),
    }


class Bench:
    """The demo model, its questions, and what the float model answers to them."""

    def __init__(self, folder: Path, pictures: int, per_condition: int) -> None:
        self.folder = folder
        self.model = source.inspect(resources.DEMO_CHECKPOINT)
        graphs = backends.graph_names(Backend.ONNXRUNTIME)
        self.spec: ModelSpec = source.model_spec(
            self.model, resources.recipe("default"), Backend.ONNXRUNTIME.value, graphs
        )
        self.tokenizer = load_tokenizer(self.model.tokenizer)
        evaluation = Evaluation(
            clean_items=pictures * QUESTIONS_PER_PICTURE, severities=(3, 5), items_per_condition=per_condition
        )
        self.items = suites.build(self._clean(pictures), evaluation)
        self.questions = [
            reference.Question(item, from_item(item, folder, 0, self.spec, self.tokenizer))
            for item in self.items
        ]
        self.questions.sort(key=lambda question: question.inputs.input_ids.shape[1])
        self.expected = self.answers(source.load(self.model))

    def _clean(self, pictures: int) -> list[Item]:
        (self.folder / "images").mkdir()
        items = []
        for one in samples(Split.EVALUATION, pictures, QUESTIONS_PER_PICTURE, self.folder / "scenes"):
            assert one.image is not None
            name = bundle.picture_name(one.image, one.image_id)
            shutil.copyfile(one.image, self.folder / name)
            items.append(Item(one.id, one.id, one.group, CLEAN, name, one.image_id, one.prompt, one.answers))
        return items

    def answers(self, model: Any) -> list[str]:
        """In the order of `items`."""
        said: dict[str, str] = {}
        for start in range(0, len(self.questions), reference.BATCH):
            batch = self.questions[start : start + reference.BATCH]
            found = reference.generate(model, batch, self.spec, self.tokenizer)
            said |= {one.item_id: one.text for one in found}
        return [said[item.id] for item in self.items]

    def changed(
        self, components: Mapping[Component, Precision], settings: Calibration | None
    ) -> tuple[list[bool], list[bool]]:
        """Whether each clean and each corrupted item is answered otherwise than by the float model."""
        request = quantize.resolve(components, (), self.model.modules, Quantizer.NEURAL_COMPRESSOR)
        batches: Sequence[Any] = []
        if settings is not None:
            with TemporaryDirectory(dir=self.folder) as directory:
                drawn = samples(
                    Split.CALIBRATION, settings.samples, QUESTIONS_PER_PICTURE, self.folder / "calibration"
                )
                built = calibration.build(drawn, settings, Path(directory))
                batches = calibration.batches(built, self.spec, self.model.tokenizer)[:]
        made = quantize.quantize(lambda: source.load(self.model), request, batches)
        said = self.answers(fakequant.apply(source.load(self.model), made))
        flips = [diverges(before, now) for before, now in zip(self.expected, said, strict=True)]
        clean = [item.condition == CLEAN for item in self.items]
        return (
            [flip for flip, is_clean in zip(flips, clean, strict=True) if is_clean],
            [flip for flip, is_clean in zip(flips, clean, strict=True) if not is_clean],
        )


def share(flips: Sequence[bool]) -> str:
    low, high = wilson(sum(flips), len(flips), LEVEL)
    return f"{sum(flips) / len(flips):.2%} [{100 * low:.2f}, {100 * high:.2f}]"


def table(bench: Bench, name: str, settings: Mapping[str, Calibration]) -> page.Table:
    rows = []
    if name in ROUNDED:
        plain = {Component.DECODER: Precision(scheme=ROUNDED[name])}
        rows.append(("none: rounded to nearest", *map(share, bench.changed(plain, None))))
    for composition, one in settings.items():
        say(f"{name}: {composition}")
        sees_pictures = one.composition is not Composition.TEXT_ONLY
        if Component.VISION_ENCODER in PRECISIONS[name] and not sees_pictures:
            rows.append((composition, "impossible", "impossible"))
            continue
        rows.append((composition, *map(share, bench.changed(PRECISIONS[name], one))))
    return page.Table(name, ("calibration set", "clean flips", "corrupted flips"), tuple(rows))


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.calibration_composition", description=__doc__)
    parser.add_argument("--pictures", type=int, default=40)
    parser.add_argument("--per-condition", type=int, default=40)
    parser.add_argument("--samples", type=int, default=64, help="in the calibration set")
    parser.add_argument("--precisions", nargs="+", choices=list(PRECISIONS), default=list(PRECISIONS))
    parser.add_argument("--markdown", type=Path, help="e.g. docs/calibration-composition.md")
    given = parser.parse_args()
    with quiet.libraries(), TemporaryDirectory() as folder:
        bench = Bench(Path(folder), given.pictures, given.per_condition)
        settings = compositions(given.samples)
        found = [table(bench, name, settings) for name in given.precisions]
        clean = sum(item.condition == CLEAN for item in bench.items)
        said = [
            "Written by `python -m benchmarks.calibration_composition --markdown "
            "docs/calibration-composition.md`. The demo model, one part of it quantised, with calibration "
            f"sets of {given.samples} samples of different composition. Flips: answers that differ from the "
            f"float model's, on {clean:,} clean items and {len(bench.items) - clean:,} under the ten "
            "corruptions of the edge suite at severities 3 and 5; the intervals are Wilson's at "
            f"{LEVEL:.0%}. Integers as compiled, arithmetic in torch's float32.",
            page.machine(conditions.machine()),
        ]
    text = page.document("What calibration sees", said, found)
    print(text)
    if given.markdown:
        given.markdown.write_text(text)


if __name__ == "__main__":
    main()
