"""Confidence and calibration against numbers worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgevlm_deploy.metrics.confidence import (
    adaptive_calibration_error,
    bin_of,
    brier_score,
    expected_calibration_error,
    geometric_mean_probability,
    mass_bin_of,
    max_prob,
    reliability,
)

CONFIDENCE = np.array([0.95, 0.85, 0.75, 0.65, 0.55])
HITS = np.array([1.0, 1.0, 0.0, 1.0, 0.0])
PROBABILITIES = st.lists(st.tuples(st.floats(0, 1), st.booleans()), min_size=1, max_size=60)


def test_ece_golden() -> None:
    assert expected_calibration_error(CONFIDENCE, HITS) == pytest.approx(0.37)
    assert adaptive_calibration_error(CONFIDENCE, HITS) == pytest.approx(0.37)


def test_brier_golden() -> None:
    assert brier_score(CONFIDENCE, HITS) == pytest.approx(
        (0.05**2 + 0.15**2 + 0.75**2 + 0.35**2 + 0.55**2) / 5
    )


def test_nothing_to_measure_is_undefined() -> None:
    none = np.array([])
    assert expected_calibration_error(none, none) is None
    assert adaptive_calibration_error(none, none) is None
    assert brier_score(none, none) is None


def test_token_probabilities() -> None:
    logprobs = [math.log(0.5), math.log(0.125)]
    assert geometric_mean_probability(logprobs) == pytest.approx(0.25)
    assert max_prob(logprobs) == pytest.approx(0.0625)
    assert geometric_mean_probability([-1e9]) == pytest.approx(1e-10)
    assert geometric_mean_probability([]) == max_prob([]) == 0.0


def test_bins_are_closed_below_and_the_last_one_above() -> None:
    assert bin_of(np.array([0.0, 0.1, 0.0999, 0.95, 1.0])).tolist() == [0, 1, 0, 9, 9]


@given(PROBABILITIES)
def test_mass_bins_hold_equally_many_and_do_not_overlap(rows: list[tuple[float, bool]]) -> None:
    confidence = np.array([p for p, _ in rows])
    bins = mass_bin_of(confidence)
    sizes = np.bincount(bins, minlength=10)
    assert sizes.sum() == len(rows) and sizes.max() - sizes.min() <= 1
    for number in range(9):
        low, high = confidence[bins == number], confidence[bins == number + 1]
        assert low.size == 0 or high.size == 0 or low.max() <= high.min()


@given(PROBABILITIES)
def test_calibration_error_is_bounded_and_zero_when_perfect(rows: list[tuple[float, bool]]) -> None:
    confidence = np.array([p for p, _ in rows])
    hits = np.array([float(hit) for _, hit in rows])
    ece = expected_calibration_error(confidence, hits)
    assert ece is not None and abs(hits.mean() - confidence.mean()) - 1e-9 <= ece <= 1.0 + 1e-9
    assert expected_calibration_error(confidence, confidence) == pytest.approx(0.0, abs=1e-12)


@given(PROBABILITIES)
def test_reliability_bars_rebuild_the_ece(rows: list[tuple[float, bool]]) -> None:
    confidence = np.array([p for p, _ in rows])
    hits = np.array([float(hit) for _, hit in rows])
    bars = reliability(confidence, hits)
    assert sum(bar.n for bar in bars) == len(rows)
    rebuilt = sum(
        bar.n * abs(bar.accuracy - bar.confidence)
        for bar in bars
        if bar.accuracy is not None and bar.confidence is not None
    )
    assert expected_calibration_error(confidence, hits) == pytest.approx(rebuilt / len(rows))
