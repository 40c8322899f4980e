"""Reference and artifact side by side: per-item columns, and the comparison on any part of the items."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from edgevlm_runner.contract import Item
from numpy.typing import NDArray

from edgevlm_deploy.metrics import confidence, robustness
from edgevlm_deploy.metrics.consistency import Flip
from edgevlm_deploy.metrics.estimates import Statistic, Subset, Table
from edgevlm_deploy.metrics.pairs import Pairs
from edgevlm_deploy.metrics.robustness import ratio
from edgevlm_deploy.metrics.tables import Comparison

Floats = NDArray[np.float64]


COMPARED = (
    "n",
    "reference_accuracy",
    "artifact_accuracy",
    "accuracy_drop",
    "diverged",
    "negative",
    "positive",
)
"""Columns of `per_item` that `compare` needs."""


def partition(pairs: Pairs, kind: str, of: Subset, key: Callable[[Item], str]) -> dict[str, Subset]:
    """Subsets of `of` by key, in the order in which keys first occur."""
    keys = [key(item) if inside else None for item, inside in zip(pairs.items, of.mask, strict=True)]
    return {
        value: Subset(f"{kind} {value!r}", np.array([one == value for one in keys], dtype=np.bool_))
        for value in dict.fromkeys(keys)
        if value is not None
    }


def per_item(pairs: Pairs, answered: NDArray[np.bool_] | None = None) -> dict[str, Floats]:
    """Per-item numbers whose totals make up every metric.

    answered: where the artifact does not abstain; None: everywhere.
    """
    answered = np.ones(len(pairs.items), np.bool_) if answered is None else answered
    reference_drop = pairs.reference_clean_accuracy - pairs.reference_accuracy
    artifact_drop = pairs.artifact_clean_accuracy - pairs.artifact_accuracy
    columns: dict[str, Floats] = {
        "n": np.ones(len(pairs.items)),
        "reference_accuracy": pairs.reference_accuracy,
        "artifact_accuracy": pairs.artifact_accuracy,
        "accuracy_drop": pairs.reference_accuracy - pairs.artifact_accuracy,
        "robustness_gap": robustness.robustness_gap(artifact_drop, reference_drop),
        "diverged": pairs.diverged.astype(np.float64),
        "negative": np.array([kind is Flip.NEGATIVE for kind in pairs.flips], dtype=np.float64),
        "answered": answered.astype(np.float64),
        "answered_wrong": np.where(answered, 1 - pairs.artifact_accuracy, 0.0),
        "positive": np.array([kind is Flip.POSITIVE for kind in pairs.flips], dtype=np.float64),
    }
    for whose, said, right in (
        ("reference", pairs.reference_confidence, pairs.reference_accuracy),
        ("artifact", pairs.artifact_confidence, pairs.artifact_accuracy),
    ):
        bins = confidence.bin_of(said)
        # Bins of equal size are of the clean items; a resample keeps the bins that were observed.
        masses = np.full(len(pairs.items), -1)
        masses[pairs.clean] = confidence.mass_bin_of(said[pairs.clean])
        for number in range(confidence.BINS):
            columns[f"bin {whose} {number}"] = np.where(bins == number, right - said, 0.0)
            columns[f"bin {whose} mass {number}"] = np.where(masses == number, right - said, 0.0)
        columns[f"bin {whose} brier"] = np.square(said - right)
    columns["bin brier_increase"] = columns["bin artifact brier"] - columns["bin reference brier"]
    return columns


def compare(table: Table, subset: Subset) -> Comparison:
    return Comparison(
        n=table.size(subset)[0],
        reference_accuracy=table.rate(subset, "reference_accuracy"),
        artifact_accuracy=table.rate(subset, "artifact_accuracy"),
        accuracy_drop=table.difference(subset, "accuracy_drop"),
        divergence_rate=table.rate(subset, "diverged"),
        negative_flip_rate=table.rate(subset, "negative"),
        positive_flip_rate=table.rate(subset, "positive"),
    )


def expected_calibration_error(subset: Subset, whose: str) -> Statistic:
    """`whose`: "artifact" or "reference"; with " mass" after it, over bins of equal size."""
    bins = [f"{subset.name} bin {whose} {number}" for number in range(confidence.BINS)]
    return lambda totals: ratio(sum(abs(totals[name]) for name in bins), totals[f"{subset.name} n"])
