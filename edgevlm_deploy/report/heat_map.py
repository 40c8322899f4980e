"""Corruption × severity as a table of numbers on coloured ground."""

from __future__ import annotations

from dataclasses import dataclass

from edgevlm_deploy.metrics.tables import Comparison, Metrics
from edgevlm_deploy.report.names import REPORT, Names
from edgevlm_deploy.report.quantity import Unit, estimated, quantity

LEVELS = 10
LEAST_FULL_SCALE = 0.05
"""A heat map of differences is never stretched beyond five points: noise must not look like a fire."""


@dataclass(frozen=True)
class Cell:
    """One number of the heat map. `sure`: the interval of a difference excludes zero."""

    text: str
    level: str
    detail: str
    sure: bool


@dataclass(frozen=True)
class HeatRow:
    """view → its cells, one a severity (None: not tested) and the last over all of them."""

    corruption: str
    cells: dict[str, tuple[Cell | None, ...]]
    corruption_error: float | None


@dataclass(frozen=True)
class HeatMap:
    severities: tuple[int, ...]
    rows: tuple[HeatRow, ...]
    views: tuple[tuple[str, str], ...]
    """(view, title)."""


def build(metrics: Metrics, names: Names = REPORT) -> HeatMap | None:
    """None without corrupted items."""
    if not metrics.corruptions:
        return None
    severities = tuple(sorted({row.severity for row in metrics.conditions}))
    at = {(row.corruption, row.severity): row.comparison for row in metrics.conditions}
    everything = list(at.values())
    full = {
        "accuracy": 1.0,
        "drop": max(LEAST_FULL_SCALE, *(abs(one.accuracy_drop.value or 0.0) for one in everything)),
        "flips": max(LEAST_FULL_SCALE, *(one.negative_flip_rate.value or 0.0 for one in everything)),
    }
    rows = []
    for row in metrics.corruptions:
        compared = [at.get((row.corruption, severity)) for severity in severities] + [row.comparison]
        cells = {view: tuple(_cell(one, view, full[view], names) for one in compared) for view in full}
        rows.append(HeatRow(row.corruption, cells, row.corruption_error))
    views = (("accuracy", "accuracy"), ("drop", f"drop against {names.before}"), ("flips", "right → wrong"))
    return HeatMap(severities, tuple(rows), views)


def _cell(compared: Comparison | None, view: str, full: float, names: Names) -> Cell | None:
    if compared is None:
        return None
    estimate, unit = {
        "accuracy": (compared.artifact_accuracy, Unit.SHARE),
        "drop": (compared.accuracy_drop, Unit.POINTS),
        "flips": (compared.negative_flip_rate, Unit.SHARE),
    }[view]
    assert estimate.value is not None
    low, high = estimate.low, estimate.high
    text = f"{round(estimate.value * 100, 1) + 0.0:.1f}".replace("-", "−")
    return Cell(
        text=text,
        level=level(estimate.value, full),
        detail=f"{estimated(estimate, unit)}, {compared.n} items; {names.before_short} "
        f"{quantity(compared.reference_accuracy.value, Unit.SHARE)}, "
        f"{names.now_short} {quantity(compared.artifact_accuracy.value, Unit.SHARE)}",
        sure=view != "drop" or (low is not None and low > 0.0) or (high is not None and high < 0.0),
    )


def level(value: float, full: float) -> str:
    """CSS class of a cell: "plus-0" … "plus-10" or "minus-1" … "minus-10" tenths of `full`."""
    steps = min(LEVELS, round(abs(value) / full * LEVELS))
    return f"minus-{steps}" if value < 0 and steps else f"plus-{steps}"
