"""Which questions calibrate and which are judged: the user's data, or the demo's scenes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from edgevlm_deploy import __version__, datasets
from edgevlm_deploy.artifacts import stage
from edgevlm_deploy.errors import DataError
from edgevlm_deploy.recipe import Recipe

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


def gather(
    data: Path | None, calibration: Path | None, images: Path | None, recipe: Recipe, cache: Path
) -> Samples:
    """`data` is judged; `calibration` calibrates, or a fifth of the pictures in `data` when it is None.

    Without `data`, the demo's scenes are rendered into `cache`. Raises DataError and NotFoundError.
    """
    if data is None:
        if calibration is not None:
            raise DataError("--calibration without --data: give the evaluation items as well.")
        return _demo(recipe, cache)
    judged = datasets.load(data, images)
    if calibration is None:
        return Samples(*datasets.split(judged, seed=recipe.evaluation.seed, share=CALIBRATION_SHARE))
    calibrating = datasets.load(calibration, images)
    datasets.check_disjoint(calibrating, judged)
    return Samples(calibrating, judged)


def _demo(recipe: Recipe, cache: Path) -> Samples:
    """Scenes from disjoint seeds. Also what other models are asked when no data are given."""
    from edgevlm_deploy.demo.scenes import Split

    return Samples(
        scenes(Split.CALIBRATION, recipe.calibration.samples, cache),
        scenes(Split.EVALUATION, recipe.evaluation.clean_items, cache),
    )


def scenes(split: Split, questions: int, cache: Path) -> tuple[datasets.Sample, ...]:
    """At least so many questions about the demo's scenes, rendered once."""
    from edgevlm_deploy.demo import dataset

    pictures = -(-questions // DEMO_QUESTIONS_PER_PICTURE)
    inputs = {"split": split.name, "pictures": pictures, "version": __version__}

    def render(directory: Path) -> None:
        dataset.samples(split, pictures, DEMO_QUESTIONS_PER_PICTURE, directory)

    return datasets.load(stage(cache, "scenes", inputs, render))
