"""The failures of two models by category, and which category grew."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from edgevlm_runner.contract import Answer, Item
from hypothesis import given, settings
from hypothesis import strategies as st

from edgevlm_deploy import metrics, suites
from edgevlm_deploy.metrics.accuracy import RIGHT_FROM, accuracy
from edgevlm_deploy.metrics.failures import blind_answers
from edgevlm_deploy.metrics.taxonomy import Category
from edgevlm_deploy.recipe import Corruption, Evaluation, Perturbation

EVALUATION = Evaluation(
    bootstrap_resamples=200,
    corruptions=(Corruption.FOG,),
    perturbations=(Perturbation.SMALL_SHIFT,),
    severities=(1,),
    items_per_condition=4,
)
QUESTIONS = (
    ("What color is the cube?", "red"),
    ("Is there a ball?", "yes"),
    ("Is there a dog?", "no"),
    ("How many rings are there?", "2"),
)


def asked() -> tuple[Item, ...]:
    return tuple(
        Item(f"q{n}", f"q{n}", "", "clean", f"images/{n}.png", f"picture{n}", question, (right,))
        for n, (question, right) in enumerate(QUESTIONS)
    )


def say(items: tuple[Item, ...], *said: str) -> list[Answer]:
    return [Answer(item.id, text, (5, 2), (-0.1, -0.1), True) for item, text in zip(items, said, strict=True)]


def test_counted_by_hand() -> None:
    items = asked()
    found = metrics.compute(
        items, say(items, "blue", "yes", "no", ""), say(items, "blue", "no", "yes", "3"), EVALUATION
    )
    clean = found.taxonomy["clean"]
    counts = {row.category: (row.reference, row.artifact) for row in clean.rows}
    assert counts == {
        Category.OBJECT_BLINDNESS: (0, 1),
        Category.SEMANTIC_DRIFT: (1, 1),
        Category.PRIOR_BIAS: (0, 1),
        Category.SPATIAL_ERROR: (0, 1),
        Category.OTHER: (0, 0),
    }
    assert (clean.n, clean.reference_empty, clean.artifact_empty) == (4, 1, 0)
    increase = {row.category: row.increase.value for row in clean.rows}
    assert increase[Category.OBJECT_BLINDNESS] == 0.25 and increase[Category.SEMANTIC_DRIFT] == 0.0
    assert [(one.id, one.rule) for one in found.failures] == [
        ("q0", "colour"),
        ("q1", "missed"),
        ("q2", "invented"),
        ("q3", "place_size_or_count"),
    ]
    assert set(found.taxonomy) == {"clean"}
    assert metrics.Metrics.model_validate_json(found.model_dump_json()) == found


def test_an_empty_output_is_a_failure_without_a_category() -> None:
    items = asked()
    right = say(items, "red", "yes", "no", "2")
    found = metrics.compute(items, right, say(items, " ", "yes", "no", "2"), EVALUATION)
    (failed,) = found.failures
    assert (failed.category, failed.rule, failed.reason) == (None, "", "The answer is empty.")
    assert found.taxonomy["clean"].artifact_empty == 1
    assert all(row.artifact == 0 for row in found.taxonomy["clean"].rows)


def test_blind_answers_belong_to_the_clean_question() -> None:
    items = asked()
    blind = tuple(
        dataclasses.replace(one, id=f"{one.id}@blind", condition="blind", image="", image_id="")
        for one in items
    )
    said = say((*items, *blind), "red", "yes", "no", "2", "blue", "no", "no", "1")
    assert blind_answers((*items, *blind), said) == {"q0": "blue", "q1": "no", "q2": "no", "q3": "1"}


@settings(max_examples=20)
@given(st.integers(0, 2**32 - 1))
def test_every_wrong_answer_is_counted_once(seed: int) -> None:
    rng = np.random.default_rng(seed)
    items = suites.build(asked(), EVALUATION)
    words = ("red", "blue", "yes", "no", "2", "", "left", "a tree")
    before, now = (say(items, *(str(rng.choice(words)) for _ in items)) for _ in range(2))
    found = metrics.compute(items, before, now, EVALUATION)
    sizes = {"clean": 4, "corrupted": 4, "perturbed": 4}
    assert {name: one.n for name, one in found.taxonomy.items()} == sizes

    def wrong(answers: list[Answer], name: str) -> int:
        kind = {"clean": "clean", "corrupted": "fog/1", "perturbed": "perturbed:small_shift/1"}[name]
        pairs = zip(items, answers, strict=True)
        return sum(accuracy(a.text, i.answers) < RIGHT_FROM for i, a in pairs if i.condition == kind)

    for name, one in found.taxonomy.items():
        assert one.reference_empty + sum(row.reference for row in one.rows) == wrong(before, name)
        assert one.artifact_empty + sum(row.artifact for row in one.rows) == wrong(now, name)
        for row in one.rows:
            assert row.increase.value == pytest.approx((row.artifact - row.reference) / one.n)
    assert len(found.failures) == sum(wrong(now, name) for name in sizes)
