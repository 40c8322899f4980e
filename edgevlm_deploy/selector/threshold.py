"""The score from which on a question is answered, for a risk or a cost that the recipe names."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgevlm_deploy.metrics import selective
from edgevlm_deploy.recipe import Abstention

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Threshold:
    """Chosen on n answers that nothing was trained on."""

    value: float | None
    """None: no threshold keeps the risk, or answering never pays; every question is withheld."""
    n: int
    coverage: float
    """Share of the n that it answers."""
    risk: float | None
    """Share of wrong answers among those; None without any."""


def choose(scores: Floats, accuracy: Floats, wanted: Abstention) -> Threshold:
    """C@risk's threshold, or the one with the highest effective reliability at `wanted.cost`."""
    if wanted.risk is not None:
        value = selective.coverage_at_risk(scores, accuracy, wanted.risk)[1]
    else:
        assert wanted.cost is not None
        value = selective.best_threshold(scores, accuracy, wanted.cost)
    answered = scores >= value
    return Threshold(
        value=None if value == selective.ABSTAIN_ON_ALL else value,
        n=scores.size,
        coverage=float(answered.mean()),
        risk=float(1 - accuracy[answered].mean()) if answered.any() else None,
    )
