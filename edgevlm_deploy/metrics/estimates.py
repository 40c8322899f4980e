"""Estimates with intervals, over subsets of one table of items.

Which interval a metric gets:

rate         share of items, mean accuracy   Wilson, widened to the clustered bootstrap
difference   paired by item                  Agresti-Min, widened to the clustered bootstrap
ratio        RS                              clustered bootstrap, widened to Wilson on corrupted
                                             accuracy over the observed clean accuracy
calibration  ECE and its increase            clustered bootstrap, percentile and basic together,
                                             because resampling biases ECE upwards

A bootstrap of zero events has zero width, which would pass any gate; the closed forms do not.
When every picture carries one item, rates use Wilson's interval alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgevlm_deploy.metrics.pairs import Pairs
from edgevlm_deploy.metrics.robustness import ratio
from edgevlm_deploy.metrics.statistics import (
    FEW_CLUSTERS,
    Estimate,
    Resampled,
    Totals,
    bootstrap,
    hull,
    paired_difference,
    wilson,
)
from edgevlm_deploy.recipe import Evaluation

Floats = NDArray[np.float64]
Flags = NDArray[np.bool_]
Statistic = Callable[[Totals], Any]
"""A metric as a function of totals: a float (None if undefined), or an array of resamples."""


@dataclass(frozen=True, eq=False)
class Subset:
    """Some of the items; `mask` is bool [N]."""

    name: str
    mask: Flags


@dataclass(frozen=True)
class Table:
    """Per-item columns, their resampled totals per subset, and the confidence level."""

    pairs: Pairs
    columns: dict[str, Floats]
    totals: Resampled
    level: float

    def size(self, subset: Subset) -> tuple[int, int]:
        """(items, pictures)."""
        inside = np.flatnonzero(subset.mask)
        return len(inside), len({self.pairs.clusters[i] for i in inside})

    def rate(self, subset: Subset, column: str) -> Estimate:
        """Mean of a column with values in [0, 1]."""
        n, clusters = self.size(subset)
        if n == 0:
            return undefined(f"no {subset.name} items")
        value = self.totals.observed[f"{subset.name} {column}"] / n
        trials = independent(n, clusters)
        closed = wilson(value * trials, trials, self.level)
        if clusters == n:
            low, high = closed
            return Estimate(value=value, low=low, high=high, n=n, clusters=clusters, method="wilson")
        return self._estimate(subset, value, closed, mean(subset, column), "wilson + clustered bootstrap")

    def difference(self, subset: Subset, column: str) -> Estimate:
        """Mean of a column of paired differences."""
        n, clusters = self.size(subset)
        if n == 0:
            return undefined(f"no {subset.name} items")
        values = self.columns[column][subset.mask]
        trials = independent(n, clusters)
        closed = paired_difference(
            float(values.mean()) * trials, float(np.square(values).mean()) * trials, trials, self.level
        )
        method = "agresti-min + clustered bootstrap"
        return self._estimate(subset, float(values.mean()), closed, mean(subset, column), method)

    def statistic(
        self,
        subset: Subset,
        statistic: Statistic,
        why_undefined: str,
        closed: tuple[float, float] | None = None,
    ) -> Estimate:
        """Any function of totals, with its bootstrap interval, widened to `closed`."""
        value = statistic(self.totals.observed)
        if value is None:
            return undefined(why_undefined)
        return self._estimate(subset, float(value), closed, statistic, "clustered bootstrap")

    def calibration(self, subset: Subset, statistic: Statistic, lowest: float) -> Estimate:
        """ECE or its increase; `lowest` is the smallest value that it can have."""
        value = statistic(self.totals.observed)
        if value is None:
            return undefined(f"no {subset.name} items")
        drawn = self.totals.interval(statistic, self.level)
        basic = None if drawn is None else (max(lowest, 2 * value - drawn[1]), 2 * value - drawn[0])
        return self._estimate(subset, float(value), basic, statistic, "clustered bootstrap")

    def _estimate(
        self,
        subset: Subset,
        value: float,
        closed: tuple[float, float] | None,
        statistic: Statistic,
        method: str,
    ) -> Estimate:
        n, clusters = self.size(subset)
        bounds = hull(closed, self.totals.interval(statistic, self.level))
        low, high = bounds if bounds is not None else (None, None)
        note = f"fewer than {FEW_CLUSTERS} pictures" if clusters < FEW_CLUSTERS else ""
        return Estimate(value=value, low=low, high=high, n=n, clusters=clusters, method=method, note=note)


def tabulate(
    pairs: Pairs, columns: dict[str, Floats], subsets: Iterable[Subset], evaluation: Evaluation
) -> Table:
    """Totals of all columns over each subset; equal clusters and seeds draw the same pictures everywhere."""
    totals = bootstrap(
        {
            f"{subset.name} {name}": np.where(subset.mask, column, 0.0)
            for subset in subsets
            for name, column in columns.items()
        },
        pairs.clusters,
        resamples=evaluation.bootstrap_resamples,
        seed=evaluation.seed,
    )
    return Table(pairs, columns, totals, evaluation.confidence_level)


def mean(subset: Subset, column: str) -> Statistic:
    """Total of a column over the number of items, as a function of totals."""
    return lambda totals: ratio(totals[f"{subset.name} {column}"], totals[f"{subset.name} n"])


def drawn(
    value: float,
    draws: Floats,
    closed: tuple[float, float] | None,
    size: tuple[int, int],
    level: float,
    method: str,
) -> Estimate:
    """From a metric's resamples, float64 [R], where they are all defined, widened to `closed`.

    size: (items, pictures).
    """
    tail = (1 - level) / 2
    resampled = None
    if np.isfinite(draws).all():
        low, high = np.quantile(draws, [tail, 1 - tail])
        resampled = float(low), float(high)
    bounds = hull(closed, resampled) or (None, None)
    n, clusters = size
    note = f"fewer than {FEW_CLUSTERS} pictures" if clusters < FEW_CLUSTERS else ""
    return Estimate(
        value=value, low=bounds[0], high=bounds[1], n=n, clusters=clusters, method=method, note=note
    )


def undefined(why: str) -> Estimate:
    return Estimate(value=None, low=None, high=None, n=0, clusters=0, method="undefined", note=why)


def independent(n: int, clusters: int) -> int:
    """Trials for a closed form: with very few pictures the bootstrap cannot see how they differ."""
    return n if clusters >= FEW_CLUSTERS else clusters
