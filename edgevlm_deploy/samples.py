"""Which questions calibrate and which are judged: the user's data, or the demo's scenes."""

from __future__ import annotations

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


def gather(
    data: Path | None,
    calibration: Path | None,
    images: Path | None,
    recipe: Recipe,
    cache: Path,
    ood: Path | None = None,
) -> Samples:
    """`data` is judged; `calibration` calibrates, or a fifth of the pictures in `data` when it is None.

    Without `data`, the demo's scenes are rendered into `cache`. Raises DataError and NotFoundError.
    """
    foreign = _foreign(ood, recipe)
    if data is None and calibration is not None:
        raise DataError("--calibration without --data: give the evaluation items as well.")
    own = _demo(recipe, cache) if data is None else _given(data, calibration, images, recipe)
    # Nothing that is judged was calibrated on, and nothing foreign is at home here.
    datasets.check_disjoint(own.calibration, (*own.counterfactuals, *foreign))
    datasets.check_disjoint(own.evaluation, foreign)
    return replace(own, ood=foreign)


def _foreign(path: Path | None, recipe: Recipe) -> tuple[datasets.Sample, ...]:
    if path is not None:
        return datasets.load(path)
    for gate in recipe.gates:
        if gate.metric in (GateName.OOD_AUROC, GateName.OOD_AUROC_DROP):
            raise DataError(
                f"the gate on {gate.metric.value} needs questions of another distribution: give --ood."
            )
    return ()


def _given(data: Path, calibration: Path | None, images: Path | None, recipe: Recipe) -> Samples:
    """A counterfactual goes with its original: it is judged when that one is."""
    judged, swapped = datasets.separate(datasets.load(data, images))
    if calibration is None:
        calibrating, judged = datasets.split(judged, seed=recipe.evaluation.seed, share=CALIBRATION_SHARE)
    else:
        calibrating = datasets.load(calibration, images)
        datasets.check_disjoint(calibrating, judged)
    here = {sample.id for sample in judged}
    return Samples(
        calibrating,
        judged,
        counterfactuals=tuple(one for one in swapped if one.counterfactual_of in here),
        tuning=calibrating if recipe.abstain else (),
    )


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
