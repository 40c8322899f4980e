"""The results of a sweep: one row per model, recipe, corruption and severity, in one Parquet file."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from edgevlm_deploy.artifacts import atomic_path
from edgevlm_deploy.config import Frozen
from edgevlm_deploy.errors import DataError, MissingExtraError
from edgevlm_deploy.metrics import Estimate, Metrics
from edgevlm_deploy.metrics.tables import Comparison

CLEAN = "clean"
EXTRA = "pip install 'edgevlm[cluster]'"


class Row(Frozen):
    """One condition of one cell. Shares are in [0, 1]; `_low` and `_high` bound the interval of `level`."""

    sweep: str
    model: str
    recipe: str
    target: str
    corruption: str
    """"clean" for the clean items."""
    severity: int
    """0 for the clean items."""
    items: int
    level: float
    reference_accuracy: float | None
    accuracy: float | None
    accuracy_low: float | None
    accuracy_high: float | None
    accuracy_drop: float | None
    """Reference minus artifact, on the same items."""
    accuracy_drop_low: float | None
    accuracy_drop_high: float | None
    divergence_rate: float | None
    divergence_rate_low: float | None
    divergence_rate_high: float | None
    negative_flip_rate: float | None
    negative_flip_rate_low: float | None
    negative_flip_rate_high: float | None
    positive_flip_rate: float | None
    relative_robustness: float | None
    """Of the whole cell, like everything below."""
    reference_relative_robustness: float | None
    mean_accuracy_drop: float | None
    """Clean minus corrupted accuracy, mean over the conditions."""
    reference_mean_accuracy_drop: float | None
    worst_group_accuracy: float | None
    """Where there are groups on backgrounds; MCM where pictures show none of the classes."""
    reference_worst_group_accuracy: float | None
    mcm_auroc: float | None
    reference_mcm_auroc: float | None
    latency_ms_p50: float | None
    latency_ms_p95: float | None
    time_to_first_token_ms_p95: float | None
    alone: bool
    """Whether no other cell of the sweep ran beside it; if not, its latency is worth little."""
    peak_rss_bytes: int | None
    model_bytes: int
    """Graphs and their weights."""
    bundle_bytes: int
    outcome: str
    """Of the recipe's gates: pass, fail or inconclusive."""
    cpu: str
    bundle: str
    """Digest."""
    edgevlm_version: str


@dataclass(frozen=True)
class Results:
    sweep: str
    rows: tuple[Row, ...]
    failed: Mapping[str, str]
    """Name of a cell without results → why."""


_OF_THE_CELL = tuple(
    f"{whose}{name}"
    for name in ("relative_robustness", "mean_accuracy_drop", "worst_group_accuracy", "mcm_auroc")
    for whose in ("", "reference_")
)


def of_conditions(metrics: Metrics, cell: Mapping[str, Any]) -> tuple[Row, ...]:
    """The clean row and one per corrupted condition; `cell` has the fields that all of them share."""
    shared = {
        **cell,
        "level": metrics.level,
        **{name: _value(metrics, name) for name in _OF_THE_CELL},
    }
    clean = Comparison(
        n=metrics.clean_items,
        reference_accuracy=metrics.estimates["reference_accuracy"],
        artifact_accuracy=metrics.estimates["accuracy"],
        accuracy_drop=metrics.estimates["accuracy_drop"],
        divergence_rate=metrics.estimates["divergence_rate"],
        negative_flip_rate=metrics.estimates["negative_flip_rate"],
        positive_flip_rate=metrics.estimates["positive_flip_rate"],
    )
    return (
        _row(CLEAN, 0, clean, shared),
        *(_row(one.corruption, one.severity, one.comparison, shared) for one in metrics.conditions),
    )


def _value(metrics: Metrics, name: str) -> float | None:
    """None also where another kind of model has such a metric."""
    found = metrics.estimates.get(name)
    return None if found is None else found.value


def _row(corruption: str, severity: int, compared: Comparison, shared: Mapping[str, Any]) -> Row:
    return Row(
        corruption=corruption,
        severity=severity,
        items=compared.n,
        reference_accuracy=compared.reference_accuracy.value,
        positive_flip_rate=compared.positive_flip_rate.value,
        **_bounds("accuracy", compared.artifact_accuracy),
        **_bounds("accuracy_drop", compared.accuracy_drop),
        **_bounds("divergence_rate", compared.divergence_rate),
        **_bounds("negative_flip_rate", compared.negative_flip_rate),
        **shared,
    )


def _bounds(name: str, estimate: Estimate) -> dict[str, Any]:
    return {name: estimate.value, f"{name}_low": estimate.low, f"{name}_high": estimate.high}


def require_parquet() -> Any:
    """pyarrow.parquet. Raises MissingExtraError before anything is computed in vain."""
    try:
        from pyarrow import parquet
    except ImportError as error:
        raise MissingExtraError(f"A sweep's results need pyarrow: {EXTRA}") from error
    return parquet


def write(results: Results, path: Path) -> None:
    """Raises MissingExtraError without pyarrow, StorageError when there is no room."""
    parquet = require_parquet()
    import pyarrow

    kinds = {str: pyarrow.string(), int: pyarrow.int64(), float: pyarrow.float64(), bool: pyarrow.bool_()}
    schema = pyarrow.schema(
        [(name, kinds[_kind(field.annotation)]) for name, field in Row.model_fields.items()],
        metadata={"edgevlm_sweep": results.sweep, "edgevlm_failed": json.dumps(dict(results.failed))},
    )
    table = pyarrow.Table.from_pylist([dict(row) for row in results.rows], schema)
    with atomic_path(path) as temporary:
        parquet.write_table(table, temporary)


def _kind(annotation: Any) -> type:
    """`float` of `float | None`, which is a null in Parquet."""
    kinds = [one for one in get_args(annotation) or (annotation,) if one is not type(None)]
    assert len(kinds) == 1
    return kinds[0]  # type: ignore[no-any-return]


def read(path: Path) -> Results:
    """What `write` wrote. Raises DataError when the file is something else."""
    parquet = require_parquet()
    try:
        table = parquet.read_table(path)
        told = table.schema.metadata
        rows = tuple(Row.model_validate(row) for row in table.to_pylist())
        return Results(told[b"edgevlm_sweep"].decode(), rows, json.loads(told[b"edgevlm_failed"]))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path}: not the results of a sweep of this edgevlm ({error}).") from error


def by_cell(rows: Sequence[Row]) -> dict[tuple[str, str], tuple[Row, ...]]:
    """(model, recipe) → its rows, the clean one first."""
    found: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        found.setdefault((row.model, row.recipe), []).append(row)
    return {key: tuple(sorted(one, key=lambda row: row.severity > 0)) for key, one in found.items()}
