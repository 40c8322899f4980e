"""Geometry of the report's drawings; the template draws them as inline SVG.

All coordinates are in user units of the drawing's own view box, y downwards.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from edgevlm_deploy.metrics.confidence import ReliabilityBin
from edgevlm_deploy.metrics.statistics import Estimate
from edgevlm_deploy.verdict import GateResult

BAR_WIDTH = 180.0
HISTOGRAM_WIDTH, HISTOGRAM_HEIGHT, HISTOGRAM_BINS = 200.0, 34.0, 40
RELIABILITY_SIDE = 260.0
COUNTS_HEIGHT = 44.0


@dataclass(frozen=True)
class IntervalBar:
    """A point and its interval on one axis. `low` and `high` lie at the edge where the interval is open.

    limit       where the limit stands, None when there is none
    forbidden   (x, width) of the side beyond the limit
    zero        where zero stands, None when it is outside
    """

    value: float
    low: float
    high: float
    open_low: bool
    open_high: bool
    limit: float | None
    forbidden: tuple[float, float] | None
    zero: float | None


def gate_bar(gate: GateResult) -> IntervalBar | None:
    """The interval against the limit; None when nothing was measured.

    An upper limit is drawn with zero on the axis, so that the bar shows how much of it is used.
    A lower limit is drawn close up: zero says nothing there.
    """
    if gate.value is None:
        return None
    bound = gate.max if gate.max is not None else gate.min
    assert bound is not None
    known = [gate.value, bound, *(one for one in (gate.low, gate.high) if one is not None)]
    if gate.max is not None:
        known.append(0.0)
    axis = _Axis(known, padding=0.12)
    x = axis(bound)
    return _bar(
        axis,
        Estimate(value=gate.value, low=gate.low, high=gate.high, n=gate.n, clusters=0, method=gate.method),
        limit=x,
        forbidden=(x, BAR_WIDTH - x) if gate.max is not None else (0.0, x),
    )


def interval_bars(estimates: Sequence[Estimate]) -> list[IntervalBar | None]:
    """Several intervals on one axis with zero on it."""
    numbers = [
        one for e in estimates for one in (e.value, e.low, e.high) if e.value is not None and one is not None
    ]
    axis = _Axis([*numbers, 0.0], padding=0.04)
    return [None if one.value is None else _bar(axis, one) for one in estimates]


class _Axis:
    """Maps values to 0 … BAR_WIDTH."""

    def __init__(self, values: Sequence[float], padding: float) -> None:
        low, high = min(values), max(values)
        space = (high - low) * padding or 1.0
        self.low = low if low == 0.0 < high else low - space
        self.high = high if low < high == 0.0 else high + space

    def __call__(self, value: float) -> float:
        return round((value - self.low) / (self.high - self.low) * BAR_WIDTH, 1)

    def holds(self, value: float) -> bool:
        return self.low <= value <= self.high


def _bar(
    axis: _Axis,
    estimate: Estimate,
    limit: float | None = None,
    forbidden: tuple[float, float] | None = None,
) -> IntervalBar:
    assert estimate.value is not None
    return IntervalBar(
        value=axis(estimate.value),
        low=0.0 if estimate.low is None else axis(estimate.low),
        high=BAR_WIDTH if estimate.high is None else axis(estimate.high),
        open_low=estimate.low is None,
        open_high=estimate.high is None,
        limit=limit,
        forbidden=forbidden,
        zero=axis(0.0) if axis.holds(0.0) else None,
    )


def percentile(samples: Sequence[float], share: float) -> float:
    """The smallest sample that at least `share` of the samples do not exceed, as gates take it."""
    return sorted(samples)[max(0, math.ceil(share * len(samples)) - 1)]


@dataclass(frozen=True)
class Histogram:
    """Columns (x, y, width, height) from zero to `end`; what lies beyond is in the last column."""

    columns: tuple[tuple[float, float, float, float], ...]
    end: float
    marks: tuple[tuple[str, float], ...]
    """(name, x) of the percentiles and of the limit where there is one."""


def histogram(samples: Sequence[float], limit: float | None) -> Histogram:
    """Samples of a duration. The axis ends at the 99th percentile, so that one outlier hides nothing."""
    p99 = percentile(samples, 0.99)
    end = (p99 * 1.08) or 1.0
    if limit is not None and limit < 2 * end:
        end = max(end, limit * 1.08)
    counts = [0] * HISTOGRAM_BINS
    for sample in samples:
        counts[min(HISTOGRAM_BINS - 1, int(sample / end * HISTOGRAM_BINS))] += 1
    width = HISTOGRAM_WIDTH / HISTOGRAM_BINS
    tallest = max(counts)
    columns = []
    for place, count in enumerate(counts):
        if count:
            height = max(1.0, count / tallest * HISTOGRAM_HEIGHT)
            columns.append(
                (place * width, round(HISTOGRAM_HEIGHT - height, 1), width - 0.6, round(height, 1))
            )
    named = {"p50": percentile(samples, 0.5), "p95": percentile(samples, 0.95), "limit": limit}
    marks = tuple(
        (name, round(value / end * HISTOGRAM_WIDTH, 1))
        for name, value in named.items()
        if value is not None and value <= end
    )
    return Histogram(tuple(columns), end, marks)


@dataclass(frozen=True)
class RiskCurves:
    """Risk over coverage of several models on one pair of axes, both in RELIABILITY_SIDE units.

    lines   whose → (x, y) from low coverage to full
    ticks   (y, percent) of the risk axis
    limit   y of the gated risk
    """

    lines: dict[str, tuple[tuple[float, float], ...]]
    ticks: tuple[tuple[float, str], ...]
    limit: float


def risk_curves(curves: Mapping[str, Sequence[tuple[float, float]]], limit: float) -> RiskCurves:
    """`curves`: whose → (coverage, risk). The risk axis holds the highest risk and twice the limit."""
    highest = max([2 * limit, *(risk for curve in curves.values() for _, risk in curve)])
    step = next(one for one in (0.02, 0.05, 0.1, 0.2) if highest <= 5 * one or one == 0.2)
    top = step * math.ceil(highest / step - 1e-9)

    def y(risk: float) -> float:
        return round((1 - risk / top) * RELIABILITY_SIDE, 1)

    return RiskCurves(
        lines={
            whose: tuple((round(coverage * RELIABILITY_SIDE, 1), y(risk)) for coverage, risk in curve)
            for whose, curve in curves.items()
        },
        ticks=tuple((y(place * step), f"{place * step:.0%}"[:-1]) for place in range(round(top / step) + 1)),
        limit=y(limit),
    )


@dataclass(frozen=True)
class ReliabilityPoint:
    """One bin: area of the circle ∝ items; `count_*` is its column in the strip below."""

    x: float
    y: float
    radius: float
    count_x: float
    count_height: float
    bin: ReliabilityBin


def reliability(
    bins: Sequence[ReliabilityBin], most: int, series: int, width: float = 8.0
) -> tuple[ReliabilityPoint, ...]:
    """Points (mean confidence, accuracy) of the bins that hold items; `most` is the fullest bin of all."""
    points = []
    for one in bins:
        if one.confidence is None or one.accuracy is None:
            continue
        share = one.n / most
        middle = (one.low + one.high) / 2 * RELIABILITY_SIDE
        points.append(
            ReliabilityPoint(
                x=round(one.confidence * RELIABILITY_SIDE, 1),
                y=round((1 - one.accuracy) * RELIABILITY_SIDE, 1),
                radius=round(2.5 + 5.5 * math.sqrt(share), 1),
                count_x=round(middle + (series - 1) * width, 1),
                count_height=round(max(0.8, share * COUNTS_HEIGHT), 1),
                bin=one,
            )
        )
    return tuple(points)
