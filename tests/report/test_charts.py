"""Geometry that a reader relies on: what is drawn beyond the limit is beyond the limit."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgevlm_deploy.metrics.confidence import ReliabilityBin
from edgevlm_deploy.metrics.statistics import Estimate
from edgevlm_deploy.recipe import GateName
from edgevlm_deploy.report import charts
from edgevlm_deploy.verdict import GateResult, Outcome

numbers = st.floats(-1e4, 1e4).map(lambda x: round(x, 4))


@given(values=st.lists(numbers, min_size=3, max_size=3, unique=True), bound=numbers, upper=st.booleans())
def test_points_lie_on_the_same_side_of_the_limit_as_their_values(
    values: list[float], bound: float, upper: bool
) -> None:
    low, value, high = sorted(values)
    bar = charts.gate_bar(_gate(low, value, high, bound, upper))
    assert bar is not None and bar.limit is not None and bar.forbidden is not None
    for number, x in ((low, bar.low), (value, bar.value), (high, bar.high)):
        assert 0.0 <= x <= charts.BAR_WIDTH
        assert (x - bar.limit) * (number - bound) >= 0
    start, width = bar.forbidden
    assert (start, start + width) == pytest.approx(
        (bar.limit, charts.BAR_WIDTH) if upper else (0.0, bar.limit)
    )


def test_an_upper_limit_is_drawn_from_zero() -> None:
    bar = charts.gate_bar(_gate(0.01, 0.02, 0.03, 0.1, upper=True))
    assert bar is not None and bar.zero == 0.0


def test_an_open_side_reaches_the_edge() -> None:
    bar = charts.gate_bar(_gate(5.0, 6.0, None, 10.0, upper=True))
    assert bar is not None
    assert (bar.open_low, bar.open_high, bar.high) == (False, True, charts.BAR_WIDTH)


def test_nothing_measured_draws_nothing() -> None:
    assert charts.gate_bar(_gate(None, None, None, 1.0, upper=True)) is None


def test_interval_bars_share_their_axis() -> None:
    one, missing, two = charts.interval_bars([_estimate(-0.1), _estimate(None), _estimate(0.3)])
    assert one is not None and two is not None and missing is None
    assert one.zero == two.zero and one.zero is not None
    assert one.value < one.zero < two.value


@given(st.lists(st.tuples(st.floats(0.01, 1), st.floats(0, 1)), min_size=1, max_size=20))
def test_risk_curves_stay_inside_and_share_their_axis(curve: list[tuple[float, float]]) -> None:
    drawn = charts.risk_curves({"reference": curve, "artifact": [(1.0, 0.05)]}, 0.05)
    for x, y in (*drawn.lines["reference"], *drawn.lines["artifact"]):
        assert 0.0 <= x <= charts.RELIABILITY_SIDE and 0.0 <= y <= charts.RELIABILITY_SIDE
    assert drawn.lines["artifact"] == ((charts.RELIABILITY_SIDE, drawn.limit),)
    heights = [y for y, _ in drawn.ticks]
    assert heights[0] == charts.RELIABILITY_SIDE and heights[-1] == 0.0
    assert 3 <= len(heights) <= 6


@given(st.lists(st.floats(0, 1e5), min_size=1, max_size=300), st.none() | st.floats(1, 1e5))
def test_histograms_hold_every_sample_and_stay_inside(samples: list[float], limit: float | None) -> None:
    drawn = charts.histogram(samples, limit)
    assert drawn.columns
    for x, y, width, height in drawn.columns:
        assert x >= 0 and x + width <= charts.HISTOGRAM_WIDTH
        assert y >= 0 and y + height == pytest.approx(charts.HISTOGRAM_HEIGHT, abs=0.11)
    assert {"p50", "p95"} <= {name for name, _ in drawn.marks}
    assert all(0 <= x <= charts.HISTOGRAM_WIDTH for _, x in drawn.marks)


def test_percentiles_are_order_statistics() -> None:
    samples = [float(number) for number in range(100, 0, -1)]
    assert [charts.percentile(samples, share) for share in (0.5, 0.95, 1.0)] == [50.0, 95.0, 100.0]


def test_reliability_leaves_empty_bins_out() -> None:
    bins = (
        ReliabilityBin(low=0.0, high=0.1, n=0, confidence=None, accuracy=None),
        ReliabilityBin(low=0.9, high=1.0, n=8, confidence=0.95, accuracy=0.5),
    )
    (point,) = charts.reliability(bins, most=8, series=0)
    assert (point.x, point.y) == (0.95 * charts.RELIABILITY_SIDE, 0.5 * charts.RELIABILITY_SIDE)
    assert point.count_height == charts.COUNTS_HEIGHT


def _estimate(value: float | None) -> Estimate:
    low, high = (None, None) if value is None else (value - 0.05, value + 0.05)
    return Estimate(value=value, low=low, high=high, n=9, clusters=9, method="wilson")


def _gate(
    low: float | None, value: float | None, high: float | None, bound: float, upper: bool
) -> GateResult:
    return GateResult(
        metric=GateName.ACCURACY_DROP if upper else GateName.ACCURACY,
        min=None if upper else bound,
        max=bound if upper else None,
        reason="",
        outcome=Outcome.SKIPPED if value is None else Outcome.INCONCLUSIVE,
        value=value,
        low=low,
        high=high,
        n=9,
        unit="items",
        method="wilson",
        explanation="",
    )


def test_intervals_without_any_width_have_a_place() -> None:
    nothing = Estimate(value=0.0, low=0.0, high=0.0, n=5, clusters=5, method="clustered bootstrap")
    (bar,) = charts.interval_bars([nothing])
    assert bar is not None
    assert bar.low == bar.value == bar.high == bar.zero == charts.BAR_WIDTH / 2
