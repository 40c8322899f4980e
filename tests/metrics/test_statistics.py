"""Intervals against published values, scipy and simulation."""

from __future__ import annotations

import math
import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest

from edgevlm_deploy.metrics.statistics import (
    bootstrap,
    hull,
    items_needed,
    mcnemar,
    paired_difference,
    pairs_needed,
    quantile_interval,
    samples_needed,
    wilson,
)


@given(st.integers(1, 3000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_is_scipys(case: tuple[int, int]) -> None:
    successes, n = case
    expected = binomtest(successes, n).proportion_ci(0.95, method="wilson")
    assert wilson(successes, n, 0.95) == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_wilson_of_no_events_keeps_its_width() -> None:
    low, high = wilson(0, 2000, 0.95)
    assert low == 0.0 and 0.0018 < high < 0.0020
    assert wilson(0, 0, 0.95) == (0.0, 1.0)
    assert wilson(20, 20, 0.95)[1] == 1.0


def test_paired_difference_golden() -> None:
    """By hand: 43 / 1146 ± 1.96 · √(76 − 43² / 1146) / 1146 for 59 and 16 changes among 1,144 pairs."""
    low, high = paired_difference(59 - 16, 59 + 16, 1144, 0.95)
    assert (low, high) == pytest.approx((0.02277, 0.05227), abs=1e-5)
    low, high = paired_difference(0, 0, 2000, 0.95)
    assert low == -high and high == pytest.approx(0.00098, abs=1e-5)


def test_bootstrap_of_the_mean_has_the_normal_width() -> None:
    values = np.random.default_rng(0).normal(size=1000)
    resampled = bootstrap(
        {"n": np.ones(1000), "x": values}, [str(i) for i in range(1000)], resamples=10_000, seed=0
    )
    interval = resampled.interval(lambda t: t["x"] / t["n"], 0.95)
    assert interval is not None
    assert interval[1] - interval[0] == pytest.approx(2 * 1.96 * values.std() / math.sqrt(1000), rel=0.05)


def test_items_of_one_picture_are_not_independent() -> None:
    """Four equal answers per picture hold the information of one: the interval is twice as wide."""
    hits = np.repeat(np.random.default_rng(0).integers(0, 2, 250), 4).astype(np.float64)
    columns = {"n": np.ones(1000), "x": hits}

    def width(clusters: list[str]) -> float:
        interval = bootstrap(columns, clusters, resamples=4000, seed=0).interval(
            lambda t: t["x"] / t["n"], 0.95
        )
        assert interval is not None
        return interval[1] - interval[0]

    clustered, single = width([str(i // 4) for i in range(1000)]), width([str(i) for i in range(1000)])
    assert clustered / single == pytest.approx(2.0, rel=0.08)


def test_bootstrap_is_repeatable_and_undefined_statistics_have_no_interval() -> None:
    columns = {"n": np.ones(20), "x": np.arange(20.0)}
    names = [str(i) for i in range(20)]
    first, second = (bootstrap(columns, names, resamples=700, seed=3) for _ in range(2))
    assert (first.draws["x"] == second.draws["x"]).all()
    assert (first.draws["n"] == 20).all()
    assert first.interval(lambda t: t["x"] * np.nan, 0.95) is None
    assert first.observed == {"n": 20.0, "x": 190.0}


def test_clustered_interval_covers_the_truth() -> None:
    """Nominal 95 %: of 200 data sets with 60 pictures of 5 items, at least 90 % of intervals hold 0.3."""
    rng = np.random.default_rng(0)
    clusters = [str(i // 5) for i in range(300)]
    covered = 0
    for _ in range(200):
        # Beta(1.5, 3.5) picture difficulty: mean 0.3, strongly clustered.
        hits = (rng.random(300) < np.repeat(rng.beta(1.5, 3.5, 60), 5)).astype(np.float64)
        interval = bootstrap({"n": np.ones(300), "x": hits}, clusters, resamples=500, seed=0).interval(
            lambda t: t["x"] / t["n"], 0.95
        )
        assert interval is not None
        covered += interval[0] <= 0.3 <= interval[1]
    assert 180 <= covered <= 198


def test_bootstrap_is_fast() -> None:
    n = 5000
    columns = {"n": np.ones(n), "x": np.random.default_rng(0).random(n)}
    clusters = [str(i // 2) for i in range(n)]
    start = time.process_time()
    bootstrap(columns, clusters, resamples=10_000, seed=0)
    assert time.process_time() - start < 2.0


def test_mcnemar_is_the_binomial_test() -> None:
    assert mcnemar(0, 0) == 1.0
    assert mcnemar(10, 2) == pytest.approx(2 * (1 + 12 + 66) / 2**12)


def test_quantile_interval_covers_the_95th_percentile() -> None:
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(400):
        low, high = quantile_interval(list(rng.random(100)), 0.95, 0.95)
        assert high is not None
        covered += low <= 0.95 <= high
    assert covered >= 372


def test_quantile_interval_needs_samples() -> None:
    assert samples_needed(0.95, 0.95) == 72
    assert quantile_interval(range(71), 0.95, 0.95)[1] is None
    assert quantile_interval(range(72), 0.95, 0.95)[1] == 71


@given(st.floats(0.001, 0.999), st.floats(0.001, 0.999))
def test_items_needed_is_where_wilson_leaves_the_limit(rate: float, limit: float) -> None:
    needed = items_needed(rate, limit, 0.95)
    if rate == limit:
        assert needed is None
        return
    assert needed is not None
    low, high = wilson(rate * needed, needed, 0.95)
    assert not low + 1e-9 < limit < high - 1e-9
    if needed > 1 and needed < 10**9:
        low, high = wilson(rate * (needed - 1), needed - 1, 0.95)
        assert low - 1e-9 <= limit <= high + 1e-9


@pytest.mark.parametrize(
    ("rate", "limit", "items"),
    [(0.0, 0.01, 381), (0.005, 0.01, 1522), (0.02, 0.05, 203), (0.04, 0.05, 1825), (0.05, 0.05, None)],
)
def test_items_that_the_default_flip_gates_need(rate: float, limit: float, items: int | None) -> None:
    assert items_needed(rate, limit, 0.95) == items


def test_pairs_that_the_default_drop_gates_need() -> None:
    # No drop, 2 % of the answers changed between right and wrong, limit 2 points.
    assert pairs_needed(0.0, 0.02, 0.02, 0.95) == 193
    assert pairs_needed(0.01, 0.03, 0.02, 0.95) == 1149
    assert pairs_needed(0.02, 0.03, 0.02, 0.95) is None


def test_hull_ignores_what_is_missing() -> None:
    assert hull((0.1, 0.3), None, (0.2, 0.4)) == (0.1, 0.4)
    assert hull(None) is None
