"""How much corruption costs. An undefined ratio is None, never a number.

Accuracies are floats in [0, 1]. They may also be float64 arrays with one entry per bootstrap
resample; the functions then work elementwise and return NaN where a ratio is undefined.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

Accuracy = Any
"""float, or float64 [resamples]."""
Severity = int


def ratio(numerator: Any, denominator: Any) -> Any:
    """numerator / denominator; undefined (None, in arrays NaN) unless the denominator is positive."""
    if isinstance(denominator, np.ndarray):
        positive = denominator > 0
        return np.where(positive, numerator / np.where(positive, denominator, 1.0), np.nan)
    return float(numerator / denominator) if denominator > 0 else None


def relative_robustness(clean: Accuracy, corrupted: Sequence[Accuracy]) -> Any:
    """RS = mean of A(c, s) / A0. It rewards a model that is bad everywhere: gate on accuracy too."""
    return ratio(sum(corrupted) / len(corrupted), clean) if corrupted else None


def mean_accuracy_drop(clean: Accuracy, corrupted: Sequence[Accuracy]) -> Any:
    """Mean of A0 − A(c, s) = A0 (1 − RS). EdgeVLM-Bench calls this mCE."""
    return clean - sum(corrupted) / len(corrupted) if corrupted else None


def robustness_gap(artifact_drop: Accuracy, reference_drop: Accuracy) -> Any:
    """What quantisation adds to the cost of corruption: drop(artifact) − drop(reference)."""
    return artifact_drop - reference_drop


def corruption_error(accuracy: Mapping[Severity, Accuracy], base: Mapping[Severity, Accuracy]) -> Any:
    """CE_c = Σ_s E(c, s) / Σ_s E_base(c, s).

    Hendrycks & Dietterich, ICLR 2019, whose base is AlexNet on ImageNet; here it is the reference.
    """
    return ratio(sum(1 - accuracy[s] for s in base), sum(1 - base[s] for s in base))


def relative_corruption_error(
    accuracy: Mapping[Severity, Accuracy],
    clean: Accuracy,
    base: Mapping[Severity, Accuracy],
    base_clean: Accuracy,
) -> Any:
    """Relative CE_c = Σ_s (E(c, s) − E_clean) / Σ_s (E_base(c, s) − E_base,clean)."""
    return ratio(sum(clean - accuracy[s] for s in base), sum(base_clean - base[s] for s in base))


def mean_corruption_error(errors: Sequence[Any]) -> Any:
    """mCE = mean of CE_c; None as soon as one CE_c is undefined, since a partial mean compares nothing."""
    if not errors or any(error is None for error in errors):
        return None
    return sum(errors) / len(errors)
