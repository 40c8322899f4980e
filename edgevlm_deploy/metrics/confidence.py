"""How sure a model says it is, and how far that can be trusted.

`confidence` and `accuracy` arguments are float arrays of shape [N], both in [0, 1].
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from edgevlm_deploy.config import Frozen

Floats = NDArray[np.float64]

BINS = 10
SMALLEST_PROBABILITY = 1e-10


def geometric_mean_probability(token_logprobs: Sequence[float]) -> float:
    """exp(mean log max(p, 1e-10)) over the generated tokens, end-of-sequence included; 0 without tokens."""
    if not token_logprobs:
        return 0.0
    floor = math.log(SMALLEST_PROBABILITY)
    return min(1.0, math.exp(math.fsum(max(p, floor) for p in token_logprobs) / len(token_logprobs)))


def max_prob(token_logprobs: Sequence[float]) -> float:
    """MaxProb of selective VQA: the product of the token probabilities; 0 without tokens."""
    return min(1.0, math.exp(math.fsum(token_logprobs))) if token_logprobs else 0.0


def bin_of(confidence: Floats) -> NDArray[np.int64]:
    """Equal-width bin of each confidence: min(⌊10·confidence⌋, 9)."""
    bins: NDArray[np.int64] = np.minimum((confidence * BINS).astype(np.int64), BINS - 1)
    return bins


def mass_bin_of(confidence: Floats) -> NDArray[np.int64]:
    """Bin of each confidence among ten of equal size (±1 item); equal ones stay in the items' order."""
    bins = np.empty(confidence.size, dtype=np.int64)
    for number, part in enumerate(np.array_split(np.argsort(confidence, kind="stable"), BINS)):
        bins[part] = number
    return bins


def expected_calibration_error(confidence: Floats, accuracy: Floats) -> float | None:
    """ECE = Σ (n_b / N) |accuracy_b − confidence_b| over ten equal-width bins; None without items.

    Guo et al., "On Calibration of Modern Neural Networks", ICML 2017.
    """
    if confidence.size == 0:
        return None
    # n_b cancels: what counts is the sum of accuracy − confidence in each bin.
    gaps = np.bincount(bin_of(confidence), weights=accuracy - confidence, minlength=BINS)
    return float(np.abs(gaps).sum() / confidence.size)


def adaptive_calibration_error(confidence: Floats, accuracy: Floats) -> float | None:
    """ECE over the ten bins of `mass_bin_of`; None without items."""
    if confidence.size == 0:
        return None
    gaps = np.bincount(mass_bin_of(confidence), weights=accuracy - confidence, minlength=BINS)
    return float(np.abs(gaps).sum() / confidence.size)


def brier_score(confidence: Floats, accuracy: Floats) -> float | None:
    """Mean (confidence − accuracy)²; None without items."""
    return float(np.mean((confidence - accuracy) ** 2)) if confidence.size else None


class ReliabilityBin(Frozen):
    """One bar of a reliability diagram; the means are None in an empty bin."""

    low: float
    high: float
    n: int
    confidence: float | None
    accuracy: float | None


def reliability(confidence: Floats, accuracy: Floats) -> tuple[ReliabilityBin, ...]:
    """The ten bars of the reliability diagram, from confidence 0 to 1."""
    bins = bin_of(confidence)
    bars = []
    for number in range(BINS):
        inside = bins == number
        n = int(inside.sum())
        bars.append(
            ReliabilityBin(
                low=number / BINS,
                high=(number + 1) / BINS,
                n=n,
                confidence=float(confidence[inside].mean()) if n else None,
                accuracy=float(accuracy[inside].mean()) if n else None,
            )
        )
    return tuple(bars)
