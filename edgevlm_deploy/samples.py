"""Which questions calibrate and which are judged: the user's data, or the demo's scenes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from edgevlm_deploy import __version__, datasets
from edgevlm_deploy.artifacts import stage
from edgevlm_deploy.errors import DataError
from edgevlm_deploy.recipe import GateName, Recipe

if TYPE_CHECKING:
    from edgevlm_deploy.demo.scenes import Split

CALIBRATION_SHARE = 0.2
"""Of the pictures in the evaluation data, when no calibration data are given."""
DEMO_QUESTIONS_PER_PICTURE = 4
_OF_FOREIGN = frozenset(
    {
        GateName.OOD_AUROC,
        GateName.OOD_AUROC_DROP,
        GateName.MCM_AUROC,
        GateName.MCM_AUROC_DROP,
        GateName.MCM_FPR_AT_LEAST_95,
        GateName.MCM_FPR_AT_LEAST_95_INCREASE,
    }
)


@dataclass(frozen=True)
class Samples:
    """Calibration and evaluation data that share no picture."""

    calibration: tuple[datasets.Sample, ...]
    evaluation: tuple[datasets.Sample, ...]
    counterfactuals: tuple[datasets.Sample, ...] = ()
    """Evaluation samples again, on other backgrounds."""
    ood: tuple[datasets.Sample, ...] = ()
    """From another distribution; their answers need not be known."""
    tuning: tuple[datasets.Sample, ...] = ()
    """What abstaining is learnt on, where the recipe asks for it: no picture of the evaluation's."""

    @property
    def all(self) -> tuple[datasets.Sample, ...]:
        """Everything that items are made of."""
        return (*self.evaluation, *self.calibration, *self.counterfactuals, *self.ood)

    @property
    def labels(self) -> tuple[str, ...]:
        """Every accepted answer, sorted: the classes, where pictures are labelled."""
        given = (*self.calibration, *self.evaluation)
        return tuple(sorted({answer for one in given for answer in one.answers}))


def gather(
    data: Path | None,
    calibration: Path | None,
    images: Path | None,
    recipe: Recipe,
    cache: Path,
    ood: Path | None = None,
    labelled: bool = False,
    demo: bool = False,
) -> Samples:
    """`data` is judged; `calibration` calibrates, or a fifth of the pictures in `data` when it is None.

    Without `data`, the demo's scenes are rendered into `cache`. With `labelled`, the data are pictures with
    a class each, which is also their group unless the data names another; without `data` only the `demo`
    has such pictures.
    Raises DataError and NotFoundError.
    """
    if data is None and calibration is not None:
        raise DataError("--calibration without --data: give the evaluation items as well.")
    if data is None and labelled and not demo:
        raise DataError(
            "A dual encoder is judged on pictures with a class: give --data, a folder with one sub-folder "
            "per class or a .jsonl file with `image` and `label`."
        )
    if data is not None:
        own = _given(data, calibration, images, recipe, labelled)
    else:
        own = _demo_pictures(recipe, cache) if labelled else _demo(recipe, cache)
    foreign = (*own.ood, *(datasets.load(ood, labelled=labelled) if ood is not None else ()))
    _check_foreign(foreign, recipe)
    # Nothing that is judged was calibrated on, and nothing foreign is at home here.
    datasets.check_disjoint(own.calibration, (*own.counterfactuals, *foreign))
    datasets.check_disjoint(own.evaluation, foreign)
    return replace(own, ood=foreign)


def _check_foreign(foreign: Sequence[datasets.Sample], recipe: Recipe) -> None:
    for gate in recipe.gates:
        if gate.metric in _OF_FOREIGN and not foreign:
            raise DataError(
                f"the gate on {gate.metric.value} needs questions of another distribution: give --ood, or, "
                'of a classifier, pictures of none of the classes (rows with `"ood": true`).'
            )


def _given(
    data: Path, calibration: Path | None, images: Path | None, recipe: Recipe, labelled: bool
) -> Samples:
    """A counterfactual goes with its original: it is judged when that one is."""
    read = datasets.load(data, images, labelled=labelled)
    judged, swapped = datasets.separate(tuple(one for one in read if not one.ood))
    if calibration is None:
        calibrating, judged = datasets.split(judged, seed=recipe.evaluation.seed, share=CALIBRATION_SHARE)
    else:
        given = datasets.load(calibration, images, labelled=labelled)
        calibrating = tuple(one for one in given if not one.ood)
        datasets.check_disjoint(calibrating, judged)
    if labelled:
        calibrating, judged, swapped = map(by_class, (calibrating, judged, swapped))
    here = {sample.id for sample in judged}
    return Samples(
        calibrating,
        judged,
        counterfactuals=tuple(one for one in swapped if one.counterfactual_of in here),
        ood=tuple(one for one in read if one.ood),
        tuning=calibrating if recipe.abstain else (),
    )


def by_class(samples: Sequence[datasets.Sample]) -> tuple[datasets.Sample, ...]:
    """The class is the group, unless the data names another."""
    return tuple(replace(one, group=one.group or "".join(one.answers)) for one in samples)


def _demo(recipe: Recipe, cache: Path) -> Samples:
    """Scenes from disjoint seeds. Also what other models are asked when no data are given."""
    from edgevlm_deploy.demo.scenes import Split

    asked = recipe.evaluation
    again = min(asked.background_items, asked.clean_items)
    return Samples(
        scenes(Split.CALIBRATION, recipe.calibration.samples, cache),
        *datasets.separate(scenes(Split.EVALUATION, asked.clean_items, cache, again)),
        tuning=scenes(Split.TUNING, recipe.abstain.questions, cache) if recipe.abstain else (),
    )


def _demo_pictures(recipe: Recipe, cache: Path) -> Samples:
    """Labelled pictures for the demo's CLIP: each object on its usual ground and on another one, and a
    quarter as many pictures of none of the classes.
    """
    from edgevlm_deploy.demo.scenes import Split

    asked = recipe.evaluation.clean_items
    evaluation = pictures(Split.EVALUATION, asked, asked // 4, cache)
    return Samples(
        pictures(Split.CALIBRATION, recipe.calibration.samples, 0, cache),
        tuple(one for one in evaluation if not one.ood),
        ood=tuple(one for one in evaluation if one.ood),
        tuning=pictures(Split.TUNING, recipe.abstain.questions, 0, cache) if recipe.abstain else (),
    )


def pictures(split: Split, pictures: int, unseen: int, cache: Path) -> tuple[datasets.Sample, ...]:
    from edgevlm_deploy.demo import clip_dataset

    inputs = {"split": split.name, "pictures": pictures, "unseen": unseen, "version": __version__}

    def render(directory: Path) -> None:
        clip_dataset.write(split, -(-pictures // 2), unseen, directory)

    table = stage(cache, "labelled-pictures", inputs, render) / f"{split.name.lower()}.jsonl"
    return by_class(datasets.load(table, labelled=True))


def scenes(split: Split, questions: int, cache: Path, again: int = 0) -> tuple[datasets.Sample, ...]:
    """At least so many questions about the demo's scenes, rendered once; `again` of them also on another
    background.
    """
    from edgevlm_deploy.demo import dataset

    pictures, repainted = (-(-n // DEMO_QUESTIONS_PER_PICTURE) for n in (questions, again))
    inputs = {"split": split.name, "pictures": pictures, "repainted": repainted, "version": __version__}

    def render(directory: Path) -> None:
        dataset.samples(split, pictures, DEMO_QUESTIONS_PER_PICTURE, directory, repainted)

    return datasets.load(stage(cache, "scenes", inputs, render))
