"""Backgrounds and shifts."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgevlm_deploy.metrics.robustness import mean_accuracy_drop, relative_robustness
from edgevlm_deploy.metrics.spurious import relative_degradation, relative_spurious_gap, worst_group

SHARES = st.floats(0.01, 1.0)


def test_golden() -> None:
    assert relative_spurious_gap(0.9, 0.72) == pytest.approx(0.2)
    assert relative_degradation(0.8, 0.6) == pytest.approx(0.25)
    assert worst_group([0.9, 0.4, 0.7]) == 0.4


@given(SHARES, SHARES)
def test_gaps_are_what_a_ratio_leaves(first: float, second: float) -> None:
    assert relative_spurious_gap(first, second) == pytest.approx(1 - second / first)
    assert relative_degradation(first, second) == pytest.approx(1 - second / first)
    assert relative_degradation(first, first) == 0


@given(SHARES, SHARES)
def test_degradation_under_one_corruption_is_the_drop_over_the_clean_accuracy(
    clean: float, corrupted: float
) -> None:
    """δ of a model against itself on clean pictures is what RS leaves: mean drop = A0 (1 − RS)."""
    lost = relative_degradation(clean, corrupted)
    assert lost == pytest.approx(1 - relative_robustness(clean, [corrupted]))
    assert mean_accuracy_drop(clean, [corrupted]) == pytest.approx(clean * lost)


def test_published_rows() -> None:
    """W4A8 min-max against FP16 (clip-vit-base-patch32, CIFAR-10): a quarter of the clean accuracy."""
    assert relative_degradation(0.901, 0.677) == pytest.approx(0.249, abs=0.001)
    assert relative_degradation(0.901, 0.903) < 0


def test_undefined() -> None:
    assert relative_spurious_gap(0.0, 0.0) is None
    assert worst_group([]) is None
    assert np.isnan(relative_spurious_gap(np.array([0.0]), np.array([0.0])))[0]


def test_a_resample_leaves_out_the_groups_that_it_lacks() -> None:
    shares = [np.array([0.5, np.nan, np.nan]), np.array([0.7, 0.6, np.nan])]
    found = worst_group(shares)
    assert found[:2].tolist() == [0.5, 0.6] and np.isnan(found[2])
