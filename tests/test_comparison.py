"""Two sets of answers to the same items, on tables that can be counted by hand."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import pytest
from edgevlm_runner.contract import Answer, Item
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest

from edgevlm_deploy import metrics, suites
from edgevlm_deploy.comparison import MOVED, Differences, Part, common_items, differences
from edgevlm_deploy.metrics.consistency import Flip
from edgevlm_deploy.recipe import Corruption, Evaluation

QUICK = Evaluation(bootstrap_resamples=200)


def question(number: int, group: str = "colour") -> Item:
    return Item(
        id=f"q{number}",
        base_id=f"q{number}",
        group=group,
        condition="clean",
        image=f"images/{number // 2}.png",
        image_id=f"picture{number // 2}",
        prompt="What colour is it?",
        answers=("blue",),
    )


def table(questions: int) -> tuple[Item, ...]:
    evaluation = Evaluation(
        clean_items=questions,
        corruptions=(Corruption.FOG, Corruption.CONTRAST),
        severities=(2,),
        items_per_condition=4,
    )
    return suites.build([question(n, ("colour", "shape")[n % 2]) for n in range(questions)], evaluation)


def said(items: Sequence[Item], texts: dict[str, str], sure: dict[str, float] | None = None) -> list[Answer]:
    """ "blue" with probability 0.8 unless told otherwise; three tokens, one of them certain."""
    answers = []
    for item in items:
        text, probability = texts.get(item.id, "blue"), (sure or {}).get(item.id, 0.8)
        answers.append(Answer(item.id, text, tuple(map(ord, text[:2])), (math.log(probability),) * 2, True))
    return answers


def rows(found: Differences) -> dict[tuple[str, str], tuple[int, int, int, int]]:
    return {
        (row.part.value, row.name): (row.negative, row.positive, row.still_wrong, row.still_right)
        for row in found.rows
    }


def test_counted_by_hand() -> None:
    items = table(10)
    fog = [item.id for item in items if item.condition == "fog/2"]
    a = said(items, {"q8": "red", "q9": "red", fog[0]: "red"})
    b = said(items, {"q0": "red", "q1": "Blue.", "q8": "green", fog[0]: "grey", fog[1]: "red"})
    found = differences(items, a, b, QUICK)
    assert found.items == 18 and found.images == 5
    assert rows(found) == {
        ("clean", ""): (1, 1, 1, 0),
        ("group", "colour"): (1, 0, 1, 0),
        ("group", "shape"): (0, 1, 0, 0),
        ("corrupted", ""): (1, 0, 1, 0),
        ("corruption", "fog"): (1, 0, 1, 0),
        ("corruption", "contrast"): (0, 0, 0, 0),
    }
    assert {one.id: one.flip for one in found.changed} == {
        "q0": Flip.NEGATIVE,
        "q8": Flip.NEUTRAL,
        "q9": Flip.POSITIVE,
        fog[0]: Flip.NEUTRAL,
        fog[1]: Flip.NEGATIVE,
    }
    (clean,) = found.of(Part.CLEAN)
    assert clean.comparison.reference_accuracy.value == clean.comparison.artifact_accuracy.value == 0.8
    assert clean.comparison.divergence_rate.value == pytest.approx(0.3)
    assert clean.mcnemar_p == 1.0
    assert not found.moved


def test_another_right_answer_is_not_another_wrong_one() -> None:
    item = dataclasses.replace(question(0), answers=("blue", "navy"))
    (row, _) = differences([item], said([item], {}), said([item], {"q0": "navy"}), QUICK).rows
    assert (row.negative, row.positive, row.still_wrong, row.still_right) == (0, 0, 0, 1)


def test_mcnemar_counts_only_what_changed_between_right_and_wrong() -> None:
    items = [question(n) for n in range(40)]
    a = said(items, {f"q{n}": "red" for n in range(30, 32)})
    b = said(items, {f"q{n}": "red" for n in range(9)})
    (row, _) = differences(items, a, b, QUICK).rows
    assert (row.negative, row.positive) == (9, 2)
    assert row.mcnemar_p == pytest.approx(binomtest(9, 11, 0.5).pvalue)


def test_where_confidence_moved() -> None:
    items = [question(n) for n in range(40)]
    a = said(items, {})
    b = said(items, {"q3": "red"}, {"q0": 0.5, "q1": 0.95, "q2": 0.75, "q3": 0.2})
    found = differences(items, a, b, QUICK)
    (row, _) = found.rows
    assert (row.a_confidence, row.b_confidence) == (pytest.approx(0.8), pytest.approx(0.78))
    change = row.confidence_change
    assert change.value == pytest.approx(-0.8 / 40)
    assert change.low is not None and change.high is not None and change.low < change.value < change.high <= 0
    assert change.clusters == 20, "two questions a picture"
    assert (row.risen, row.fallen) == (1, 2)
    assert [one.id for one in found.moved] == ["q0", "q1"], "q2 hardly moved, q3 changed its answer"
    assert all(abs(one.b_confidence - one.a_confidence) >= MOVED for one in found.moved)


def test_pictures_are_resampled_not_items() -> None:
    """All questions about one picture moving together is less certain than as many on their own."""
    apart = [dataclasses.replace(question(n), image_id=f"own{n}") for n in range(60)]
    together = [dataclasses.replace(item, image_id=f"shared{n // 6}") for n, item in enumerate(apart)]
    sure = {f"q{n}": 0.4 for n in range(12)}

    def width(items: Sequence[Item]) -> float:
        change = differences(items, said(items, {}), said(items, {}, sure), QUICK).rows[0].confidence_change
        assert change.low is not None and change.high is not None
        return change.high - change.low

    assert width(together) > 1.5 * width(apart)


def test_a_set_of_answers_does_not_differ_from_itself() -> None:
    items = table(12)
    a = said(items, {"q1": "red"}, {"q2": 0.3})
    found = differences(items, a, a, QUICK)
    assert not found.changed and not found.moved
    for row in found.rows:
        assert (row.mcnemar_p, row.confidence_change.value, row.risen, row.fallen) == (1.0, 0.0, 0, 0)


@settings(max_examples=20)
@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=12, max_size=12))
def test_swapping_the_sides_swaps_the_directions(right: list[tuple[bool, bool]]) -> None:
    items = [question(n) for n in range(12)]
    a, b = (
        said(items, {f"q{n}": "red" for n, both in enumerate(right) if not both[side]}) for side in (0, 1)
    )
    (there, _), (back, _) = differences(items, a, b, QUICK).rows, differences(items, b, a, QUICK).rows
    assert (there.negative, there.positive) == (back.positive, back.negative)
    assert there.mcnemar_p == pytest.approx(back.mcnemar_p)
    drop = there.comparison.accuracy_drop.value
    assert drop == pytest.approx((there.negative - there.positive) / 12)


def test_numbers_are_those_of_the_report() -> None:
    items = table(30)
    a = said(items, {f"q{n}": "red" for n in range(4)})
    b = said(items, {f"q{n}": "red" for n in range(2, 9)})
    found, report = differences(items, a, b, QUICK), metrics.compute(items, a, b, QUICK)
    (clean,) = found.of(Part.CLEAN)
    assert clean.comparison.accuracy_drop == report.estimates["accuracy_drop"]
    assert clean.comparison.negative_flip_rate == report.estimates["negative_flip_rate"]
    assert clean.mcnemar_p == report.mcnemar_p
    by_name = {row.corruption: row.comparison for row in report.corruptions}
    assert {row.name: row.comparison for row in found.of(Part.CORRUPTION)} == by_name
    assert [one.id for one in found.changed] == [one.id for one in report.flips]


def test_perturbed_items_are_no_corrupted_ones() -> None:
    clean = [question(n) for n in range(4)]
    items = (*clean, *suites.perturbed(clean, ["small_shift"], (1,), 4, seed=0))
    moved = [item.id for item in items if item.perturbed]
    found = differences(items, said(items, {}), said(items, {moved[0]: "red"}), QUICK)
    assert rows(found) == {
        ("clean", ""): (0, 0, 0, 0),
        ("group", "colour"): (0, 0, 0, 0),
        ("perturbed", ""): (1, 0, 0, 0),
        ("perturbation", "small_shift"): (1, 0, 0, 0),
    }


def test_only_the_same_item_is_common() -> None:
    items = table(6)
    assert common_items(items, items, True) == items
    assert common_items(items, items, False) == items[:6], "other pixels under corruption"
    asked_otherwise = [dataclasses.replace(item, prompt="Which colour?") for item in items]
    assert common_items(items, asked_otherwise, True) == ()
    without_first = [item for item in items if item.base_id != "q0"]
    assert common_items(items, without_first, True) == tuple(without_first)
    orphans = [item for item in items if item.id != "q0"]
    assert common_items(items, orphans, True) == tuple(without_first), "a variant goes with its clean item"
