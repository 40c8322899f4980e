"""Selective prediction: answer when sure, abstain otherwise.

`confidence` and `accuracy` are float64 [N]. Items are ranked by falling confidence, equal ones in
their order; Risk(k) is the mean of 1 − accuracy over the first k, coverage is k / N. Whitehead et al.,
"Reliable Visual Question Answering", ECCV 2022.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

ABSTAIN_ON_ALL = float("inf")
"""A threshold that no confidence reaches."""
_ROUNDING = 1e-12
"""Sums of accuracies like 0.3 and 0.6 are not exact; a limit must not be missed by that."""


def risks(confidence: Floats, accuracy: Floats) -> Floats:
    """Risk(k) for k = 1 … N."""
    loss = 1 - accuracy[_ranking(confidence)]
    return np.asarray(np.cumsum(loss) / np.arange(1, loss.size + 1), dtype=np.float64)


def risk_coverage_auc(confidence: Floats, accuracy: Floats) -> float | None:
    """Area under risk over coverage × 100: trapezoids from coverage 1/N; None without items."""
    from scipy.integrate import trapezoid

    if confidence.size == 0:
        return None
    return float(100 * trapezoid(risks(confidence, accuracy), dx=1 / confidence.size))


def aurc(confidence: Floats, accuracy: Floats) -> float | None:
    """Plain mean of Risk(k); None without items. Not the number of `risk_coverage_auc`."""
    return float(risks(confidence, accuracy).mean()) if confidence.size else None


def coverage_at_risk(confidence: Floats, accuracy: Floats, risk: float) -> tuple[float, float]:
    """C@r: (coverage, threshold), answering from the threshold on.

    The largest k with Risk(k) ≤ `risk`, searched down from full coverage, then stepped back while the
    confidence ties with the next item's, since a threshold cannot part equal ones. Stepping back may
    leave a group of a higher risk. Coverage 0 has the threshold `ABSTAIN_ON_ALL`.
    """
    coverage = float(resampled_coverage(confidence, accuracy, np.ones((1, confidence.size)), risk)[0])
    answered = round(coverage * confidence.size)
    ranked = confidence[_ranking(confidence)]
    return coverage, float(ranked[answered - 1]) if answered else ABSTAIN_ON_ALL


def resampled_coverage(confidence: Floats, accuracy: Floats, times: Floats, risk: float) -> Floats:
    """C@r of R resamples, float64 [R]; `times` [R, N] says how often each item was drawn.

    Copies of an item tie with each other, so an item is answered with all its copies or not at all.
    """
    resamples, n = times.shape
    if n == 0:
        return np.zeros(resamples)
    ranking = _ranking(confidence)
    ranked, loss, times = confidence[ranking], 1 - accuracy[ranking], times[:, ranking]
    answered, lost = np.cumsum(times, axis=1), np.cumsum(times * loss, axis=1)
    # Risk moves one way through the copies of an item: its least is at the first copy or at the last.
    limit = risk + _ROUNDING
    at_last = lost <= limit * answered
    at_first = lost - (times - 1) * loss <= limit * (answered - times + 1)
    found = (times > 0) & (at_last | at_first)
    place = n - 1 - np.argmax(found[:, ::-1], axis=1)
    # Ranks of the first and the last item with the same confidence.
    first = np.searchsorted(-ranked, -ranked, side="left")
    last = np.searchsorted(-ranked, -ranked, side="right") - 1
    rows = np.arange(resamples)
    up_to = answered[rows, place]
    tied = ~at_last[rows, place] | (up_to < answered[rows, last[place]])
    start = first[place]
    k = np.where(tied, answered[rows, start] - times[rows, start], up_to)
    total = np.maximum(answered[:, -1], 1.0)
    return np.asarray(np.where(found.any(axis=1), k, 0.0) / total, dtype=np.float64)


def effective_reliability(confidence: Floats, accuracy: Floats, cost: float, threshold: float) -> Floats:
    """Φ_c of each item, float64 [N]; Φ_c is their mean.

    Answered from the threshold on: the accuracy where it is above 0, else −cost. Abstained: 0.
    """
    worth = np.where(accuracy > 0, accuracy, -cost)
    return np.asarray(np.where(confidence >= threshold, worth, 0.0), dtype=np.float64)


def best_threshold(confidence: Floats, accuracy: Floats, cost: float) -> float:
    """The threshold with the highest Φ_c, the lowest of equals; `ABSTAIN_ON_ALL` where answering costs."""
    ranking = _ranking(confidence)
    ranked = confidence[ranking]
    totals = np.cumsum(np.where(accuracy > 0, accuracy, -cost)[ranking])
    # A threshold takes in whole groups of equal confidence.
    ends = np.flatnonzero(np.append(ranked[1:] < ranked[:-1], True)) if ranked.size else np.array([], int)
    best = max(0.0, float(totals[ends].max(initial=0.0)))
    as_good = ends[totals[ends] >= best - _ROUNDING]
    return float(ranked[as_good[-1]]) if as_good.size else ABSTAIN_ON_ALL


def _ranking(confidence: Floats) -> NDArray[np.int64]:
    """Places of the items by falling confidence."""
    return np.argsort(-confidence, kind="stable")
