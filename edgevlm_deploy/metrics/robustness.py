"""How much corruption costs. Accuracies in [0, 1]; an undefined ratio is None, never a number.

The functions take floats. With float arrays (one entry per bootstrap resample) they work
elementwise and return NaN where the ratio is undefined, which is what intervals need.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import overload

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Severity = int


@overload
def ratio(numerator: float, denominator: float) -> float | None: ...
@overload
def ratio(numerator: Floats, denominator: Floats) -> Floats: ...
def ratio(numerator: float | Floats, denominator: float | Floats) -> float | Floats | None:
    """numerator / denominator; undefined (None, in arrays NaN) unless the denominator is positive."""
    if isinstance(denominator, np.ndarray):
        positive = denominator > 0
        return np.where(positive, numerator / np.where(positive, denominator, 1.0), np.nan)
    return float(numerator / denominator) if denominator > 0 else None


def relative_robustness(clean: float, corrupted: Sequence[float]) -> float | None:
    """RS = mean of A(c, s) / A0. It rewards a model that is bad everywhere: gate on accuracy too."""
    return ratio(sum(corrupted) / len(corrupted), clean) if corrupted else None


def mean_accuracy_drop(clean: float, corrupted: Sequence[float]) -> float | None:
    """Mean of A0 − A(c, s) = A0 (1 − RS). EdgeVLM-Bench calls this mCE."""
    return clean - sum(corrupted) / len(corrupted) if corrupted else None


def robustness_gap(artifact_drop: float, reference_drop: float) -> float:
    """What quantisation adds to the cost of corruption: drop(artifact) − drop(reference)."""
    return artifact_drop - reference_drop


def corruption_error(accuracy: Mapping[Severity, float], base: Mapping[Severity, float]) -> float | None:
    """CE_c = Σ_s E(c, s) / Σ_s E_base(c, s), with the reference as base (ImageNet-C: AlexNet)."""
    return ratio(sum(1 - accuracy[s] for s in base), sum(1 - base[s] for s in base))


def relative_corruption_error(
    accuracy: Mapping[Severity, float], clean: float, base: Mapping[Severity, float], base_clean: float
) -> float | None:
    """Σ_s (E(c, s) − E_clean) / Σ_s (E_base(c, s) − E_base,clean)."""
    return ratio(sum(clean - accuracy[s] for s in base), sum(base_clean - base[s] for s in base))


def mean_corruption_error(errors: Mapping[str, float | None]) -> float | None:
    """mCE = mean of CE_c; None as soon as one CE_c is undefined, since a partial mean compares nothing."""
    values = list(errors.values())
    defined = [value for value in values if value is not None]
    return sum(defined) / len(defined) if defined and len(defined) == len(values) else None
