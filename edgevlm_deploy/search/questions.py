"""What candidates are asked: questions that neither calibrate nor decide a verdict."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from edgevlm_runner.contract import DUAL_ENCODER

from edgevlm_deploy import datasets, samples
from edgevlm_deploy.calibration import CalibrationSet
from edgevlm_deploy.errors import DataError
from edgevlm_deploy.pipeline import Order
from edgevlm_deploy.recipe import Evaluation, Recipe
from edgevlm_deploy.samples import Samples

FEWEST = 50
"""Questions below which flips of a percent cannot be told from none."""
RESAMPLES = 1000
"""Of the bootstrap while searching: intervals steer here, they do not decide."""


def evaluation(recipe: Recipe, share: float) -> Evaluation:
    """The recipe's evaluation with `share` of its items; nothing fits a temperature."""
    whole = recipe.evaluation
    return whole.model_copy(
        update={
            "clean_items": max(1, round(whole.clean_items * share)),
            "items_per_condition": max(1, round(whole.items_per_condition * share)),
            "temperature_items": 0,
            "bootstrap_resamples": min(RESAMPLES, whole.bootstrap_resamples),
        }
    )


def gather(
    order: Order,
    kind: str,
    own: Path | None,
    given: Samples,
    calibrated: CalibrationSet,
    wanted: Evaluation,
    cache: Path,
) -> tuple[datasets.Sample, ...]:
    """`own` (--search-data) when given; a third split of the demo's scenes or pictures when its data are
    used; else the pictures of the calibration side that calibrate nothing.

    kind: of the model; a dual encoder has labelled pictures.

    Raises DataError when these are too few, or when a picture of `own` also calibrates or is judged.
    """
    labelled = kind == DUAL_ENCODER
    if own is not None:
        asked = datasets.load(own, order.images, labelled=labelled)
        if labelled:
            asked = samples.by_class(tuple(one for one in asked if not one.ood))
        datasets.check_disjoint(asked, given.evaluation)
        datasets.check_disjoint(asked, _drawn(given.calibration, calibrated))
        return asked
    if order.data is None:
        from edgevlm_deploy.demo.scenes import Split

        if labelled:
            return samples.pictures(Split.TUNING, wanted.clean_items, 0, cache)
        return samples.scenes(Split.TUNING, wanted.clean_items, cache)
    used = {sample.cluster for sample in _drawn(given.calibration, calibrated)}
    left = tuple(sample for sample in given.calibration if sample.cluster not in used)
    if len(left) < FEWEST:
        raise DataError(
            f"the search needs questions that neither calibrate nor are judged; {len(left)} are left, "
            f"{FEWEST} is the least. Give some with --search-data."
        )
    return left


def _drawn(calibration: Sequence[datasets.Sample], calibrated: CalibrationSet) -> tuple[datasets.Sample, ...]:
    """Samples that calibrate."""
    used = {row.sample_id for row in calibrated.rows}
    return tuple(sample for sample in calibration if sample.id in used)
