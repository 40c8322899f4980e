"""What another background costs, counted by hand; and telling foreign questions by confidence."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
from edgevlm_runner.contract import Answer, Item
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import mannwhitneyu

from edgevlm_deploy import metrics, suites
from edgevlm_deploy.recipe import Evaluation

QUICK = Evaluation(corruptions=(), bootstrap_resamples=200, background_items=40, ood_items=30)
WITHOUT_PAIRS = QUICK.model_copy(update={"background_items": 0})


def question(number: int, group: str = "", background: str = "") -> Item:
    return Item(
        id=f"q{number}",
        base_id=f"q{number}",
        group=group,
        condition="clean",
        image=f"images/{number}.png",
        image_id=f"picture{number}",
        prompt="What is it?",
        answers=("cow",),
        background=background,
    )


def elsewhere(item: Item, background: str = "") -> Item:
    """The same question on another background."""
    return dataclasses.replace(
        item, id=f"{item.id}-beach", image_id=f"{item.image_id}-beach", background=background
    )


def table(named: bool) -> tuple[Item, ...]:
    clean = [question(n, ("kind", "count")[n % 2], "grass" if named else "") for n in range(60)]
    pairs = [elsewhere(item, "beach" if named else "") for item in clean[:40]]
    return suites.build(clean, QUICK, counterfactuals=pairs)


def said(item: Item, right: bool, logprob: float = -0.1) -> Answer:
    text = "cow" if right else "camel"
    return Answer(item.id, text, (1,), (logprob,), True)


@pytest.mark.parametrize("named", [True, False])
def test_counted_by_hand(named: bool) -> None:
    """The reference loses 4 of 40 on the beach, the artifact 10, all of them kinds; originals are right."""
    items = table(named)
    there = [item for item in items if item.condition == "background"]
    kinds = [item.id for item in there if item.group == "kind"]
    assert len(there) == 40 and len(kinds) == 20
    reference = [said(item, item.id not in kinds[:4]) for item in items]
    artifact = [said(item, item.id not in kinds[:10]) for item in items]
    result = metrics.compute(items, reference, artifact, QUICK)
    values = {name: one.value for name, one in result.estimates.items()}
    assert values["background_accuracy"] == pytest.approx(0.75)
    assert values["reference_background_accuracy"] == pytest.approx(0.9)
    assert values["background_gap"] == pytest.approx(0.15)
    assert values["background_divergence_rate"] == pytest.approx(0.25)
    assert values["relative_spurious_gap"] == pytest.approx(0.25)
    assert values["reference_relative_spurious_gap"] == pytest.approx(0.1)
    assert values["relative_spurious_gap_increase"] == pytest.approx(0.15)
    assert values["worst_group_accuracy"] == pytest.approx(0.5)
    assert values["reference_worst_group_accuracy"] == pytest.approx(0.8)
    assert values["worst_group_accuracy_drop"] == pytest.approx(0.3)
    grounds = ("grass", "beach") if named else ("original", "swapped")
    assert {(row.group, row.background, row.comparison.n) for row in result.backgrounds} == {
        (group, ground, 20) for group in ("kind", "count") for ground in grounds
    }
    assert (result.clean_items, result.background_items, result.images) == (60, 40, 60)
    assert values["accuracy"] == 1.0 and values["corrupted_accuracy"] is None
    same = metrics.compute(items, reference, reference, QUICK).estimates
    for name in ("background_gap", "relative_spurious_gap_increase", "worst_group_accuracy_drop"):
        assert same[name].value == 0.0 and same[name].low < -0.01 and same[name].high > 0.01
    worst = result.estimates["worst_group_accuracy"]
    assert worst.low is not None and worst.high is not None and worst.low < 0.5 < worst.high
    plain = metrics.compute(items[:60], reference, artifact, QUICK)
    assert plain.estimates["background_gap"].note == "no items on another background"
    kept = {name for name, one in plain.estimates.items() if one.value is not None}
    assert all(plain.estimates[name] == result.estimates[name] for name in kept)


def test_small_groups_are_no_worst_group() -> None:
    clean = [question(n, f"kind{n % 5}") for n in range(40)]
    items = suites.build(clean, QUICK, counterfactuals=[elsewhere(item) for item in clean])
    answers = [said(item, False) for item in items]
    estimates = metrics.compute(items, answers, answers, QUICK).estimates
    for name in ("worst_group_accuracy", "worst_group_accuracy_drop"):
        assert estimates[name].value is None
        assert "10 items on one background" in estimates[name].note
    assert estimates["relative_spurious_gap_increase"].value is None


@settings(max_examples=15)
@given(st.integers(0, 2**32 - 1))
def test_telling_foreign_questions_is_the_mann_whitney_statistic(seed: int) -> None:
    rng = np.random.default_rng(seed)
    items = suites.build(
        [question(n) for n in range(25)], WITHOUT_PAIRS, ood=[question(100 + n) for n in range(30)]
    )
    reference, artifact = (
        [said(item, True, -float(p)) for item, p in zip(items, rng.integers(1, 9, 55), strict=True)]
        for _ in range(2)
    )
    result = metrics.compute(items, reference, artifact, QUICK)
    for name, answers in (("ood_auroc", artifact), ("reference_ood_auroc", reference)):
        sure = [math.exp(answer.token_logprobs[0]) for answer in answers]
        expected = mannwhitneyu(sure[:25], sure[25:]).statistic / (25 * 30)
        assert result.estimates[name].value == pytest.approx(expected)
    drop = result.estimates["ood_auroc_drop"]
    assert drop.value == pytest.approx(
        result.estimates["reference_ood_auroc"].value - result.estimates["ood_auroc"].value
    )
    assert drop.low < drop.value < drop.high
    assert (result.clean_items, result.images, result.foreign_items) == (25, 25, 30)


def test_a_perfect_separation_keeps_its_interval() -> None:
    items = suites.build(
        [question(n) for n in range(25)], WITHOUT_PAIRS, ood=[question(100 + n) for n in range(30)]
    )
    answers = [said(item, True, -0.1 if item.condition == "clean" else -3.0) for item in items]
    estimates = metrics.compute(items, answers, answers, QUICK).estimates
    assert estimates["ood_auroc"].value == estimates["ood_auroc"].high == 1.0
    assert estimates["ood_auroc"].low < 0.9
    assert estimates["ood_auroc_drop"].value == 0.0 and estimates["ood_auroc_drop"].high > 0.05
    plain = metrics.compute(items[:25], answers, answers, QUICK)
    assert plain.estimates["ood_auroc"].note == "no foreign items"
