"""Telling pictures that belong to no class from those that do. In-distribution is the positive.

A score is float64 [N], higher for a picture that looks more like one of the classes. All of them work
on raw cosines [N, C] without the logit scale, at temperature T.

Ming et al., "Delving into Out-of-Distribution Detection with Vision-Language Representations", NeurIPS 2022
(MCM, T = 1); Liu et al., "Energy-based Out-of-distribution Detection", NeurIPS 2020.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from edgevlm_deploy.metrics.dual.zero_shot import softmax
from edgevlm_deploy.metrics.statistics import hull, wilson, z_score

Floats = NDArray[np.float64]
Flags = NDArray[np.bool_]

RECALL = 0.95
_ROUNDING = 1e-9


def maximum_concept_matching(cosines: Floats, temperature: float = 1.0) -> Floats:
    """MCM: S = max softmax(cosine / T)."""
    return np.asarray(softmax(cosines / temperature).max(axis=1))


def energy(cosines: Floats, temperature: float = 1.0) -> Floats:
    """Negative free energy: T log Σ exp(cosine / T)."""
    from scipy.special import logsumexp

    return np.asarray(temperature * logsumexp(cosines / temperature, axis=1), dtype=np.float64)


def max_logit(cosines: Floats) -> Floats:
    """The largest cosine."""
    return np.asarray(cosines.max(axis=1), dtype=np.float64)


def negative_entropy(cosines: Floats, temperature: float = 1.0) -> Floats:
    """−H of softmax(cosine / T), in nats."""
    from scipy.special import entr

    return np.asarray(-entr(softmax(cosines / temperature)).sum(axis=1), dtype=np.float64)


class Curve:
    """The ROC curve of one score under R weightings of the N pictures.

    recall, false_positives: float64 [R, G], at every distinct score from the highest down, as shares of
    the weight of the positives and of the negatives; NaN where a weighting has none of them.
    """

    def __init__(self, score: Floats, positive: Flags, weights: Floats | None = None) -> None:
        """`weights`: float64 [R, N], such as how often each picture was drawn; one row of ones by default."""
        every = np.ones((1, len(score))) if weights is None else weights
        order = np.argsort(-score, kind="stable")
        last = np.append(np.flatnonzero(np.diff(score[order])), len(score) - 1)
        self.recall = _shares(every[:, order], positive[order], last)
        self.false_positives = _shares(every[:, order], ~positive[order], last)

    def area(self) -> Floats:
        """AUROC by the trapezoid, which counts ties as a half: float64 [R]."""
        recall, false = (np.pad(values, ((0, 0), (1, 0))) for values in (self.recall, self.false_positives))
        steps = np.diff(false, axis=1)
        return np.asarray(((recall[:, 1:] + recall[:, :-1]) / 2 * steps).sum(axis=1))

    def false_positives_at_least(self, recall: float = RECALL) -> Floats:
        """FPR at the highest threshold whose recall is at least `recall`: float64 [R]."""
        enough = self.recall >= recall - _ROUNDING
        return _picked(self.false_positives, enough.argmax(axis=1))

    def false_positives_closest(self, recall: float = RECALL) -> Floats:
        """FPR at the threshold whose recall is closest to `recall`, the lowest of several: float64 [R].

        What the published evaluation code does (Hendrycks et al., `fpr_and_fdr_at_recall`), which MCM
        uses. The recall may then lie below `recall`.
        """
        # Beyond full recall only false positives are added; the published code stops where it is reached.
        reached = self.recall >= 1 - _ROUNDING
        beyond = reached & np.pad(reached, ((0, 0), (1, 0)))[:, :-1]
        distance = np.where(beyond, np.inf, np.round(np.abs(self.recall - recall), 12))
        last = distance.shape[1] - 1 - distance[:, ::-1].argmin(axis=1)
        return _picked(self.false_positives, last)


def _shares(weights: Floats, inside: Flags, last: NDArray[np.int64]) -> Floats:
    """Cumulated weight of the members at the last place of each distinct score, over all of it."""
    totals = np.cumsum(weights * inside, axis=1)[:, last]
    whole = totals[:, -1:]
    return np.where(whole > 0, totals / np.where(whole > 0, whole, 1.0), np.nan)


def _picked(values: Floats, places: NDArray[np.int64]) -> Floats:
    return np.asarray(np.take_along_axis(values, places[:, None], axis=1)[:, 0])


def auroc(score: Floats, positive: Flags) -> float:
    """The chance that a positive scores above a negative, ties counting a half; NaN without either."""
    return float(Curve(score, positive).area()[0])


def delong_interval(score: Floats, positive: Flags, level: float) -> tuple[float, float]:
    """Interval of AUROC. DeLong, DeLong & Clarke-Pearson, Biometrics 44 (1988).

    At 0 and 1 DeLong's variance is zero; there it is Wilson's interval with as many trials as the smaller
    side has pictures, after Van Dantzig's bound AUROC (1 − AUROC) / min(m, n) on the variance.
    """
    area = auroc(score, positive)
    half = z_score(level) * math.sqrt(_delong_variance(_placements(score, positive)))
    closed = (max(0.0, area - half), min(1.0, area + half))
    fewer = int(min(positive.sum(), (~positive).sum()))
    extreme = wilson(area * fewer, fewer, level) if area in (0.0, 1.0) else None
    bounds = hull(closed, extreme)
    assert bounds is not None
    return bounds


def delong_difference(first: Floats, second: Floats, positive: Flags, level: float) -> tuple[float, float]:
    """Interval of AUROC(first) − AUROC(second) of two scores of the same pictures.

    1/(min(m, n) + 2)² is added to the variance, as in `statistics.paired_difference`: an interval keeps
    its width when nothing moved.
    """
    one, other = _placements(first, positive), _placements(second, positive)
    difference = auroc(first, positive) - auroc(second, positive)
    variance = _delong_variance((one[0] - other[0], one[1] - other[1]))
    fewer = int(min(positive.sum(), (~positive).sum()))
    half = z_score(level) * math.sqrt(variance + (fewer + 2) ** -2)
    return difference - half, difference + half


def _placements(score: Floats, positive: Flags) -> tuple[Floats, Floats]:
    """For each positive the share of negatives below it, for each negative the share of positives above.

    From midranks: Sun & Xu, IEEE Signal Processing Letters 21 (2014).
    """
    from scipy.stats import rankdata

    inside, outside = score[positive], score[~positive]
    every = rankdata(np.concatenate([inside, outside]))
    above = (every[: len(inside)] - rankdata(inside)) / len(outside)
    below = 1 - (every[len(inside) :] - rankdata(outside)) / len(inside)
    return above, below


def _delong_variance(placements: tuple[Floats, Floats]) -> float:
    """Zero for a side of one picture, whose variance nothing tells."""
    return float(sum(np.var(side, ddof=1) / len(side) for side in placements if len(side) > 1))
