"""Out-of-distribution scores and the ROC curve, against SciPy, brute force and the published code."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import mannwhitneyu

from edgevlm_deploy.metrics import ood
from edgevlm_deploy.metrics.ood import Curve, auroc, delong_difference, delong_interval

SCORES = st.lists(st.integers(0, 12).map(float), min_size=2, max_size=40)


def test_scores_golden() -> None:
    cosines = np.array([[0.3, 0.1, 0.1], [0.2, 0.2, 0.2]])
    e = np.exp([0.3, 0.1, 0.1])
    assert ood.maximum_concept_matching(cosines) == pytest.approx([e[0] / e.sum(), 1 / 3])
    assert ood.energy(cosines) == pytest.approx([np.log(e.sum()), 0.2 + np.log(3)])
    assert ood.max_logit(cosines) == pytest.approx([0.3, 0.2])
    p = e / e.sum()
    assert ood.negative_entropy(cosines) == pytest.approx([(p * np.log(p)).sum(), -np.log(3)])
    assert ood.maximum_concept_matching(cosines, 0.01)[0] == pytest.approx(1.0)
    assert ood.energy(cosines, 0.001)[0] == pytest.approx(0.3)


def both(inside: list[float], outside: list[float]) -> tuple[np.ndarray, np.ndarray]:
    return np.array(inside + outside), np.array([True] * len(inside) + [False] * len(outside))


@given(SCORES, SCORES)
def test_auroc_is_the_statistic_of_mann_and_whitney(inside: list[float], outside: list[float]) -> None:
    u = mannwhitneyu(inside, outside, method="asymptotic").statistic
    assert auroc(*both(inside, outside)) == pytest.approx(u / len(inside) / len(outside))
    assert auroc(*both(outside, inside)) == pytest.approx(1 - u / len(inside) / len(outside))


def published_fpr(score: np.ndarray, positive: np.ndarray, level: float) -> float:
    """`fpr_and_fdr_at_recall` of Hendrycks et al., by its description, for the variant "closest to"."""
    order = np.argsort(score, kind="mergesort")[::-1]
    score, positive = score[order], positive[order]
    ends = np.r_[np.where(np.diff(score))[0], len(score) - 1]
    true = np.cumsum(positive)[ends]
    false = 1 + ends - true
    recall = true / true[-1]
    full = int(true.searchsorted(true[-1]))
    recall, false = np.r_[recall[full::-1], 1], np.r_[false[full::-1], 0]
    return float(false[np.argmin(np.round(np.abs(recall - level), 12))] / (~positive).sum())


@given(SCORES, SCORES)
def test_closest_is_the_published_variant(inside: list[float], outside: list[float]) -> None:
    score, positive = both(inside, outside)
    assert Curve(score, positive).false_positives_closest()[0] == pytest.approx(
        published_fpr(score, positive, 0.95)
    )


@given(SCORES, SCORES)
def test_at_least_by_trying_every_threshold(inside: list[float], outside: list[float]) -> None:
    score, positive = both(inside, outside)
    enough = [t for t in set(score) if np.mean(np.array(inside) >= t) >= 0.95 - 1e-9]
    expected = min(np.mean(np.array(outside) >= t) for t in enough)
    assert Curve(score, positive).false_positives_at_least()[0] == pytest.approx(expected)


def test_the_variants_differ_as_their_names_say() -> None:
    """Of 16 positives, 15 give a recall of 0.9375: closer to 0.95 than 1, and not at least 0.95."""
    score, positive = both([10.0] * 15 + [1.0], [5.0, 5.0, 0.0, 0.0])
    curve = Curve(score, positive)
    assert curve.false_positives_at_least()[0] == 0.5
    # Two thresholds have that recall; the lower one counts.
    assert curve.false_positives_closest()[0] == 0.5
    score, positive = both([10.0] * 15 + [1.0], [1.0, 1.0, 0.0, 0.0])
    curve = Curve(score, positive)
    assert curve.false_positives_at_least()[0] == 0.5
    assert curve.false_positives_closest()[0] == 0.0


@given(SCORES, SCORES, st.integers(0, 2**32 - 1))
def test_a_weight_is_a_repeated_picture(inside: list[float], outside: list[float], seed: int) -> None:
    score, positive = both(inside, outside)
    times = np.random.default_rng(seed).integers(0, 4, len(score))
    times[[0, -1]] += 1  # one of each side at least
    curve = Curve(score, positive, times[None].astype(np.float64))
    again = Curve(np.repeat(score, times), np.repeat(positive, times))
    assert curve.area()[0] == pytest.approx(again.area()[0])
    assert curve.false_positives_at_least()[0] == pytest.approx(again.false_positives_at_least()[0])


def test_a_resample_without_one_side_is_undefined() -> None:
    score, positive = both([2.0, 3.0], [1.0])
    curve = Curve(score, positive, np.array([[1.0, 1.0, 0.0], [1.0, 0.0, 1.0]]))
    assert np.isnan(curve.area()[0]) and curve.area()[1] == 1.0
    assert np.isnan(curve.false_positives_at_least()[0])


def brute_variance(one: np.ndarray, positive: np.ndarray, other: np.ndarray | None = None) -> float:
    """DeLong from the kernel of all pairs."""

    def kernel(score: np.ndarray) -> np.ndarray:
        x, y = score[positive][:, None], score[~positive][None]
        return (x > y) + 0.5 * (x == y)

    pairs = kernel(one) - (0 if other is None else kernel(other))
    v10, v01 = pairs.mean(axis=1), pairs.mean(axis=0)
    return float(v10.var(ddof=1) / len(v10) + v01.var(ddof=1) / len(v01))


def test_delong_against_all_pairs() -> None:
    rng = np.random.default_rng(3)
    positive = np.repeat([True, False], [60, 45])
    one = np.round(rng.normal(positive, 1.0), 1)
    other = one + np.round(rng.normal(0, 0.4, len(one)), 1)
    low, high = delong_interval(one, positive, 0.95)
    assert (low + high) / 2 == pytest.approx(auroc(one, positive))
    assert high - low == pytest.approx(2 * 1.959964 * np.sqrt(brute_variance(one, positive)), rel=1e-5)
    low, high = delong_difference(one, other, positive, 0.95)
    assert (low + high) / 2 == pytest.approx(auroc(one, positive) - auroc(other, positive))
    variance = brute_variance(one, positive, other) + 47**-2
    assert high - low == pytest.approx(2 * 1.959964 * np.sqrt(variance), rel=1e-5)


def test_delong_covers() -> None:
    """True AUROC of two unit normals one apart is Φ(1/√2) = 0.760."""
    rng = np.random.default_rng(4)
    positive = np.repeat([True, False], [80, 80])
    covered = [
        low <= 0.7602 <= high
        for low, high in (delong_interval(rng.normal(positive, 1.0), positive, 0.9) for _ in range(400))
    ]
    assert np.mean(covered) == pytest.approx(0.9, abs=0.045)


def test_no_interval_is_a_point() -> None:
    score, positive = both([2.0] * 30, [1.0] * 20)
    low, high = delong_interval(score, positive, 0.95)
    assert high == 1.0 and 0.8 < low < 0.9
    low, high = delong_difference(score, score, positive, 0.95)
    assert low == -high and 0.05 < high < 0.15
