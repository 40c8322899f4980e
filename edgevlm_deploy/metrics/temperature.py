"""Temperature scaling of an answer's confidence.

The confidence of a whole answer is one probability p, so the temperature acts on its log-odds:
p′ = sigmoid(logit(p) / T). T > 1 makes a model less sure. Order, and with it selective prediction,
stays as it is. After Guo et al., "On Calibration of Modern Neural Networks", ICML 2017.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

COLDEST, HOTTEST = 0.05, 20.0
_CERTAIN = 1e-10
"""Log-odds of 0 and 1 are infinite; probabilities keep this distance."""


def scaled(confidence: Floats, temperature: float) -> Floats:
    """p′ of each confidence, float64 [N]."""
    from scipy.special import expit

    return np.asarray(expit(_log_odds(confidence) / temperature), dtype=np.float64)


def fit(confidence: Floats, accuracy: Floats) -> float | None:
    """T with the least cross-entropy between p′ and accuracy, in [COLDEST, HOTTEST].

    None when all answers are right or all wrong: such a split says nothing about T. Fit on items that
    no metric is computed on.
    """
    from scipy.optimize import minimize_scalar

    if confidence.size == 0 or accuracy.min() == accuracy.max():
        return None
    odds = _log_odds(confidence)

    def cross_entropy(log_temperature: float) -> float:
        z = odds * math.exp(-log_temperature)
        return float(np.mean(np.logaddexp(0.0, z) - accuracy * z))

    found = minimize_scalar(cross_entropy, bounds=(math.log(COLDEST), math.log(HOTTEST)), method="bounded")
    return float(math.exp(found.x))


def _log_odds(confidence: Floats) -> Floats:
    from scipy.special import logit

    return np.asarray(logit(np.clip(confidence, _CERTAIN, 1 - _CERTAIN)), dtype=np.float64)
