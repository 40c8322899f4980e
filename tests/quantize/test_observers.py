"""Rules from values to ranges, against definitions and brute force."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from edgevlm_deploy.errors import QuantizationError
from edgevlm_deploy.quantize import observers
from edgevlm_deploy.recipe import ObserverName

RULES = tuple(ObserverName)


def long_tailed(seed: int = 0, values: int = 100_000) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(values, generator=generator)
    x[: values // 10_000] *= 20
    return x


def largest(rule: ObserverName, *parts: torch.Tensor) -> float:
    one = observers.observer(rule)
    for part in parts:
        one.add(part)
    return one.largest()


def test_minmax_is_the_largest_magnitude() -> None:
    assert largest(ObserverName.MINMAX, torch.tensor([1.0, -3.0]), torch.tensor([[2.0]])) == 3.0


def test_percentile_is_that_of_numpy() -> None:
    x = long_tailed()
    got = largest(ObserverName.PERCENTILE, x)
    bin_width = float(x.abs().max()) / observers.BINS
    assert got == pytest.approx(float(np.quantile(x.abs().numpy(), 0.9999)), abs=2 * bin_width)


def test_mse_is_the_least_error_of_the_values_themselves() -> None:
    x = long_tailed().double()
    top = float(x.abs().max())

    def error(cover: float) -> float:
        scale = cover / 127.5
        rounded = (x / scale).round().clamp(-128, 127) * scale
        return float((x - rounded).pow(2).mean())

    best = min(error(top * share) for share in np.linspace(0.06, 1, 400))
    assert error(largest(ObserverName.MSE, x.float())) <= 1.02 * best
    assert best < 0.7 * error(top)


def test_entropy_is_that_of_its_definition() -> None:
    """A slow transcription of the published pseudo-code, over the same candidates."""
    x = torch.randn(20_000, generator=torch.Generator().manual_seed(1))
    one = observers.Histogram(ObserverName.ENTROPY)
    one.add(x)
    counts = one.counts
    best, least = 0, np.inf
    for bins in [bins for bins in range(128, 2049) if counts[bins - 1] > 0]:
        seen = counts[:bins].copy()
        seen[-1] += counts[bins:].sum()
        quantised = np.zeros(bins)
        for level in range(128):
            members = np.flatnonzero(np.arange(bins) * 128 // bins == level)
            filled = members[counts[members] > 0]
            quantised[filled] = counts[members].sum() / max(1, len(filled))
        p, q = seen / seen.sum(), quantised / quantised.sum()
        assert np.all(q[p > 0] > 0)
        divergence = float(np.sum(p[p > 0] * np.log(p[p > 0] / q[p > 0])))
        if divergence < least:
            best, least = bins, divergence
    assert observers.least_divergence_bins(counts) == best < 2048


@pytest.mark.parametrize("rule", RULES)
def test_a_uniform_activation_is_covered(rule: ObserverName) -> None:
    x = torch.linspace(-2, 2, 50_001)
    assert largest(rule, x) == pytest.approx(2, rel=0.02)


@pytest.mark.parametrize("rule", [ObserverName.PERCENTILE, ObserverName.MSE, ObserverName.ENTROPY])
def test_outliers_are_cut_off(rule: ObserverName) -> None:
    x = torch.randn(100_000, generator=torch.Generator().manual_seed(1))
    x[0] = 30.0
    assert largest(rule, x) < 0.7 * float(x.abs().max())


@pytest.mark.parametrize("rule", RULES)
def test_parts_count_like_the_whole(rule: ObserverName) -> None:
    x = long_tailed()
    order = x.abs().argsort()  # the loudest last: the histogram has to widen
    quiet, loud = x[order[:90_000]], x[order[90_000:]]
    whole, parts = largest(rule, x), largest(rule, quiet, loud)
    assert parts == pytest.approx(whole, rel=0.1)
    if rule is not ObserverName.MINMAX:
        one = observers.Histogram(rule)
        one.add(quiet)
        one.add(loud)
        assert one.counts.sum() == x.numel() and one.limit is not None and one.limit >= float(x.abs().max())


@pytest.mark.parametrize("rule", RULES)
def test_nothing_zeros_and_nan(rule: ObserverName) -> None:
    with pytest.raises(QuantizationError, match="No calibration sample"):
        observers.observer(rule).largest()
    assert largest(rule, torch.zeros(4)) == 0.0
    assert largest(rule, torch.zeros(4), torch.ones(4)) > 0
    with pytest.raises(QuantizationError, match="not finite"):
        observers.observer(rule).add(torch.tensor([1.0, float("inf")]))
