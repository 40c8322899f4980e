"""Which questions calibrate and which are judged: the user's data, or the demo's scenes."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from edgevlm_deploy import __version__, datasets
from edgevlm_deploy.artifacts import stage
from edgevlm_deploy.errors import DataError
from edgevlm_deploy.recipe import Recipe

CALIBRATION_SHARE = 0.2
"""Of the pictures in the evaluation data, when no calibration data are given."""
DEMO_QUESTIONS_PER_PICTURE = 4


@dataclass(frozen=True)
class Samples:
    """Calibration and evaluation data that share no picture."""

    calibration: tuple[datasets.Sample, ...]
    evaluation: tuple[datasets.Sample, ...]
    ood: tuple[datasets.Sample, ...] = ()
    """Pictures of none of the classes."""

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
    labelled: bool = False,
) -> Samples:
    """`data` is judged; `calibration` calibrates, or a fifth of the pictures in `data` when it is None.

    Without `data`, the demo's scenes are rendered into `cache`. With `labelled`, the data are pictures with
    a class each, which is also their group unless the data names another.
    Raises DataError and NotFoundError.
    """
    if data is None:
        if calibration is not None:
            raise DataError("--calibration without --data: give the evaluation items as well.")
        if labelled:
            raise DataError(
                "A dual encoder is judged on pictures with a class: give --data, a folder with one "
                "sub-folder per class or a .jsonl file with `image` and `label`."
            )
        return _demo(recipe, cache)
    read = datasets.load(data, images, labelled=labelled)
    judged, ood = tuple(one for one in read if not one.ood), tuple(one for one in read if one.ood)
    if calibration is None:
        found = Samples(*datasets.split(judged, seed=recipe.evaluation.seed, share=CALIBRATION_SHARE), ood)
    else:
        calibrating = tuple(
            one for one in datasets.load(calibration, images, labelled=labelled) if not one.ood
        )
        datasets.check_disjoint(calibrating, read)
        found = Samples(calibrating, judged, ood)
    return _grouped(found) if labelled else found


def _grouped(samples: Samples) -> Samples:
    def by_class(given: tuple[datasets.Sample, ...]) -> tuple[datasets.Sample, ...]:
        return tuple(replace(one, group=one.group or "".join(one.answers)) for one in given)

    return Samples(by_class(samples.calibration), by_class(samples.evaluation), samples.ood)


def _demo(recipe: Recipe, cache: Path) -> Samples:
    """Scenes from disjoint seeds. Also what other models are asked when no data are given."""
    from edgevlm_deploy.demo import dataset
    from edgevlm_deploy.demo.scenes import Split

    def rendered(split: Split, questions: int) -> tuple[datasets.Sample, ...]:
        pictures = -(-questions // DEMO_QUESTIONS_PER_PICTURE)
        inputs = {"split": split.name, "pictures": pictures, "version": __version__}

        def render(directory: Path) -> None:
            dataset.samples(split, pictures, DEMO_QUESTIONS_PER_PICTURE, directory)

        return datasets.load(stage(cache, "scenes", inputs, render))

    return Samples(
        rendered(Split.CALIBRATION, recipe.calibration.samples),
        rendered(Split.EVALUATION, recipe.evaluation.clean_items),
    )
