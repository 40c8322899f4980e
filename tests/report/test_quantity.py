"""Numbers as people read them."""

from __future__ import annotations

import pytest

from edgevlm_deploy.recipe import GateName
from edgevlm_deploy.report.quantity import TITLES, UNITS, Unit, interval, limit, measured, quantity
from edgevlm_deploy.verdict import GateResult, Outcome


@pytest.mark.parametrize(
    ("value", "unit", "expected"),
    [
        (0.98437, Unit.SHARE, "98.4%"),
        (0.0043, Unit.SHARE, "0.43%"),
        (1.0, Unit.SHARE, "100.0%"),
        (-0.0123, Unit.POINTS, "−1.23 pp"),
        (-0.00001, Unit.POINTS, "0.00 pp"),
        (0.9312, Unit.RATIO, "0.931"),
        (41.27, Unit.MILLISECONDS, "41.3 ms"),
        (1234.5, Unit.MILLISECONDS, "1,234 ms"),
        (0.0, Unit.MILLISECONDS, "0 ms"),
        (2e9, Unit.BYTES, "2 GB"),
        (184_300_000, Unit.BYTES, "184 MB"),
        (12, Unit.BYTES, "12 B"),
        (None, Unit.SHARE, "–"),
    ],
)
def test_quantity(value: float | None, unit: Unit, expected: str) -> None:
    assert quantity(value, unit) == expected


def test_intervals_share_one_unit_and_show_open_sides() -> None:
    assert interval(0.0021, 0.0083, Unit.SHARE) == "[0.21, 0.83]%"
    assert interval(900e6, 1.1e9, Unit.BYTES) == "[0.900, 1.10] GB"
    assert interval(12.0, None, Unit.MILLISECONDS) == "[12.0, ?] ms"
    assert interval(None, None, Unit.SHARE) == "–"


def test_every_gate_has_a_title_and_a_unit() -> None:
    assert set(TITLES) == set(UNITS) == set(GateName)


def test_limits_are_written_as_in_the_recipe() -> None:
    assert limit(gate(max=0.005)) == "≤ 0.5%"
    assert limit(gate(min=0.6, metric=GateName.RELATIVE_ROBUSTNESS)) == "≥ 0.6"
    assert limit(gate(max=2_500_000_000, metric=GateName.PEAK_RSS_BYTES)) == "≤ 2.5 GB"


def test_a_single_measurement_has_no_interval() -> None:
    assert measured(gate(max=1.0, value=0.25, low=0.25, high=0.25)) == "25.0%"
    assert measured(gate(max=1.0, value=0.25, low=0.2, high=0.3)) == "25.0% [20.0, 30.0]%"
    assert measured(gate(max=1.0)) == "–"


def gate(
    metric: GateName = GateName.NEGATIVE_FLIP_RATE,
    min: float | None = None,
    max: float | None = None,
    value: float | None = None,
    low: float | None = None,
    high: float | None = None,
) -> GateResult:
    return GateResult(
        metric=metric,
        min=min,
        max=max,
        reason="",
        outcome=Outcome.SKIPPED if value is None else Outcome.PASS,
        value=value,
        low=low,
        high=high,
        n=10,
        unit="items",
        method="wilson",
        explanation="",
    )
