"""One HTML page about a sweep: the table and heat maps, from the rows of its Parquet file."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from edgevlm_deploy.artifacts import write_text_atomic
from edgevlm_deploy.report.heat_map import LEAST_FULL_SCALE, Cell, level
from edgevlm_deploy.report.html import content_policy, environment, inline
from edgevlm_deploy.report.quantity import Unit, interval, quantity
from edgevlm_deploy.sweep import table
from edgevlm_deploy.sweep.rows import Results, Row, by_cell

VIEWS = (
    ("accuracy", "accuracy"),
    ("drop", "drop against the FP16 reference"),
    ("flips", "right → wrong"),
)
_VALUES: dict[str, Callable[[Row], float | None]] = {
    "accuracy": lambda row: row.accuracy,
    "drop": lambda row: row.accuracy_drop,
    "flips": lambda row: row.negative_flip_rate,
}


@dataclass(frozen=True)
class HeatTable:
    """Corruptions down, `columns` across; view → rows of cells, None where nothing was asked."""

    title: str
    note: str
    columns: tuple[str, ...]
    corruptions: tuple[str, ...]
    cells: dict[str, tuple[tuple[Cell | None, ...], ...]]


def render(results: Results, out: Path) -> None:
    """Write the page to `out`. Raises StorageError when it cannot be written."""
    style = inline("style.css")
    lines = table.summary(results)
    page = (
        environment()
        .get_template("sweep.html.j2")
        .render(
            style=style,
            policy=content_policy(style, ""),
            results=results,
            head=table.HEAD,
            lines=lines,
            shared_latency=any(not line.alone for line in lines),
            views=VIEWS,
            heat=heat_tables(results.rows),
            facts=_facts(results.rows),
        )
    )
    write_text_atomic(out, page)


def heat_tables(rows: Sequence[Row]) -> list[HeatTable]:
    """Per model, recipes side by side where there are several; then each cell by severity."""
    corrupted = [row for row in rows if row.severity]
    if not corrupted:
        return []
    full = {
        view: 1.0
        if view == "accuracy"
        else max(LEAST_FULL_SCALE, *(abs(value(row) or 0.0) for row in corrupted))
        for view, value in _VALUES.items()
    }
    corruptions = tuple(dict.fromkeys(row.corruption for row in corrupted))
    found = []
    for model in dict.fromkeys(row.model for row in corrupted):
        cells = {key[1]: one[1:] for key, one in by_cell(rows).items() if key[0] == model}
        if len(cells) > 1:
            found.append(_recipes(model, cells, corruptions, full))
        found += [_severities(model, recipe, one, corruptions, full) for recipe, one in cells.items()]
    return found


def _recipes(
    model: str, cells: dict[str, tuple[Row, ...]], corruptions: tuple[str, ...], full: dict[str, float]
) -> HeatTable:
    def cell(view: str, recipe: str, corruption: str) -> Cell | None:
        rows = [row for row in cells[recipe] if row.corruption == corruption]
        values = [value for row in rows if (value := _VALUES[view](row)) is not None]
        if not values:
            return None
        mean = sum(values) / len(values)
        unit = Unit.POINTS if view == "drop" else Unit.SHARE
        detail = f"{quantity(mean, unit)}, mean over {len(values)} severities"
        sure = view != "drop" or any(_is_sure(row) for row in rows)
        return Cell(_text(mean), level(mean, full[view]), detail, sure)

    return HeatTable(
        title=f"{model}: recipes side by side",
        note="Mean over the severities. Pale drops: each severity's interval contains zero.",
        columns=tuple(cells),
        corruptions=corruptions,
        cells={
            view: tuple(
                tuple(cell(view, recipe, corruption) for recipe in cells) for corruption in corruptions
            )
            for view in _VALUES
        },
    )


def _severities(
    model: str, recipe: str, rows: Sequence[Row], corruptions: tuple[str, ...], full: dict[str, float]
) -> HeatTable:
    severities = sorted({row.severity for row in rows})
    at = {(row.corruption, row.severity): row for row in rows}

    def cell(view: str, corruption: str, severity: int) -> Cell | None:
        row = at.get((corruption, severity))
        value = _VALUES[view](row) if row is not None else None
        return None if row is None or value is None else _cell(row, view, value, full[view])

    return HeatTable(
        title=f"{model}, {recipe}",
        note="Pale drops: the interval contains zero.",
        columns=tuple(f"severity {severity}" for severity in severities),
        corruptions=corruptions,
        cells={
            view: tuple(
                tuple(cell(view, corruption, severity) for severity in severities)
                for corruption in corruptions
            )
            for view in _VALUES
        },
    )


def _cell(row: Row, view: str, value: float, full: float) -> Cell:
    low, high, unit = {
        "accuracy": (row.accuracy_low, row.accuracy_high, Unit.SHARE),
        "drop": (row.accuracy_drop_low, row.accuracy_drop_high, Unit.POINTS),
        "flips": (row.negative_flip_rate_low, row.negative_flip_rate_high, Unit.SHARE),
    }[view]
    detail = f"{quantity(value, unit)} {interval(low, high, unit)}, {row.items} items"
    return Cell(_text(value), level(value, full), detail, view != "drop" or _is_sure(row))


def _is_sure(row: Row) -> bool:
    """Whether the interval of the drop excludes zero."""
    low, high = row.accuracy_drop_low, row.accuracy_drop_high
    return (low is not None and low > 0.0) or (high is not None and high < 0.0)


def _text(share: float) -> str:
    return f"{round(share * 100, 1) + 0.0:.1f}".replace("-", "−")


def _facts(rows: Sequence[Row]) -> dict[str, str]:
    """What all cells have in common, said once."""
    clean = [row for row in rows if not row.severity]
    if not clean:
        return {}
    conditions = {(row.corruption, row.severity): row.items for row in rows if row.severity}
    return {
        "target": ", ".join(sorted({row.target for row in rows})),
        "items": f"{max(row.items for row in clean):,} clean, {sum(conditions.values()):,} corrupted in "
        f"{len(conditions):,} conditions",
        "intervals": f"{clean[0].level:.0%}, over pictures",
        "answered on": ", ".join(sorted({row.cpu for row in rows})),
        "edgevlm": ", ".join(sorted({row.edgevlm_version for row in rows})),
    }
