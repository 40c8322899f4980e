"""Class scores: ranks with ties, confidences of softmax and sigmoid, the logit scale."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from edgevlm_deploy.metrics import temperature
from edgevlm_deploy.metrics.confidence import expected_calibration_error
from edgevlm_deploy.metrics.dual.zero_shot import (
    fit_logit_scale,
    hits,
    ranks,
    sigmoid_confidence,
    softmax,
    softmax_confidence,
)

COSINES = arrays(np.float64, (7, 5), elements=st.integers(-3, 3).map(lambda n: n / 4))
LABELS = arrays(np.int64, 7, elements=st.integers(0, 4))


def test_ranks_golden() -> None:
    cosines = np.array([[0.3, 0.1, 0.2], [0.3, 0.1, 0.2], [0.2, 0.2, 0.1]])
    assert ranks(cosines, np.array([0, 2, 1])).tolist() == [1, 2, 2]
    assert hits(cosines, np.array([0, 2, 1])).tolist() == [True, False, False]
    assert hits(cosines, np.array([0, 2, 1]), 2).all()


@given(COSINES, LABELS)
def test_a_hit_is_what_argmax_says_and_top_k_grows(cosines: np.ndarray, labels: np.ndarray) -> None:
    assert np.array_equal(hits(cosines, labels), cosines.argmax(axis=1) == labels)
    by_sorting = [
        int(np.flatnonzero(np.argsort(-row, kind="stable") == label)[0]) + 1
        for row, label in zip(cosines, labels, strict=True)
    ]
    assert ranks(cosines, labels).tolist() == by_sorting
    shares = [hits(cosines, labels, k).mean() for k in range(1, 6)]
    assert shares == sorted(shares)
    assert shares[-1] == 1.0


def test_confidences_golden() -> None:
    cosines = np.array([[0.30, 0.20]])
    assert softmax_confidence(cosines, 10.0)[0] == pytest.approx(1 / (1 + np.exp(-1.0)))
    # SigLIP so400m's parameters, about: e^4.7 and −16.5.
    assert sigmoid_confidence(np.array([[0.15, 0.10]]), 110.0, -16.5)[0] == pytest.approx(0.5)
    assert sigmoid_confidence(cosines, 100.0, -28.0)[0] == pytest.approx(1 / (1 + np.exp(-2.0)))


def test_the_log_odds_of_a_sigmoid_are_its_logits() -> None:
    """So `temperature.fit` scales logit scale and bias together."""
    cosines = np.random.default_rng(0).uniform(-0.1, 0.3, (20, 4))
    scaled = temperature.scaled(sigmoid_confidence(cosines, 60.0, -8.0), 2.0)
    assert scaled == pytest.approx(sigmoid_confidence(cosines, 30.0, -4.0))


def test_the_fitted_scale_is_the_one_that_drew_the_labels() -> None:
    rng = np.random.default_rng(1)
    cosines = rng.uniform(-0.3, 0.5, (4000, 6))
    labels = np.array([rng.choice(6, p=row) for row in softmax(8.0 * cosines)])
    found = fit_logit_scale(cosines, labels)
    assert found == pytest.approx(8.0, rel=0.05)
    right = hits(cosines, labels).astype(np.float64)
    before, after = (
        expected_calibration_error(softmax_confidence(cosines, scale), right) for scale in (100.0, found)
    )
    assert before is not None and after is not None
    assert after < 0.03 < 0.3 < before


def test_nothing_right_or_nothing_wrong_says_nothing_about_the_scale() -> None:
    cosines = np.array([[0.5, 0.1], [0.1, 0.5]])
    assert fit_logit_scale(cosines, np.array([0, 1])) is None
    assert fit_logit_scale(cosines, np.array([1, 0])) is None
    assert fit_logit_scale(np.zeros((0, 2)), np.zeros(0, np.int64)) is None
