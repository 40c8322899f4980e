"""The Selector beside MaxProb on items with known scores, the bundle's own rule, and mixtures."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
from edgevlm_runner.contract import TEMPERATURE, Answer, Certainty, Item
from hypothesis import given
from hypothesis import strategies as st

from edgevlm_deploy import metrics
from edgevlm_deploy.metrics import Metrics, mixture
from edgevlm_deploy.recipe import Evaluation
from edgevlm_deploy.report.outcome import abstaining

QUICK = Evaluation(bootstrap_resamples=300)
N = 400


def items() -> list[Item]:
    """200 clean questions on 100 pictures, and each on a corrupted picture, half of them severely."""
    clean = [
        Item(f"q{n}", f"q{n}", "", "clean", "", f"picture{n // 2}", "What colour?", ("blue",))
        for n in range(N // 2)
    ]
    corrupted = [
        dataclasses.replace(one, id=f"{one.id}@c", condition=f"fog/{1 + 4 * (n % 2)}")
        for n, one in enumerate(clean)
    ]
    return [*clean, *corrupted]


def answers(right: list[bool], probability: list[float], selector: list[float | None]) -> list[Answer]:
    rows = zip(items(), right, probability, selector, strict=True)
    return [
        Answer(item.id, "blue" if is_right else "red", (1,), (math.log(p),), True, score)
        for item, is_right, p, score in rows
    ]


RIGHT = [n < N // 2 or n % 4 != 0 for n in range(N)]
"""Every clean answer, and three of four corrupted ones."""
GUESSED = [0.5 + 0.4 * float(one) for one in np.random.default_rng(0).random(N)]


def judged(selector: list[float | None], certainty: Certainty | None = None) -> Metrics:
    said = answers(RIGHT, GUESSED, selector)
    return metrics.compute(items(), said, said, QUICK, certainty)


def knowing() -> list[float | None]:
    """A Selector that knows, by steps that are small enough to tell items apart."""
    return [(0.9 if one else 0.1) + n / 10_000 for n, one in enumerate(RIGHT)]


def test_a_selector_that_knows_gains_what_the_probability_loses() -> None:
    found = judged(knowing())
    everything = found.selector[1]
    assert [one.part for one in found.selector] == ["clean", "clean and corrupted"]
    assert (everything.n, everything.accuracy) == (N, 0.875)
    at_5 = everything.gains[1]
    assert at_5.selector.value == pytest.approx(368 / 400)  # 350 right ones, and 18 of the wrong ones
    assert at_5.gain.value == pytest.approx(at_5.selector.value - at_5.max_prob.value)
    assert at_5.gain.low is not None and at_5.gain.low > 0.2
    assert found.estimates["selector_gain_at_risk_5"] == at_5.gain
    assert everything.selector.aurc < everything.max_prob.aurc
    assert abstaining(found)[-1].startswith(
        "At 5% wrong answers the Selector beats MaxProb: it answers 92.0%"
    )


def test_a_selector_that_repeats_the_probability_gains_nothing() -> None:
    found = judged(list(GUESSED))
    for gain in found.selector[1].gains:
        assert gain.gain.value == 0.0
        assert gain.gain.low is not None and gain.gain.high is not None and gain.gain.low < 0 < gain.gain.high
    assert "is not shown to beat MaxProb" in abstaining(found)[-1]


def test_without_a_selector_its_metrics_are_undefined() -> None:
    found = judged([None] * N)
    assert found.selector == () and found.mixture is None
    for name in ("selector_coverage_at_risk_1", "selector_gain_at_risk_5", "answered_share", "answered_risk"):
        assert found.estimates[name].value is None and found.estimates[name].note
    assert abstaining(found) == []


@pytest.mark.parametrize(
    ("certainty", "share", "risk"),
    [
        (Certainty(abstain="selector", threshold=0.5), 350 / 400, 0.0),
        (Certainty(abstain="selector", threshold=0.0), 1.0, 0.125),
        (Certainty(abstain="maxprob", threshold=0.0), 1.0, 0.125),
        (Certainty(abstain="selector", threshold=None), 0.0, None),
    ],
)
def test_the_bundles_own_rule(certainty: Certainty, share: float, risk: float | None) -> None:
    found = judged(knowing(), certainty).estimates
    assert found["answered_share"].value == pytest.approx(share)
    assert found["answered_risk"].value == (None if risk is None else pytest.approx(risk))
    if risk is not None:
        low, high = found["answered_risk"].low, found["answered_risk"].high
        assert low is not None and high is not None and low <= risk < high


def test_the_strongest_corruption_stands_for_a_shift() -> None:
    found = judged(knowing()).mixture
    assert found is not None
    assert (found.familiar_items, found.shifted_items) == (300, 100)
    assert found.shifted == "corrupted at severity 5"
    first, last = found.rows[0], found.rows[-1]
    assert (first.shifted, last.shifted) == (0.0, 1.0)
    assert first.selector[1] is not None and first.selector[1] <= 0.01
    assert first.selector[0] > first.max_prob[0]


def test_the_shipped_temperature_is_the_one_that_is_judged() -> None:
    """The fit on the device's own answers would be another: there all of them are right."""
    held_out = Item("t", "t", "", TEMPERATURE, "", "other", "What colour?", ("blue",))
    said = answers(RIGHT, GUESSED, [None] * N)
    more = [*said, Answer("t", "blue", (1,), (-0.1,), True)]
    found = metrics.compute([*items(), held_out], more, more, QUICK, Certainty(temperature=3.0, fitted_on=50))
    scaling = found.scaling["artifact"]
    assert (scaling.temperature, scaling.n, scaling.shipped) == (3.0, 50, True)
    assert scaling.all_before is not None and scaling.all_before != scaling.all_after
    assert "reference" not in found.scaling


