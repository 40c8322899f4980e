"""What abstaining buys: selective prediction of both models on the clean items.

The ranking is by MaxProb, the product of the token probabilities. Coverage at a risk is no function of
totals, so it is bootstrapped by itself, with the pictures that the other metrics draw.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgevlm_deploy.metrics import selective
from edgevlm_deploy.metrics.estimates import Subset, Table, independent, undefined
from edgevlm_deploy.metrics.pairs import Pairs
from edgevlm_deploy.metrics.robustness import ratio
from edgevlm_deploy.metrics.statistics import (
    FEW_CLUSTERS,
    Estimate,
    Totals,
    cluster_codes,
    hull,
    paired_difference,
    resampled_clusters,
    wilson,
)
from edgevlm_deploy.metrics.tables import CoverageAtRisk, Reliability, Selective
from edgevlm_deploy.recipe import Evaluation

Floats = NDArray[np.float64]

RISKS = (0.005, 0.01, 0.05, 0.10, 0.20)
GATED_RISK = 0.05
COSTS = (1.0, 10.0, 100.0)
CURVE_POINTS = 120


def estimates(table: Table, clean: Subset, evaluation: Evaluation) -> dict[str, Estimate]:
    """Coverage at 5 % risk of both models and its drop, with intervals."""
    n, clusters = table.size(clean)
    trials, level = independent(n, clusters), table.level
    drawn = _resampled(table.pairs, evaluation)
    covered = {}
    for whose, (confidence, accuracy) in _ranked(table.pairs).items():
        _, threshold = selective.coverage_at_risk(confidence, accuracy, GATED_RISK)
        covered[whose] = (confidence >= threshold).astype(np.float64)

    def estimate(value: float, closed: tuple[float, float], values: Floats, form: str) -> Estimate:
        low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
        bounds = hull(closed, (float(low), float(high)))
        assert bounds is not None
        return Estimate(
            value=value,
            low=bounds[0],
            high=bounds[1],
            n=n,
            clusters=clusters,
            method=f"{form} + clustered bootstrap",
            note=f"fewer than {FEW_CLUSTERS} pictures" if clusters < FEW_CLUSTERS else "",
        )

    def coverage(whose: str) -> Estimate:
        value = float(covered[whose].mean())
        return estimate(value, wilson(value * trials, trials, level), drawn[whose], "wilson")

    lost = covered["reference"] - covered["artifact"]
    value, square = float(lost.mean()), float(np.square(lost).mean())
    closed = paired_difference(value * trials, square * trials, trials, level)
    return {
        "coverage_at_risk_5": coverage("artifact"),
        "reference_coverage_at_risk_5": coverage("reference"),
        "coverage_at_risk_5_drop": estimate(
            value, closed, drawn["reference"] - drawn["artifact"], "agresti-min"
        ),
    }


def given(table: Table, everything: Subset, abstains: bool) -> dict[str, Estimate]:
    """What the bundle's own rule answers of clean and corrupted items, and how much of that is wrong."""
    if not abstains:
        return dict.fromkeys(("answered_share", "answered_risk"), undefined("the bundle never abstains"))

    def risk(totals: Totals) -> Any:
        return ratio(totals[f"{everything.name} answered_wrong"], totals[f"{everything.name} answered"])

    observed = table.totals.observed
    answers = int(observed[f"{everything.name} answered"])
    closed = wilson(observed[f"{everything.name} answered_wrong"], answers, table.level)
    return {
        "answered_share": table.rate(everything, "answered"),
        "answered_risk": table.statistic(everything, risk, "the bundle abstains on all items", closed),
    }


def tables(pairs: Pairs) -> dict[str, Selective]:
    """ "reference" and "artifact" → coverage, areas, reliability and the curve."""
    held_out = halves(tuple(name for name, clean in zip(pairs.clusters, pairs.clean, strict=True) if clean))
    return {whose: selective_table(*columns, held_out) for whose, columns in _ranked(pairs).items()}


def halves(clusters: tuple[str, ...]) -> NDArray[np.bool_]:
    """Pictures dealt in turn, in the order of their first item: True for the first half, bool [N]."""
    turn = {name: number % 2 == 0 for number, name in enumerate(dict.fromkeys(clusters))}
    return np.array([turn[name] for name in clusters], dtype=np.bool_)


def _ranked(pairs: Pairs) -> dict[str, tuple[Floats, Floats]]:
    """(MaxProb, accuracy) of the clean items."""
    return {
        "reference": (pairs.reference_max_prob[pairs.clean], pairs.reference_accuracy[pairs.clean]),
        "artifact": (pairs.artifact_max_prob[pairs.clean], pairs.artifact_accuracy[pairs.clean]),
    }


def _resampled(pairs: Pairs, evaluation: Evaluation) -> dict[str, Floats]:
    """Coverage of both models in the same resamples of pictures, float64 [resamples] each."""
    codes, count = cluster_codes(pairs.clusters)
    chunks: dict[str, list[Floats]] = {"reference": [], "artifact": []}
    for times in resampled_clusters(count, resamples=evaluation.bootstrap_resamples, seed=evaluation.seed):
        per_item = times[:, codes[pairs.clean]]
        for whose, columns in _ranked(pairs).items():
            chunks[whose].append(selective.resampled_coverage(*columns, per_item, GATED_RISK))
    return {whose: np.concatenate(values) for whose, values in chunks.items()}


def selective_table(confidence: Floats, accuracy: Floats, first: NDArray[np.bool_]) -> Selective:
    points = []
    for risk in RISKS:
        coverage, threshold = selective.coverage_at_risk(confidence, accuracy, risk)
        points.append(CoverageAtRisk(risk=risk, coverage=coverage, threshold=_finite(threshold)))
    auc, aurc = selective.risk_coverage_auc(confidence, accuracy), selective.aurc(confidence, accuracy)
    assert auc is not None and aurc is not None
    curve = selective.risks(confidence, accuracy)
    ranks = np.unique(np.linspace(1, curve.size, min(CURVE_POINTS, curve.size)).round().astype(int))
    return Selective(
        points=tuple(points),
        auc=auc,
        aurc=aurc,
        reliability=tuple(_reliability(confidence, accuracy, first, cost) for cost in COSTS),
        curve=tuple((float(k / curve.size), float(curve[k - 1])) for k in ranks),
    )


def _reliability(confidence: Floats, accuracy: Floats, first: NDArray[np.bool_], cost: float) -> Reliability:
    thresholds, worth = [], 0.0
    for half in (first, ~first):
        threshold = selective.best_threshold(confidence[~half], accuracy[~half], cost)
        worth += selective.effective_reliability(confidence[half], accuracy[half], cost, threshold).sum()
        thresholds.append(_finite(threshold))
    everything = selective.effective_reliability(confidence, accuracy, cost, 0.0)
    return Reliability(
        cost=cost,
        value=worth / confidence.size,
        thresholds=(thresholds[0], thresholds[1]),
        without_abstaining=float(everything.mean()),
    )


def _finite(threshold: float) -> float | None:
    return None if threshold == selective.ABSTAIN_ON_ALL else threshold
