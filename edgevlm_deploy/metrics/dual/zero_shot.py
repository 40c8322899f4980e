"""Zero-shot classification by a dual encoder: hits from class scores, and how sure they make it.

`cosines` are float [N, C]: cosine similarity of picture n with the text of class c, before any scale.
`labels` are int64 [N], the index of the right class.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Codes = NDArray[np.int64]
Flags = NDArray[np.bool_]

SMALLEST_SCALE, LARGEST_SCALE = 0.1, 1000.0


def ranks(cosines: Floats, labels: Codes) -> Codes:
    """Rank of the right class, from 1. Of equal scores the first class leads, as in argmax: int64 [N]."""
    right = np.take_along_axis(cosines, labels[:, None], axis=1)
    earlier = np.arange(cosines.shape[1]) < labels[:, None]
    ahead = (cosines > right) | ((cosines == right) & earlier)
    return np.asarray(1 + ahead.sum(axis=1), dtype=np.int64)


def hits(cosines: Floats, labels: Codes, k: int = 1) -> Flags:
    """Whether the right class is among the k best: bool [N]. Its mean is the top-k accuracy."""
    return np.asarray(ranks(cosines, labels) <= k)


def softmax(logits: Floats) -> Floats:
    """Along the last axis."""
    from scipy.special import softmax as scipy_softmax

    return np.asarray(scipy_softmax(logits, axis=-1), dtype=np.float64)


def softmax_confidence(cosines: Floats, logit_scale: float) -> Floats:
    """CLIP: the largest softmax(logit_scale · cosine), float64 [N]; the scale is after the exponential."""
    return np.asarray(softmax(logit_scale * cosines).max(axis=1))


def sigmoid_confidence(cosines: Floats, logit_scale: float, logit_bias: float) -> Floats:
    """SigLIP: sigmoid(logit_scale · cosine + logit_bias) of the best class, float64 [N].

    Zhai et al., "Sigmoid Loss for Language Image Pre-Training", ICCV 2023. Each class is judged by
    itself, so the confidences of a picture need not sum to 1. They calibrate with `temperature.fit`, whose
    log-odds are these logits.
    """
    from scipy.special import expit

    return np.asarray(expit(logit_scale * cosines.max(axis=1) + logit_bias), dtype=np.float64)


def fit_logit_scale(cosines: Floats, labels: Codes) -> float | None:
    """The logit scale with the least cross-entropy, in [SMALLEST_SCALE, LARGEST_SCALE].

    Temperature scaling of a dual encoder: the order of the classes stays. None when all items are right
    or all wrong, which says nothing about the scale. Fit on items that no metric is computed on.
    """
    from scipy.optimize import minimize_scalar
    from scipy.special import logsumexp

    right = hits(cosines, labels)
    if right.size == 0 or right.all() or not right.any():
        return None
    own = np.take_along_axis(cosines, labels[:, None], axis=1)[:, 0]

    def cross_entropy(log_scale: float) -> float:
        scale = math.exp(log_scale)
        return float(np.mean(logsumexp(scale * cosines, axis=1) - scale * own))

    bounds = (math.log(SMALLEST_SCALE), math.log(LARGEST_SCALE))
    return float(math.exp(minimize_scalar(cross_entropy, bounds=bounds, method="bounded").x))
