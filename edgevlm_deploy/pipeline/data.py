"""What is asked and what the source model answers: calibration set, items, reference answers."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgevlm_runner import features
from edgevlm_runner.contract import (
    CLEAN,
    REFERENCE_FEATURES,
    Answer,
    DualEncoderSpec,
    Item,
    read_jsonl,
    write_jsonl,
)

from edgevlm_deploy import __version__, bundle, calibration, datasets, metrics, reference, source, suites
from edgevlm_deploy.artifacts import file_digest, stage
from edgevlm_deploy.calibration import CalibrationSet
from edgevlm_deploy.pipeline.job import Job, versions, what_shapes_answers
from edgevlm_deploy.samples import Samples


def calibration_set(job: Job, samples: Sequence[datasets.Sample]) -> CalibrationSet:
    settings = job.plan.recipe.calibration
    inputs = {"samples": identities(samples), "settings": settings, "version": __version__}

    def build(out: Path) -> None:
        calibration.build(samples, settings, out)

    return calibration.load(stage(job.cache, "calibration", inputs, build))


def identities(samples: Sequence[datasets.Sample]) -> list[list[Any]]:
    """What a sample is, wherever its picture lies."""
    return [
        [
            *(one.id, one.group, one.image_id, one.prompt, one.answers),
            *(one.background, one.counterfactual_of, one.split, one.caption),
        ]
        for one in samples
    ]


@dataclass(frozen=True)
class Items:
    """The table of items; their pictures lie below `root` under `Item.image`."""

    rows: tuple[Item, ...]
    root: Path


def item_table(job: Job, samples: Samples) -> Items:
    evaluation = job.plan.recipe.evaluation
    inputs = {
        "samples": identities(samples.evaluation),
        "calibration": identities(samples.calibration),
        "counterfactuals": identities(samples.counterfactuals),
        "ood": identities(samples.ood),
        "evaluation": evaluation,
        "version": __version__,
    }

    def build(out: Path) -> None:
        rows = suites.build(
            [_item(one) for one in samples.evaluation],
            evaluation,
            calibration=[_item(one) for one in samples.calibration],
            counterfactuals=[_item(one) for one in samples.counterfactuals],
            ood=[_item(one) for one in samples.ood],
        )
        _write(rows, samples.all, out)

    return _read(stage(job.cache, "items", inputs, build))


def tuning_table(job: Job, samples: Sequence[datasets.Sample]) -> Items:
    """What abstaining is learnt on: questions on their clean pictures, and on corrupted ones as often.

    Raises DataError when the recipe asks for abstaining and no sample has a known answer.
    """
    recipe = job.plan.recipe
    abstain, evaluation = recipe.abstain, recipe.evaluation
    assert abstain is not None
    inputs = {
        "samples": identities(samples),
        "abstain": [abstain.questions, abstain.corruptions],
        "evaluation": [evaluation.corruption_names, evaluation.severities, evaluation.seed],
        "version": __version__,
    }
    corruptions = evaluation.corruptions if abstain.corruptions is None else abstain.corruptions

    def build(out: Path) -> None:
        known = [_item(one) for one in samples if one.answers]
        clean = suites.select(known, abstain.questions, seed=evaluation.seed)
        severities, conditions = evaluation.severities, len(corruptions) * len(evaluation.severities)
        each = -(-len(clean) // conditions) if conditions else 0
        names = evaluation.named(corruptions)
        _write(
            (*clean, *suites.corrupted(clean, names, severities, each, seed=evaluation.seed)), samples, out
        )

    return _read(stage(job.cache, "tuning", inputs, build))


def _write(rows: Sequence[Item], given: Sequence[datasets.Sample], out: Path) -> None:
    pictures = {_picture(one): one.image for one in given if one.image is not None}
    (out / "images").mkdir(exist_ok=True)
    for name in {item.image for item in rows if item.image}:
        shutil.copyfile(pictures[name], out / name)
    write_jsonl(out / "items.jsonl", rows)


def _read(root: Path) -> Items:
    return Items(tuple(read_jsonl(root / "items.jsonl", Item)), root)


def _picture(sample: datasets.Sample) -> str:
    return bundle.picture_name(sample.image, sample.image_id) if sample.image is not None else ""


def _item(sample: datasets.Sample) -> Item:
    return Item(
        id=sample.id,
        base_id=sample.counterfactual_of or sample.id,
        group=sample.group,
        condition=CLEAN,
        image=_picture(sample),
        image_id=sample.image_id,
        prompt=sample.prompt,
        answers=sample.answers,
        background=sample.background,
        split=sample.split,
        caption=sample.caption,
    )


@dataclass(frozen=True)
class ReferenceAnswers:
    rows: tuple[Answer, ...]
    noise_floor: metrics.Estimate
    """How often the reference differs from itself when it answers one item at a time."""


def reference_answers(job: Job, items: Items) -> ReferenceAnswers:
    evaluation = job.plan.recipe.evaluation
    inputs = {
        "model": job.source.digest,
        "items": file_digest(items.root / "items.jsonl"),
        "spec": what_shapes_answers(job.source_spec),
        "seed": evaluation.seed,
        "packages": versions(("torch", "transformers", "pillow", "numpy")),
    }
    job.watch.begin("Reference answers", len(items.rows))

    def answer(out: Path) -> None:
        reference.answer(
            source.load(job.source, job.source_spec),
            items.rows,
            items.root,
            evaluation.seed,
            job.source_spec,
            job.source.tokenizer,
            out,
            job.watch.advance,
        )

    directory = stage(job.cache, "reference", inputs, answer, resumable=True)
    rows = read_jsonl(directory / "answers.jsonl", Answer)
    again = read_jsonl(directory / "again.jsonl", Answer)
    batched = {one.item_id: one for one in rows}
    asked_again = {one.item_id for one in again}
    floor = metrics.noise_floor(
        [item for item in items.rows if item.id in asked_again],
        [batched[one.item_id] for one in again],
        again,
        evaluation,
    )
    return ReferenceAnswers(tuple(rows), floor)


def reference_features(job: Job, items: Items) -> Path | None:
    """The source model's embeddings of what the artifact keeps too; None where the recipe asks for none.

    Raises PromptError for a caption that the text encoder cannot read whole.
    """
    spec = job.source_spec
    if not (isinstance(spec, DualEncoderSpec) and spec.feature_items):
        return None
    inputs = {
        "model": job.source.digest,
        "items": file_digest(items.root / "items.jsonl"),
        "spec": [what_shapes_answers(spec), spec.feature_items],
        "seed": job.plan.recipe.evaluation.seed,
        "packages": versions(("torch", "transformers", "pillow", "numpy")),
    }
    job.watch.begin("Reference embeddings")

    def embed(out: Path) -> None:
        found = reference.features(
            source.load(job.source),
            items.rows,
            items.root,
            job.plan.recipe.evaluation.seed,
            spec,
            job.source.tokenizer,
        )
        features.write(out / REFERENCE_FEATURES, found)

    return stage(job.cache, "reference-features", inputs, embed) / REFERENCE_FEATURES
