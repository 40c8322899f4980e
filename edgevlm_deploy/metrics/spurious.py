"""Does the class survive another background? Groups, gaps and shifts.

Accuracies are floats in [0, 1], or float64 arrays with one entry per bootstrap resample, as in
`robustness`: undefined is then NaN, and None for floats.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from edgevlm_runner.contract import Item, Kind

from edgevlm_deploy.metrics.robustness import ratio

COMMON, COUNTER = "common", "counter"
"""A picture on the background that its class has in training, and on another one."""
LEAST_IN_GROUP = 10
"""A smaller group's accuracy is mostly chance, and a minimum looks for chance: it is no group."""


def group(item: Item) -> tuple[str, str]:
    """(kind of question or class, background): what a worst group is sought among.

    Where the data name no background, it is told by whether it was swapped.
    """
    swapped = "swapped" if item.kind is Kind.BACKGROUND else "original"
    return item.group, item.background or swapped


def relative_spurious_gap(common: Any, counter: Any) -> Any:
    """RSG = (A_common − A_counter) / A_common; undefined when nothing is right on common backgrounds."""
    return ratio(common - counter, common)


def relative_degradation(reference: Any, artifact: Any) -> Any:
    """δ(D) = (A_ref(D) − A_art(D)) / A_ref(D) on a shifted distribution D."""
    return ratio(reference - artifact, reference)


def worst_group(accuracies: Sequence[Any]) -> Any:
    """The lowest accuracy of all groups. Groups that a resample lacks are left out.

    The minimum of noisy shares lies below the lowest true share: compare models on the same items only.
    """
    if not accuracies:
        return None
    if isinstance(accuracies[0], np.ndarray):
        return np.fmin.reduce(np.stack(list(accuracies)), axis=0)
    return min(accuracies)
