"""The table of EdgeVLM-Bench: clean accuracy, relative robustness, mean drop, size and latency a cell."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from edgevlm_deploy.report.quantity import Unit, quantity
from edgevlm_deploy.sweep.rows import Results, Row, by_cell

REFERENCE = "FP16 reference"
HEAD = ("model", "recipe", "clean", "RS", "mean drop", "right→wrong", "size", "latency p95", "gates")


@dataclass(frozen=True)
class Line:
    """One cell; the reference of a model is a line too, without size and latency."""

    model: str
    recipe: str
    clean_accuracy: float | None
    relative_robustness: float | None
    mean_accuracy_drop: float | None
    negative_flip_rate: float | None
    """Over all items, clean and corrupted."""
    model_bytes: int | None
    latency_ms_p95: float | None
    alone: bool
    outcome: str

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    def cells(self) -> tuple[str, ...]:
        latency = quantity(self.latency_ms_p95, Unit.MILLISECONDS)
        return (
            self.model,
            self.recipe,
            quantity(self.clean_accuracy, Unit.SHARE),
            quantity(self.relative_robustness, Unit.RATIO),
            quantity(self.mean_accuracy_drop, Unit.POINTS),
            quantity(self.negative_flip_rate, Unit.SHARE),
            quantity(self.model_bytes, Unit.BYTES),
            latency if self.alone or self.latency_ms_p95 is None else f"{latency} *",
            self.outcome,
        )


def summary(results: Results) -> list[Line]:
    """Every model's reference, then its recipes, in the order of the sweep."""
    lines: list[Line] = []
    for (model, recipe), rows in by_cell(results.rows).items():
        clean = rows[0]
        if not any(line.model == model for line in lines):
            lines.append(_reference(clean))
        lines.append(
            Line(
                model=model,
                recipe=recipe,
                clean_accuracy=clean.accuracy,
                relative_robustness=clean.relative_robustness,
                mean_accuracy_drop=clean.mean_accuracy_drop,
                negative_flip_rate=_over_all(rows),
                model_bytes=clean.model_bytes,
                latency_ms_p95=clean.latency_ms_p95,
                alone=clean.alone,
                outcome=clean.outcome,
            )
        )
    return lines


def _reference(clean: Row) -> Line:
    return Line(
        model=clean.model,
        recipe=REFERENCE,
        clean_accuracy=clean.reference_accuracy,
        relative_robustness=clean.reference_relative_robustness,
        mean_accuracy_drop=clean.reference_mean_accuracy_drop,
        negative_flip_rate=None,
        model_bytes=None,
        latency_ms_p95=None,
        alone=True,
        outcome="–",
    )


def _over_all(rows: tuple[Row, ...]) -> float | None:
    items = sum(row.items for row in rows)
    return sum((row.negative_flip_rate or 0.0) * row.items for row in rows) / items if items else None
