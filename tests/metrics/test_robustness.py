"""Robustness to corruption: published identities, guards against undefined ratios."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgevlm_deploy.metrics.robustness import (
    corruption_error,
    mean_accuracy_drop,
    mean_corruption_error,
    ratio,
    relative_corruption_error,
    relative_robustness,
)

SHARES = st.floats(0.01, 1.0)


@given(SHARES, st.lists(SHARES, min_size=1, max_size=50))
def test_mean_drop_is_what_relative_robustness_leaves(clean: float, corrupted: list[float]) -> None:
    assert mean_accuracy_drop(clean, corrupted) == pytest.approx(
        clean * (1 - relative_robustness(clean, corrupted))
    )


@pytest.mark.parametrize(
    ("clean", "relative", "drop"),
    [(0.901, 0.516, 0.436), (0.903, 0.515, 0.438), (0.896, 0.523, 0.428), (0.677, 0.419, 0.393)],
)
def test_published_rows_satisfy_the_identity(clean: float, relative: float, drop: float) -> None:
    assert mean_accuracy_drop(clean, [clean * relative]) == pytest.approx(drop, abs=0.0011)


def test_corruption_error_golden() -> None:
    artifact, reference = {1: 0.6, 2: 0.4}, {1: 0.8, 2: 0.7}
    assert corruption_error(artifact, reference) == pytest.approx((0.4 + 0.6) / (0.2 + 0.3))
    assert relative_corruption_error(artifact, 0.8, reference, 0.9) == pytest.approx(0.6 / 0.3)
    assert corruption_error(reference, reference) == 1.0


def test_undefined_is_none() -> None:
    perfect = {1: 1.0}
    assert corruption_error({1: 0.5}, perfect) is None
    assert relative_corruption_error({1: 0.5}, 0.9, {1: 0.95}, 0.9) is None
    assert relative_robustness(0.0, [0.0]) is None
    assert relative_robustness(0.5, []) is None
    assert mean_corruption_error([1.0, None]) is None
    assert mean_corruption_error([]) is None
    assert mean_corruption_error([1.0, 2.0]) == 1.5


def test_resampled_ratios_are_nan_where_undefined() -> None:
    values = ratio(np.array([1.0, 1.0]), np.array([2.0, 0.0]))
    assert values[0] == 0.5 and np.isnan(values[1])
