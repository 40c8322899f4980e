"""Are answers to unfamiliar questions less sure? AUROC of MaxProb, clean items against foreign ones.

The one score of `metrics.ood` that every model has; dual encoders have MCM and others beside it, on the
same items (`metrics.dual.estimates`).

1: every clean item is surer than every foreign one; 0.5: confidence tells nothing.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from edgevlm_deploy.metrics.estimates import drawn, undefined
from edgevlm_deploy.metrics.ood import Curve, auroc, delong_difference, delong_interval
from edgevlm_deploy.metrics.pairs import Pairs
from edgevlm_deploy.metrics.statistics import Estimate, cluster_codes, resampled_clusters
from edgevlm_deploy.recipe import Evaluation

Floats = NDArray[np.float64]
_METHOD = "delong + clustered bootstrap"
NAMES = ("ood_auroc", "reference_ood_auroc", "ood_auroc_drop")


def summary(pairs: Pairs, foreign: Pairs, evaluation: Evaluation) -> dict[str, Estimate]:
    """AUROC of both models and its drop: DeLong's interval, widened to the bootstrap over all pictures."""
    if not foreign.items:
        return dict.fromkeys(NAMES, undefined("no foreign items"))
    level, clean = evaluation.confidence_level, np.flatnonzero(pairs.clean)
    clusters = (*(pairs.clusters[place] for place in clean), *foreign.clusters)
    familiar = np.arange(len(clusters)) < len(clean)
    now, before = (
        np.concatenate([getattr(pairs, column)[clean], getattr(foreign, column)])
        for column in ("artifact_max_prob", "reference_max_prob")
    )
    drawn_now, drawn_before = (_resampled(sure, familiar, clusters, evaluation) for sure in (now, before))
    fewer = min(len(set(clusters[: len(clean)])), len(set(foreign.clusters)))

    def estimate(value: float, draws: Floats, closed: tuple[float, float]) -> Estimate:
        return drawn(value, draws, closed, (len(foreign.items), fewer), level, _METHOD)

    areas = [auroc(sure, familiar) for sure in (now, before)]
    return {
        "ood_auroc": estimate(areas[0], drawn_now, delong_interval(now, familiar, level)),
        "reference_ood_auroc": estimate(areas[1], drawn_before, delong_interval(before, familiar, level)),
        "ood_auroc_drop": estimate(
            areas[1] - areas[0], drawn_before - drawn_now, delong_difference(before, now, familiar, level)
        ),
    }


def _resampled(
    sure: Floats, familiar: NDArray[np.bool_], clusters: tuple[str, ...], evaluation: Evaluation
) -> Floats:
    """AUROC in every resample of the pictures, float64 [resamples]; NaN where a side was not drawn."""
    codes, count = cluster_codes(clusters)
    resamples = resampled_clusters(count, resamples=evaluation.bootstrap_resamples, seed=evaluation.seed)
    return np.concatenate([Curve(sure, familiar, times[:, codes]).area() for times in resamples])
