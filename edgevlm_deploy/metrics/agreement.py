"""Do two judges sort the same failures alike? Cohen's κ (Educational and Psychological Measurement, 1960)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from edgevlm_deploy.errors import DataError
from edgevlm_deploy.metrics.statistics import Estimate, bootstrap
from edgevlm_deploy.recipe import Evaluation


def cohens_kappa(
    a: Sequence[str], b: Sequence[str], clusters: Sequence[str], evaluation: Evaluation
) -> Estimate:
    """κ = (observed − expected agreement) / (1 − expected), with its bootstrap interval over pictures.

    `a` and `b` are two judges' categories of the same failures, `clusters` the failures' pictures. Undefined
    (with the reason) without failures, or when both judges put everything into one category: agreement is
    then expected of judges who do not look.
    Raises DataError when the lengths differ.
    """
    if not len(a) == len(b) == len(clusters):
        raise DataError(
            f"two judges are compared on the same failures: {len(a)} and {len(b)} judgements of "
            f"{len(clusters)} failures were given."
        )
    if not a:
        return _undefined(0, 0, "there is no failure that both judged")
    categories = sorted({*a, *b})
    columns = {
        "n": np.ones(len(a)),
        "agreed": np.array([one == other for one, other in zip(a, b, strict=True)], dtype=np.float64),
    }
    for judge, said in (("a", a), ("b", b)):
        for category in categories:
            columns[f"{judge} {category}"] = np.array([one == category for one in said], dtype=np.float64)
    totals = bootstrap(columns, clusters, resamples=evaluation.bootstrap_resamples, seed=evaluation.seed)

    def kappa(total: Mapping[str, Any]) -> Any:
        expected = sum(total[f"a {one}"] * total[f"b {one}"] for one in categories) / total["n"] ** 2
        with np.errstate(invalid="ignore", divide="ignore"):
            return (total["agreed"] / total["n"] - expected) / np.where(expected < 1, 1 - expected, np.nan)

    value = float(kappa(totals.observed))
    if np.isnan(value):
        return _undefined(len(a), totals.clusters, "both judges know one category only")
    bounds = totals.interval(kappa, evaluation.confidence_level)
    return Estimate(
        value=value,
        low=bounds[0] if bounds else None,
        high=bounds[1] if bounds else None,
        n=len(a),
        clusters=totals.clusters,
        method="clustered bootstrap",
        note="" if bounds else "too few failures for an interval: some resample holds one category only",
    )


def _undefined(n: int, clusters: int, why: str) -> Estimate:
    return Estimate(value=None, low=None, high=None, n=n, clusters=clusters, method="undefined", note=why)
