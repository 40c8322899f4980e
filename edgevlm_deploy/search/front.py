"""The Pareto front: candidates that no other one matches everywhere and beats somewhere."""

from __future__ import annotations

import math
from collections.abc import Sequence

from edgevlm_deploy.search.study import Judged, Trial

OBJECTIVES = (
    "accuracy",
    "negative_flip_rate",
    "relative_robustness",
    "latency_ms",
    "first_token_macs",
    "memory_bytes",
)


def costs(judged: Judged) -> tuple[float, ...]:
    """Every objective as a number that should be small; what is not known counts the same for all."""
    gains = [judged.accuracy, judged.relative_robustness]
    losses = [judged.negative_flip_rate, judged.latency_ms, *map(float, judged.cost)]
    return (
        *(math.inf if one is None else -one for one in gains),
        *(math.inf if one is None else one for one in losses),
    )


def dominates(one: Sequence[float], other: Sequence[float]) -> bool:
    """At least as good in all, better in some."""
    return all(a <= b for a, b in zip(one, other, strict=True)) and tuple(one) != tuple(other)


def front(trials: Sequence[Trial]) -> tuple[Trial, ...]:
    """The non-dominated of `trials`, smallest first; equal ones all stay."""
    points = [(costs(trial.judged), trial) for trial in trials]
    kept = [trial for cost, trial in points if not any(dominates(other, cost) for other, _ in points)]
    return tuple(sorted(kept, key=lambda one: (*one.judged.cost, one.number)))