def test_mixtures_by_hand() -> None:
    """Half of the familiar items answered, a tenth of these wrong; all shifted ones, half of them wrong."""
    accuracy = np.array([1.0] * 9 + [0.0] + [1.0] * 10)
    familiar = mixture.answered(np.array([0.9] * 10 + [0.1] * 10), accuracy, 0.5)
    shifted = mixture.answered(np.array([0.9, 0.9]), np.array([1.0, 0.0]), 0.5)
    assert familiar == pytest.approx((0.5, 0.05)) and shifted == pytest.approx((1.0, 0.5))
    assert mixture.at_share(familiar, shifted, 0.0) == pytest.approx((0.5, 0.1))
    assert mixture.at_share(familiar, shifted, 0.5) == pytest.approx((0.75, 0.275 / 0.75))
    assert mixture.at_share(familiar, shifted, 1.0) == pytest.approx((1.0, 0.5))
    assert mixture.at_share(mixture.answered(np.ones(3), np.ones(3), None), (0.0, 0.0), 0.5) == (0.0, None)


@given(st.floats(0, 1), st.integers(0, 20), st.integers(0, 20), st.floats(0, 1))
def test_a_mixture_lies_between_its_kinds(share: float, ours: int, theirs: int, threshold: float) -> None:
    scores = np.linspace(0, 1, 21)
    kinds = [mixture.answered(scores, (np.arange(21) < right) * 1.0, threshold) for right in (ours, theirs)]
    coverage, risk = mixture.at_share(kinds[0], kinds[1], share)
    ends = [mixture.at_share(kinds[0], kinds[1], end) for end in (0.0, 1.0)]
    assert min(one[0] for one in ends) - 1e-12 <= coverage <= max(one[0] for one in ends) + 1e-12
    risks = [one[1] for one in ends if one[1] is not None]
    if risk is not None:
        assert min(risks) - 1e-12 <= risk <= max(risks) + 1e-12
