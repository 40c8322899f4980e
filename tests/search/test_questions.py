"""Questions of the search neither calibrate nor decide a verdict."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from edgevlm_runner.contract import GENERATIVE

from edgevlm_deploy import calibration, datasets, samples
from edgevlm_deploy.calibration import CalibrationSet
from edgevlm_deploy.demo.dataset import samples as scenes
from edgevlm_deploy.demo.scenes import Split
from edgevlm_deploy.errors import DataError
from edgevlm_deploy.pipeline import Order
from edgevlm_deploy.recipe import Calibration, Recipe
from edgevlm_deploy.samples import Samples
from edgevlm_deploy.search import questions

ORDER = Order(model="demo", target="host-cpu", recipe=None, out=Path("build"))


def drawn(pool: tuple[datasets.Sample, ...], count: int, folder: Path) -> CalibrationSet:
    folder.mkdir()
    return calibration.build(pool, Calibration(samples=count), folder)


def pictures(asked: tuple[datasets.Sample, ...]) -> set[str]:
    return {one.cluster for one in asked}


def test_what_calibrates_nothing_is_asked(tmp_path: Path, base: Recipe) -> None:
    pool = scenes(Split.CALIBRATION, 40, 3, tmp_path / "pool")
    calibrated = drawn(pool, 20, tmp_path / "set")
    given = Samples(pool, scenes(Split.EVALUATION, 2, 1, tmp_path / "judged"))
    order = dataclasses.replace(ORDER, data=tmp_path / "data.jsonl")
    asked = questions.gather(order, GENERATIVE, None, given, calibrated, base.evaluation, tmp_path)
    assert len(asked) >= questions.FEWEST
    assert not pictures(asked) & {row.source_image_id for row in calibrated.rows}
    few = Samples(pool[:60], given.evaluation)
    with pytest.raises(DataError, match="--search-data"):
        questions.gather(order, GENERATIVE, None, few, calibrated, base.evaluation, tmp_path)


def test_the_demo_has_scenes_for_it(tmp_path: Path, base: Recipe) -> None:
    wanted = base.evaluation.model_copy(update={"clean_items": 8})
    pool = scenes(Split.CALIBRATION, 4, 2, tmp_path / "pool")
    given = Samples(pool, scenes(Split.EVALUATION, 2, 1, tmp_path / "judged"))
    (tmp_path / "cache").mkdir()
    asked = questions.gather(
        ORDER, GENERATIVE, None, given, drawn(pool, 4, tmp_path / "set"), wanted, tmp_path / "cache"
    )
    assert asked == samples.scenes(Split.TUNING, 8, tmp_path / "cache")
    assert not pictures(asked) & (pictures(given.calibration) | pictures(given.evaluation))


def test_own_questions_may_not_be_judged_ones(tmp_path: Path, base: Recipe) -> None:
    pool = scenes(Split.CALIBRATION, 4, 2, tmp_path / "pool")
    judged = scenes(Split.EVALUATION, 2, 1, tmp_path / "judged")
    calibrated = drawn(pool, 4, tmp_path / "set")
    own = tmp_path / "judged" / "evaluation.jsonl"
    with pytest.raises(DataError, match="in the calibration and in the evaluation data"):
        questions.gather(ORDER, GENERATIVE, own, Samples(pool, judged), calibrated, base.evaluation, tmp_path)


def test_the_evaluation_shrinks_evenly(base: Recipe) -> None:
    small = questions.evaluation(base, 0.25)
    assert (small.clean_items, small.items_per_condition, small.temperature_items) == (600, 10, 0)
    assert small.corruptions == base.evaluation.corruptions
