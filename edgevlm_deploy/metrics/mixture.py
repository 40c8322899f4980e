"""A threshold that was chosen on familiar items, on mixtures of these with items of another kind.

Deployment drifts: of the questions that come, some share is like those that chose the threshold. Coverage and
risk on a mixture are weighted sums over the two kinds, so nothing has to be drawn.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

SHIFTED_SHARES = (0.0, 0.1, 0.25, 0.5, 0.75, 0.9, 1.0)


def answered(score: Floats, accuracy: Floats, threshold: float | None) -> tuple[float, float]:
    """(share of the items answered, share answered wrong), scores and accuracies float64 [N]; None abstains
    on all."""
    if threshold is None or score.size == 0:
        return 0.0, 0.0
    given = score >= threshold
    return float(given.mean()), float(np.where(given, 1 - accuracy, 0.0).mean())


def at_share(
    familiar: tuple[float, float], shifted: tuple[float, float], share: float
) -> tuple[float, float | None]:
    """(coverage, risk) when `share` of the items are shifted; the risk is None where nothing is answered.

    familiar, shifted: what `answered` gives for either kind.
    """
    coverage, wrong = (
        (1 - share) * one + share * other for one, other in zip(familiar, shifted, strict=True)
    )
    return coverage, wrong / coverage if coverage > 0 else None
