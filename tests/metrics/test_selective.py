"""Selective prediction against numbers worked out by hand, and against the definition word by word."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgevlm_deploy.metrics.selective import (
    ABSTAIN_ON_ALL,
    Floats,
    aurc,
    best_threshold,
    coverage_at_risk,
    effective_reliability,
    resampled_coverage,
    risk_coverage_auc,
    risks,
)

CONFIDENCE = np.array([0.9, 0.8, 0.7, 0.6, 0.5])
ACCURACY = np.array([1.0, 1.0, 0.0, 1.0, 0.0])
# Few different confidences, so that many tie.
ROWS = st.lists(
    st.tuples(st.sampled_from([0.2, 0.5, 0.8, 0.9, 1.0]), st.sampled_from([0.0, 0.3, 0.6, 1.0])),
    min_size=1,
    max_size=30,
)
RISKS = st.sampled_from([0.005, 0.01, 0.05, 0.1, 0.2, 0.5])


def columns(rows: list[tuple[float, float]]) -> tuple[Floats, Floats]:
    return np.array([row[0] for row in rows]), np.array([row[1] for row in rows])


def by_definition(confidence: Floats, accuracy: Floats, risk: float) -> float:
    order = sorted(range(len(confidence)), key=lambda place: -confidence[place])
    ranked, right = [confidence[place] for place in order], [accuracy[place] for place in order]
    for k in range(len(ranked), 0, -1):
        if sum(1 - one for one in right[:k]) / k <= risk + 1e-12:
            while 0 < k < len(ranked) and ranked[k - 1] == ranked[k]:
                k -= 1
            return k / len(ranked)
    return 0.0


def test_golden() -> None:
    assert risk_coverage_auc(CONFIDENCE, ACCURACY) == pytest.approx(15.67, abs=0.005)
    assert aurc(CONFIDENCE, ACCURACY) == pytest.approx(0.19667, abs=1e-5)
    assert coverage_at_risk(CONFIDENCE, ACCURACY, 0.25) == (0.8, 0.6)
    assert coverage_at_risk(CONFIDENCE, ACCURACY, 0.01) == (0.4, 0.8)


@pytest.mark.parametrize(("cost", "threshold", "value"), [(1, 0.6, 0.4), (10, 0.8, 0.4)])
def test_effective_reliability_golden(cost: float, threshold: float, value: float) -> None:
    assert best_threshold(CONFIDENCE, ACCURACY, cost) == threshold
    phi = effective_reliability(CONFIDENCE, ACCURACY, cost, threshold)
    assert phi.mean() == pytest.approx(value)


def test_effective_reliability_without_abstaining() -> None:
    assert effective_reliability(CONFIDENCE, ACCURACY, 10, 0.0).mean() == pytest.approx(-3.4)


def test_abstaining_on_all_can_be_best() -> None:
    wrong = np.zeros(3)
    assert best_threshold(CONFIDENCE[:3], wrong, 1) == ABSTAIN_ON_ALL
    assert effective_reliability(CONFIDENCE[:3], wrong, 1, ABSTAIN_ON_ALL).sum() == 0.0
    assert coverage_at_risk(CONFIDENCE[:3], wrong, 0.2) == (0.0, ABSTAIN_ON_ALL)


def test_a_threshold_cannot_part_equal_confidences() -> None:
    confidence, accuracy = np.array([0.9, 0.8, 0.8, 0.8]), np.array([1.0, 1.0, 0.0, 0.0])
    assert coverage_at_risk(confidence, accuracy, 0.1) == (0.25, 0.9)


def test_nothing_to_measure_is_undefined() -> None:
    none = np.array([])
    assert risk_coverage_auc(none, none) is aurc(none, none) is None
    assert best_threshold(none, none, 1) == ABSTAIN_ON_ALL
    assert coverage_at_risk(none, none, 0.05) == (0.0, ABSTAIN_ON_ALL)


@given(ROWS, RISKS)
def test_coverage_is_the_definition(rows: list[tuple[float, float]], risk: float) -> None:
    confidence, accuracy = columns(rows)
    coverage, threshold = coverage_at_risk(confidence, accuracy, risk)
    assert coverage == pytest.approx(by_definition(confidence, accuracy, risk))
    assert (confidence >= threshold).mean() == pytest.approx(coverage)


@given(ROWS, RISKS, st.integers(0, 2**32 - 1))
def test_resampled_coverage_is_that_of_the_repeated_items(
    rows: list[tuple[float, float]], risk: float, seed: int
) -> None:
    confidence, accuracy = columns(rows)
    times = np.random.default_rng(seed).multinomial(len(rows), np.full(len(rows), 1 / len(rows)), 4)
    expected = [by_definition(np.repeat(confidence, one), np.repeat(accuracy, one), risk) for one in times]
    received = resampled_coverage(confidence, accuracy, times.astype(np.float64), risk)
    assert received == pytest.approx(expected)


@given(ROWS)
def test_identities(rows: list[tuple[float, float]]) -> None:
    confidence, accuracy = columns(rows)
    curve = risks(confidence, accuracy)
    assert curve[-1] == pytest.approx(1 - accuracy.mean())
    area, plain = risk_coverage_auc(confidence, accuracy), aurc(confidence, accuracy)
    assert area is not None and plain is not None
    # A trapezoid counts both ends half.
    assert area / 100 == pytest.approx(plain - (curve[0] + curve[-1]) / (2 * len(rows)))
    assert coverage_at_risk(confidence, accuracy, 1.0) == (1.0, confidence.min())


@given(ROWS, st.sampled_from([1.0, 10.0, 100.0]))
def test_no_threshold_beats_the_best(rows: list[tuple[float, float]], cost: float) -> None:
    confidence, accuracy = columns(rows)

    def phi(threshold: float) -> float:
        return float(effective_reliability(confidence, accuracy, cost, threshold).mean())

    best = best_threshold(confidence, accuracy, cost)
    for other in (*confidence, ABSTAIN_ON_ALL):
        assert phi(other) <= phi(best) + 1e-9
        assert other >= best or phi(other) < phi(best)
