"""Probes and blind questions in the metrics: counted by hand, and kept apart from everything else."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from edgevlm_runner.contract import Answer, Item, Kind
from hypothesis import given, settings
from hypothesis import strategies as st

from edgevlm_deploy import metrics, suites
from edgevlm_deploy.errors import DataError
from edgevlm_deploy.metrics import Metrics
from edgevlm_deploy.recipe import Corruption, Evaluation, Negation, Perturbation, ProbeForm

QUICK = Evaluation(
    bootstrap_resamples=200,
    corruptions=(Corruption.FOG,),
    severities=(1, 2),
    items_per_condition=5,
    perturbations=(Perturbation.SMALL_SHIFT,),
    negation=Negation(items=10),
    blind_items=10,
    grey_items=4,
)
RIGHT = {"is_not": "fish", "absent": "fish", "false_yn": "No.", "counter": "It is red.", "true_yn": "Yes"}
WRONG = {"is_not": "red", "absent": "red", "false_yn": "I know: yes", "counter": "purple", "true_yn": "no"}


def question(number: int) -> Item:
    return Item(
        id=f"q{number}",
        base_id=f"q{number}",
        group="",
        condition="clean",
        image=f"images/{number}.png",
        image_id=f"picture{number}",
        prompt="What color is it?",
        answers=("red",),
    )


def said(item: Item, text: str) -> Answer:
    return Answer(item.id, text, tuple(text.encode()), (-0.1,), True)


def right(item: Item) -> str:
    return RIGHT.get(item.form, "red")


def wrong(item: Item) -> str:
    return WRONG.get(item.form, "blue")


TABLE = suites.build([question(n) for n in range(20)], QUICK)
PROBED = [item for item in TABLE if item.kind is Kind.NEGATED]


def test_counted_by_hand() -> None:
    """The reference errs on one probed item, so 9 of 10 count; 3 counters and a false_yn are lost."""
    excluded, *kept = sorted({item.base_id for item in PROBED})
    lost = {f"{base}@negated:counter" for base in kept[:3]} | {f"{kept[4]}@negated:false_yn"}
    reference = [said(item, wrong(item) if item.id == excluded else right(item)) for item in TABLE]
    artifact = [said(item, wrong(item) if item.id in lost else right(item)) for item in TABLE]
    result = metrics.compute(TABLE, reference, artifact, QUICK)
    rows = {row.form: row for row in result.negation}
    assert list(rows) == [form.value for form in ProbeForm]
    assert {(row.asked, row.comparison.n) for row in result.negation} == {(10, 9)}
    assert rows["counter"].comparison.artifact_accuracy.value == pytest.approx(6 / 9)
    assert rows["false_yn"].comparison.artifact_accuracy.value == pytest.approx(8 / 9)
    # "purple" is long enough for the published scorer, and "I know" holds a no.
    assert rows["counter"].artifact_lenient.value == rows["false_yn"].artifact_lenient.value == 1.0
    values = {name: one.value for name, one in result.estimates.items()}
    success = (1 + 1 + 8 / 9 + 6 / 9) / 4
    assert values["negation_success"] == pytest.approx(success)
    assert values["reference_negation_success"] == values["lenient_negation_success"] == 1.0
    assert values["negation_success_drop"] == values["negation_divergence_rate"] == pytest.approx(1 - success)
    blind = rows["counter"].blind
    assert blind is not None and blind.n == 9
    assert values["blind_negation_success"] == values["reference_blind_negation_success"] == 1.0
    drop = result.estimates["negation_success_drop"]
    assert drop.low is not None and drop.high is not None and drop.low < drop.value < drop.high
    assert {flip.id for flip in result.flips} == {*lost, excluded}


def test_prior_bias_is_what_stays_without_the_picture() -> None:
    unseen = [item.id for item in TABLE if item.condition == "blind"]
    moved = {"reference": set(unseen[:7]), "artifact": set(unseen[:4])}
    answers = {
        whose: [said(item, "blue" if item.id in ids else right(item)) for item in TABLE]
        for whose, ids in moved.items()
    }
    result = metrics.compute(TABLE, answers["reference"], answers["artifact"], QUICK)
    values = {name: one.value for name, one in result.estimates.items()}
    assert values["prior_bias"] == pytest.approx(0.6)
    assert values["reference_prior_bias"] == pytest.approx(0.3)
    assert values["prior_bias_increase"] == pytest.approx(0.3)
    assert values["grey_prior_bias"] == values["reference_grey_prior_bias"] == 1.0
    assert [(row.condition, row.comparison.n) for row in result.blind] == [("blind", 10), ("blind:grey", 4)]
    assert result.blind[0].comparison.artifact_accuracy.value == pytest.approx(0.6)
    assert result.flips == ()


@settings(max_examples=20)
@given(st.integers(0, 2**32 - 1))
def test_probes_leak_into_nothing_else(seed: int) -> None:
    """Every other number is the same without them, interval for interval."""
    rng = np.random.default_rng(seed)
    reference = [said(item, (right if rng.random() < 0.8 else wrong)(item)) for item in TABLE]
    artifact = [said(item, (right if rng.random() < 0.6 else wrong)(item)) for item in TABLE]
    plain = [item for item in TABLE if item.kind in (Kind.CLEAN, Kind.CORRUPTED, Kind.PERTURBED)]
    with_them = metrics.compute(TABLE, reference, artifact, QUICK)
    without = metrics.compute(plain, reference, artifact, QUICK)
    about_probes = {name for name in with_them.estimates if "negation" in name or "prior" in name}
    assert all(without.estimates[name].value is None for name in about_probes)
    for name in set(with_them.estimates) - about_probes:
        assert with_them.estimates[name] == without.estimates[name], name
    assert (with_them.conditions, with_them.groups, with_them.reliability, with_them.selective) == (
        without.conditions,
        without.groups,
        without.reliability,
        without.selective,
    )
    assert (with_them.clean_items, with_them.corrupted_items, with_them.images) == (20, 10, 20)
    values = {name: one.value for name, one in with_them.estimates.items()}
    assert values["negation_success_drop"] == pytest.approx(
        values["reference_negation_success"] - values["negation_success"]
    )
    assert values["prior_bias_increase"] == pytest.approx(
        values["prior_bias"] - values["reference_prior_bias"]
    )
    for row in with_them.negation:
        one = row.comparison
        assert one.artifact_accuracy.value - one.reference_accuracy.value == pytest.approx(
            one.positive_flip_rate.value - one.negative_flip_rate.value
        )
    assert Metrics.model_validate_json(with_them.model_dump_json()) == with_them


def test_what_cannot_be_measured_says_why() -> None:
    missed = [said(item, wrong(item)) for item in TABLE]
    result = metrics.compute(TABLE, missed, missed, QUICK)
    assert result.estimates["negation_success"].note == "the reference answers no probed item correctly"
    assert result.negation == ()
    plain = [item for item in TABLE if item.kind is Kind.CLEAN]
    result = metrics.compute(plain, missed, missed, QUICK)
    assert result.estimates["negation_success_drop"].note == "no negation probes"
    assert result.estimates["prior_bias"].note == "no blind items"
    control = Evaluation(
        corruptions=(), bootstrap_resamples=100, negation=Negation(forms=(ProbeForm.TRUE_YN,), blind=False)
    )
    items = suites.build(plain, control)
    answers = [said(item, right(item)) for item in items]
    result = metrics.compute(items, answers, answers, control)
    assert result.estimates["negation_success"].note == "no form but the control"
    assert result.estimates["blind_negation_success"].note == "no probes without pictures"
    assert result.negation[0].comparison.artifact_accuracy.value == 1.0 and result.negation[0].blind is None


def test_an_unknown_form_is_one_sentence() -> None:
    strange = dataclasses.replace(PROBED[0], condition="negated:irony")
    items = (*(item for item in TABLE if item.kind is Kind.CLEAN), strange)
    answers = [said(item, "red") for item in items]
    with pytest.raises(DataError, match="unknown probe 'irony', expected one of is_not"):
        metrics.compute(items, answers, answers, QUICK)
