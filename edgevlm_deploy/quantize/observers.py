"""How much of an activation's range 8 bits are to cover: from its values to the largest |x| that counts.

minmax      everything that was seen
percentile  the smallest range that holds 99.99 % of the values
mse         the range whose rounding and clipping together have the least squared error
entropy     the range whose quantised distribution is closest to the one seen (Kullback–Leibler), as TensorRT
            calibrates: Migacz, "8-bit Inference with TensorRT" (2017)

All but minmax look at a histogram of |x| in 2,048 bins that widens by powers of two when larger values come.
"""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from edgevlm_deploy.errors import QuantizationError
from edgevlm_deploy.recipe import ObserverName

BINS = 2048
LEVELS = 128
"""Magnitudes of symmetric int8, zero among them."""
STEP = 8
"""Bins between two ranges whose errors are compared; in a bin, values are taken to be at as many places."""
PERCENTILE = 0.9999

Counts = NDArray[np.float64]


class Observer(Protocol):
    def add(self, x: Any) -> None:
        """Look at one more tensor of any shape. Raises QuantizationError when it is not finite."""

    def largest(self) -> float:
        """The largest |x| to represent. Raises QuantizationError when nothing was seen."""


def observer(name: ObserverName) -> Observer:
    return MinMax() if name is ObserverName.MINMAX else Histogram(name)


class MinMax:
    def __init__(self) -> None:
        self._largest: float | None = None

    def add(self, x: Any) -> None:
        self._largest = max(self._largest or 0.0, _absmax(x))

    def largest(self) -> float:
        return _seen(self._largest)


class Histogram:
    """Counts of |x| in `BINS` equal bins from 0 to `limit`."""

    def __init__(self, rule: ObserverName) -> None:
        self._rule = rule
        self.counts: Counts = np.zeros(BINS)
        self.limit: float | None = None
        self._largest = 0.0

    def add(self, x: Any) -> None:
        import torch

        largest = _absmax(x)
        self._largest = max(self._largest, largest)
        self.limit = self.limit or largest
        while largest > self.limit:
            self.counts = np.concatenate([self.counts.reshape(-1, 2).sum(axis=1), np.zeros(BINS // 2)])
            self.limit *= 2
        if self.limit == 0:  # nothing but zeros so far
            self.counts[0] += x.numel()
        else:
            found = torch.histc(x.detach().abs().float(), bins=BINS, min=0, max=self.limit)
            self.counts += found.double().numpy()

    def largest(self) -> float:
        limit = _seen(self.limit)
        rules = {
            ObserverName.PERCENTILE: percentile_bins,
            ObserverName.MSE: least_error_bins,
            ObserverName.ENTROPY: least_divergence_bins,
        }
        return min(limit * rules[self._rule](self.counts) / BINS, self._largest)


def percentile_bins(counts: Counts) -> int:
    """Number of bins, from zero, that hold `PERCENTILE` of the counts."""
    return int(np.searchsorted(np.cumsum(counts), PERCENTILE * counts.sum())) + 1


def least_error_bins(counts: Counts) -> int:
    """Number of bins to cover with the least Σ (x − x̂)²."""
    values = (np.arange(BINS * STEP) + 0.5) / STEP
    weights = np.repeat(counts, STEP)
    tried = np.arange(STEP, BINS + 1, STEP)
    errors = []
    for bins in tried:
        scale = bins / (LEVELS - 0.5)
        rounded = np.minimum(np.rint(values / scale), LEVELS - 1) * scale
        errors.append(float(weights @ (values - rounded) ** 2))
    return int(tried[np.argmin(errors)])


def least_divergence_bins(counts: Counts) -> int:
    """Number of bins to cover so that KL(seen with its tail in the last bin ‖ quantised) is least.

    A range whose last bin is empty is not tried: all of its tail would lie where the other has nothing.
    """
    from scipy.stats import entropy

    tried = np.flatnonzero(counts) + 1
    tried = tried[tried >= LEVELS] if tried[-1] >= LEVELS else tried[-1:]
    divergences = []
    for bins in tried:
        inside = counts[:bins]
        seen = inside.copy()
        seen[-1] += counts[bins:].sum()
        # One level spreads evenly over those of its bins in which something was seen.
        level = np.arange(bins) * LEVELS // bins
        filled = inside > 0
        total = np.bincount(level, weights=inside, minlength=LEVELS)
        share = total / np.maximum(np.bincount(level, weights=filled, minlength=LEVELS), 1)
        quantised = np.where(filled, share[level], 0.0)
        divergences.append(float(entropy(seen, quantised)))
    return int(tried[np.argmin(divergences)])


def _absmax(x: Any) -> float:
    largest = float(x.detach().abs().max())
    if not np.isfinite(largest):
        raise QuantizationError("An activation is not finite on the calibration samples.")
    return largest


def _seen(largest: float | None) -> float:
    if largest is None:
        raise QuantizationError("No calibration sample reaches it; does every sample lack a picture?")
    return largest
