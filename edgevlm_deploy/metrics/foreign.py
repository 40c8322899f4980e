"""Are answers to unfamiliar questions less sure? AUROC of MaxProb, clean items against foreign ones.

1: every clean item is surer than every foreign one; 0.5: confidence tells nothing.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from edgevlm_deploy.metrics.estimates import undefined
from edgevlm_deploy.metrics.pairs import Pairs
from edgevlm_deploy.metrics.statistics import (
    FEW_CLUSTERS,
    Estimate,
    cluster_codes,
    hull,
    resampled_clusters,
    wilson,
    z_score,
)
from edgevlm_deploy.recipe import Evaluation

Floats = NDArray[np.float64]
NAMES = ("ood_auroc", "reference_ood_auroc", "ood_auroc_drop")


def summary(pairs: Pairs, foreign: Pairs, evaluation: Evaluation) -> dict[str, Estimate]:
    """AUROC of both models and its drop; the clean and the foreign pictures are resampled each by itself."""
    if not foreign.items:
        return dict.fromkeys(NAMES, undefined("no foreign items"))
    clean, level = np.flatnonzero(pairs.clean), evaluation.confidence_level
    here = tuple(pairs.clusters[place] for place in clean)
    fewer = min(len(set(here)), len(set(foreign.clusters)))
    observed, drawn = {}, {}
    for whose in ("artifact", "reference"):
        wins = _wins(getattr(pairs, f"{whose}_max_prob")[clean], getattr(foreign, f"{whose}_max_prob"))
        observed[whose] = float(wins.mean())
        drawn[whose] = _resampled(wins, here, foreign.clusters, evaluation)

    def estimate(value: float, values: Floats, closed: tuple[float, float] | None) -> Estimate:
        low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
        bounds = hull((float(low), float(high)), (value, value), closed)
        assert bounds is not None
        return Estimate(
            value=value,
            low=bounds[0],
            high=bounds[1],
            n=len(foreign.items),
            clusters=fewer,
            method="clustered bootstrap",
            note=f"fewer than {FEW_CLUSTERS} pictures" if fewer < FEW_CLUSTERS else "",
        )

    def area(whose: str) -> Estimate:
        value = observed[whose]
        # At 0 and 1 no resample differs; the variance of an AUROC is at most A (1 − A) / min(m, n).
        extreme = wilson(value * fewer, fewer, level) if value in (0.0, 1.0) else None
        return estimate(value, drawn[whose], extreme)

    drop = observed["reference"] - observed["artifact"]
    # As in `paired_difference`: an interval keeps its width when nothing moved.
    least = z_score(level) / (fewer + 2)
    return {
        "ood_auroc": area("artifact"),
        "reference_ood_auroc": area("reference"),
        "ood_auroc_drop": estimate(
            drop, drawn["reference"] - drawn["artifact"], (drop - least, drop + least)
        ),
    }


def _wins(familiar: Floats, foreign: Floats) -> Floats:
    """1, ½ (a tie) or 0 for each pair, float64 [familiar, foreign]. Its mean is AUROC: the Mann-Whitney
    statistic over its largest value."""
    wins: Floats = (familiar[:, None] > foreign) + 0.5 * (familiar[:, None] == foreign)
    return wins


def _resampled(wins: Floats, here: tuple[str, ...], there: tuple[str, ...], evaluation: Evaluation) -> Floats:
    """AUROC in every resample, float64 [resamples]: wins add up over pairs of pictures."""
    (rows, familiar), (columns, foreign) = cluster_codes(here), cluster_codes(there)
    total = np.zeros((familiar, foreign))
    np.add.at(total, (rows[:, None], columns), wins)
    sizes = np.bincount(rows, minlength=familiar), np.bincount(columns, minlength=foreign)
    resamples, seed = evaluation.bootstrap_resamples, evaluation.seed
    # Another seed for the second side: the two sets of pictures are independent.
    drawn = zip(
        resampled_clusters(familiar, resamples=resamples, seed=seed),
        resampled_clusters(foreign, resamples=resamples, seed=seed + 1),
        strict=True,
    )
    return np.concatenate(
        [((home @ total) * away).sum(1) / ((home @ sizes[0]) * (away @ sizes[1])) for home, away in drawn]
    )
