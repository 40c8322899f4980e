"""Intervals. Items of one picture are not independent, so pictures are what is resampled.

Every metric here is a function of totals over items (counts, sums of accuracies, sums per bin).
Totals add up over pictures, so one matrix product of resampling counts and per-picture totals
gives all resampled totals of all metrics at once.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgevlm_deploy.config import Frozen

Floats = NDArray[np.float64]
Totals = Mapping[str, Any]
"""Column → its total: a float as observed, a float64 [resamples] array when resampled."""

FEW_CLUSTERS = 10
"""Below this many pictures a bootstrap over pictures says little; a picture then counts as one item."""

_CHUNK = 500


class Estimate(Frozen):
    """A number, its confidence interval and what both rest on. `value` is None when undefined."""

    value: float | None
    low: float | None
    """Lower confidence bound; None when there is no interval."""
    high: float | None
    n: int
    """Items."""
    clusters: int
    """Pictures; a question without a picture counts as one."""
    method: str
    note: str = ""
    """Why the value is undefined, or what to bear in mind."""


def z_score(level: float) -> float:
    """Half-width of a two-sided normal interval, in standard errors: 1.96 for level 0.95."""
    return NormalDist().inv_cdf(0.5 + level / 2)


def wilson(successes: float, n: int, level: float) -> tuple[float, float]:
    """Wilson's score interval of a proportion; [0, 1] without items.

    `successes` may be a sum of values in [0, 1]: their variance is at most p (1 − p), so the
    interval is then conservative.
    """
    if n == 0:
        return 0.0, 1.0
    p, z = successes / n, z_score(level)
    centre = p + z * z / (2 * n)
    half = z * math.sqrt(max(0.0, p * (1 - p)) / n + z * z / (4 * n * n))
    scale = 1 + z * z / n
    # The bounds at 0 and n successes are exact; rounding must not move them inside.
    low = 0.0 if successes <= 0 else max(0.0, (centre - half) / scale)
    high = 1.0 if successes >= n else min(1.0, (centre + half) / scale)
    return low, high


def paired_difference(total: float, squares: float, n: int, level: float) -> tuple[float, float]:
    """Interval of the mean of n paired differences with sum `total` and sum of squares `squares`.

    Agresti & Min, Statistics in Medicine 24 (2005): Wald after adding half a pair to each cell, that
    is one difference of ±1 in sum of squares and two pairs. It keeps its width when no pair differs.
    """
    mean = total / (n + 2)
    half = z_score(level) * math.sqrt(max(0.0, squares + 1 - (n + 2) * mean * mean)) / (n + 2)
    return mean - half, mean + half


@dataclass(frozen=True)
class Resampled:
    """Totals of named columns, as observed and in every bootstrap resample."""

    observed: Mapping[str, float]
    draws: Mapping[str, Floats]
    clusters: int

    def interval(self, statistic: Callable[[Totals], Any], level: float) -> tuple[float, float] | None:
        """Percentile interval of `statistic`; None when it is undefined (NaN) in some resample."""
        values = np.asarray(statistic(self.draws), dtype=np.float64)
        if not np.isfinite(values).all():
            return None
        low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
        return float(low), float(high)


def bootstrap(
    columns: Mapping[str, Floats], clusters: Sequence[str], *, resamples: int, seed: int
) -> Resampled:
    """Resample whole clusters with replacement and total every column in each resample.

    `columns` hold one float64 entry per item, `clusters` the picture of each item.
    The seed is fixed, so equal inputs give equal intervals.
    """
    names = list(columns)
    codes, count = cluster_codes(clusters)
    # [C, M]: total of each column in each cluster.
    sums = np.empty((count, len(names)))
    for place, name in enumerate(names):
        sums[:, place] = np.bincount(codes, weights=columns[name], minlength=count)
    draws = np.zeros((len(names), resamples))
    done = 0
    for times in resampled_clusters(count, resamples=resamples, seed=seed):
        draws[:, done : done + len(times)] = (times @ sums).T
        done += len(times)
    return Resampled(
        observed={name: math.fsum(columns[name]) for name in names},
        draws={name: draws[place] for place, name in enumerate(names)},
        clusters=count,
    )


def cluster_codes(clusters: Sequence[str]) -> tuple[NDArray[np.int64], int]:
    """(number of each item's cluster [N], clusters in all)."""
    _, codes = np.unique(np.asarray(clusters, dtype=str), return_inverse=True)
    return codes, int(codes.max()) + 1 if len(codes) else 0


def resampled_clusters(count: int, *, resamples: int, seed: int) -> Iterator[Floats]:
    """How often each of `count` clusters was drawn: float64 [rows, count], in chunks of all resamples.

    For statistics that are no function of totals. The draws are those of `bootstrap` with this seed.
    """
    rng = np.random.Generator(np.random.PCG64(seed))
    for start in range(0, resamples if count else 0, _CHUNK):
        rows = min(_CHUNK, resamples - start)
        picked = rng.integers(0, count, size=(rows, count), dtype=np.int32)
        flat = picked + (np.arange(rows, dtype=np.int32) * count)[:, np.newaxis]
        yield np.bincount(flat.ravel(), minlength=rows * count).reshape(rows, count).astype(np.float64)


def hull(*intervals: tuple[float, float] | None) -> tuple[float, float] | None:
    """The smallest interval around all given ones; None when none is given."""
    given = [interval for interval in intervals if interval is not None]
    return (min(low for low, _ in given), max(high for _, high in given)) if given else None


def mcnemar(negative: int, positive: int) -> float:
    """Two-sided p-value of McNemar's exact test on the items that changed between right and wrong."""
    from scipy.stats import binomtest

    changed = negative + positive
    return float(binomtest(negative, changed, 0.5).pvalue) if changed else 1.0


def quantile_interval(samples: Sequence[float], quantile: float, level: float) -> tuple[float, float | None]:
    """Distribution-free interval of a quantile from order statistics.

    The number of samples below the quantile is binomial(n, quantile). The upper bound is None when
    even the largest sample is not certain to lie above it (n < 72 for the 95th percentile at 0.95).
    """
    from scipy.stats import binom

    ordered, n, tail = sorted(samples), len(samples), (1 - level) / 2
    # Largest rank l with P(X_(l) > quantile) = P(B <= l − 1) <= tail; below rank 1 there is no bound.
    lower = int(binom.ppf(tail, n, quantile))
    # Smallest rank u with P(X_(u) < quantile) = P(B >= u) <= tail.
    upper = int(binom.isf(tail, n, quantile)) + 1
    return (ordered[lower - 1] if lower >= 1 else 0.0), (ordered[upper - 1] if upper <= n else None)


def samples_needed(quantile: float, level: float) -> int:
    """Fewest samples with which `quantile_interval` has an upper bound: quantileⁿ <= (1 − level) / 2."""
    return math.ceil(math.log((1 - level) / 2) / math.log(quantile))


def items_needed(rate: float, limit: float, level: float) -> int | None:
    """Independent items after which Wilson's interval around `rate` excludes `limit`.

    Inverting the score interval gives n = z² limit (1 − limit) / (limit − rate)². None when the rate
    sits on the limit: no number of items decides that. Multiply by the design effect when pictures
    carry several questions.
    """
    if rate == limit:
        return None
    if not 0 < limit < 1:
        return 1
    return max(1, math.ceil(z_score(level) ** 2 * limit * (1 - limit) / (limit - rate) ** 2))


def pairs_needed(difference: float, mean_square: float, limit: float, level: float) -> int | None:
    """Independent pairs after which the interval around a mean paired difference excludes `limit`.

    `mean_square` is the mean of the squared differences: for right/wrong the share of items that
    changed either way, NFR + PFR. n = z² (mean_square − difference²) / (limit − difference)².
    """
    if difference == limit:
        return None
    variance = max(0.0, mean_square - difference * difference)
    return max(1, math.ceil(z_score(level) ** 2 * variance / (limit - difference) ** 2))
