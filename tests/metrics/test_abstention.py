"""Coverage at 5 % risk of both models, its drop, and thresholds that no item chose for itself."""

from __future__ import annotations

import numpy as np
import pytest
from edgevlm_runner.contract import Answer, Item

from edgevlm_deploy import metrics
from edgevlm_deploy.metrics import Metrics, abstention
from edgevlm_deploy.recipe import Evaluation

QUICK = Evaluation(bootstrap_resamples=300, corruptions=())


def compared(
    items: int, per_picture: int, reference: list[tuple[bool, float]], artifact: list[tuple[bool, float]]
) -> Metrics:
    """Each row: (right, MaxProb)."""
    table = [
        Item(f"q{n}", f"q{n}", "", "clean", "", f"picture{n // per_picture}", "What colour is it?", ("blue",))
        for n in range(items)
    ]

    def said(rows: list[tuple[bool, float]]) -> list[Answer]:
        return [
            Answer(item.id, "blue" if right else "red", (1,), (float(np.log(probability)),), True)
            for item, (right, probability) in zip(table, rows, strict=True)
        ]

    return metrics.compute(table, said(reference), said(artifact), QUICK)


def test_a_model_that_no_longer_knows_when_it_is_wrong_loses_coverage() -> None:
    """Same answers, same accuracy: the reference doubts its wrong ones, the artifact doubts at random."""
    rng = np.random.default_rng(0)
    right = [n % 5 != 0 for n in range(400)]
    doubts = [(one, 0.9 + 0.09 * rng.random() if one else 0.3 * rng.random() + 0.1) for one in right]
    random = [(one, 0.1 + 0.8 * rng.random()) for one in right]
    result = compared(400, 2, doubts, random)
    values = result.estimates
    assert values["accuracy_drop"].value == 0.0
    assert values["reference_coverage_at_risk_5"].value == pytest.approx(336 / 400)  # 16 wrong among 336
    drop = values["coverage_at_risk_5_drop"]
    assert drop.value is not None and drop.low is not None and drop.low > 0.4
    assert drop.value == pytest.approx(
        values["reference_coverage_at_risk_5"].value - values["coverage_at_risk_5"].value
    )
    phi = {whose: one.reliability[1].value for whose, one in result.selective.items()}
    assert phi["artifact"] < phi["reference"] == pytest.approx(0.8, abs=0.02)


def test_equal_answers_have_no_drop_but_an_interval() -> None:
    rows = [(n % 10 != 0, 0.5 + n / 1000) for n in range(300)]
    drop = compared(300, 3, rows, rows).estimates["coverage_at_risk_5_drop"]
    assert drop.value == 0.0
    assert drop.low is not None and drop.high is not None and drop.low < 0 < drop.high < 0.05


def test_the_other_half_chooses_the_threshold() -> None:
    """All items of the first half are wrong, all of the second right, whatever they claim."""
    rows = [(n % 2 == 1, 0.9) for n in range(100)]
    one = compared(100, 1, rows, rows).selective["artifact"].reliability[0]
    assert one.thresholds == (pytest.approx(0.9), None)  # answered, all wrong; never answered, all right
    assert one.value == pytest.approx(-0.5)
    assert one.without_abstaining == pytest.approx(0.0)


def test_halves_part_pictures() -> None:
    clusters = tuple(f"picture{n % 7}" for n in range(50))
    first = abstention.halves(clusters)
    ours = {name for name, inside in zip(clusters, first, strict=True) if inside}
    theirs = {name for name, inside in zip(clusters, first, strict=True) if not inside}
    assert not ours & theirs and (len(ours), len(theirs)) == (4, 3)


def test_without_doubt_every_model_answers_everything() -> None:
    rows = [(True, 1.0)] * 40
    result = compared(40, 2, rows, rows)
    assert [one.coverage for one in result.selective["artifact"].points] == [1.0] * 5
    assert result.selective["artifact"].aurc == 0.0
