"""What the recipe's gates would say of a candidate, predicted from fewer items than the verdict will have."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from edgevlm_deploy.config import Frozen
from edgevlm_deploy.metrics import Metrics
from edgevlm_deploy.recipe import Gate, GateName

FLOOR = 1e-3
"""Smallest limit that an excess is divided by."""
WITHOUT_BOUND = 10.0
"""Excess where the items are too few for an interval."""


class Outlook(Frozen):
    """One gate on one candidate.

    The bound is that of an interval as wide as the verdict's will be, None without one. A positive excess
    is predicted not to pass; it is a share of the limit.
    """

    metric: GateName
    value: float
    bound: float | None
    limit: float
    is_inside: bool = True
    """Whether the value itself keeps the limit."""
    excess: float


def outlooks(
    gates: Sequence[Gate], metrics: Metrics, share: float, known: Mapping[GateName, float]
) -> tuple[Outlook, ...]:
    """Gates that answers decide, and those on sizes and times that `known` bounds from below.

    share: items of the search over items of the verdict. Intervals shrink with the root of it.
    known: a value that the metric cannot be below (bytes, roofline). Other gates wait for the device.
    """
    found = []
    for gate in gates:
        estimate = metrics.estimates.get(gate.metric.value)
        if gate.metric in known:
            found.append(_outlook(gate, known[gate.metric], known[gate.metric]))
        elif estimate is not None and estimate.value is not None:
            edge = estimate.high if gate.max is not None else estimate.low
            spread = None if edge is None else (edge - estimate.value) * math.sqrt(share)
            found.append(_outlook(gate, estimate.value, None if spread is None else estimate.value + spread))
    return tuple(found)


def _outlook(gate: Gate, value: float, bound: float | None) -> Outlook:
    limit = gate.max if gate.max is not None else gate.min
    assert limit is not None
    excess = WITHOUT_BOUND
    if bound is not None:
        excess = (bound - limit if gate.max is not None else limit - bound) / max(abs(limit), FLOOR)
    return Outlook(
        metric=gate.metric,
        value=value,
        bound=bound,
        limit=limit,
        is_inside=value <= limit if gate.max is not None else value >= limit,
        excess=excess,
    )
