"""Every metric of several artifacts as tables: a column an artifact, a row a metric, grouped by subject."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from benchmarks.page import Table
from edgevlm_deploy.metrics.statistics import Estimate
from edgevlm_deploy.metrics.tables import Comparison, Metrics
from edgevlm_deploy.recipe import GateName
from edgevlm_deploy.report.quantity import MINUS, MISSING, UNITS, Unit

Columns = Mapping[str, Metrics]
"""What stands above a column → that artifact's metrics, all on the same items."""
Row = tuple[str, ...]

GROUPS: Mapping[str, tuple[str, ...]] = {
    "Accuracy and flips": (
        *("accuracy", "accuracy_drop", "divergence_rate", "negative_flip_rate", "positive_flip_rate"),
    ),
    "Confidence": (
        *("ece", "ece_increase", "adaptive_ece", "adaptive_ece_increase", "brier", "brier_increase"),
        *("mean_confidence", "mean_max_prob"),
    ),
    "Answering only when sure": ("coverage_at_risk_5", "coverage_at_risk_5_drop"),
    "The Selector, clean and corrupted": (
        *("selector_coverage_at_risk_1", "selector_gain_at_risk_1"),
        *("selector_coverage_at_risk_5", "selector_gain_at_risk_5", "answered_share", "answered_risk"),
    ),
    "Corruption": (
        *("corrupted_accuracy", "mean_accuracy_drop", "relative_robustness", "mce", "relative_mce"),
        *("robustness_gap", "corrupted_divergence_rate", "corrupted_negative_flip_rate"),
        *("corrupted_positive_flip_rate", "corrupted_ece"),
    ),
    "The right class among five": ("top_5_accuracy", "top_5_accuracy_drop"),
    "Pictures of none of the classes": (
        *("mcm_auroc", "mcm_auroc_drop", "mcm_fpr_at_least_95", "mcm_fpr_at_least_95_increase"),
        *("mcm_fpr_closest_95", "mcm_fpr_closest_95_increase", "energy_auroc", "energy_auroc_drop"),
        *("max_logit_auroc", "max_logit_auroc_drop", "entropy_auroc", "entropy_auroc_drop"),
    ),
    "Perturbation": ("perturbed_divergence_rate", "perturbed_negative_flip_rate"),
    "Negation and prior bias": (
        *("negation_success", "negation_success_drop", "lenient_negation_success"),
        *("negation_divergence_rate", "prior_bias", "prior_bias_increase"),
    ),
    "Background": (
        *("background_accuracy", "background_gap", "relative_spurious_gap"),
        *("relative_spurious_gap_increase", "background_divergence_rate", "worst_group_accuracy"),
        "worst_group_accuracy_drop",
    ),
}
"""Heading → metrics below it, in order. Metrics that stand nowhere here come under `OTHER`."""
OTHER = "Other metrics"

CHANGES = ("drop", "gap", "increase", "gain")
"""Words in the name of a paired difference between artifact and reference, or Selector and MaxProb."""
NO_CHANGES = ("mean_accuracy_drop", "relative_spurious_gap")
"""Named like differences, but not from the reference."""
SAME: Mapping[str, float] = {"mce": 1.0, "relative_mce": 1.0}
"""What a metric is without a change, where that is not zero: these have the reference as their base."""


def tables(columns: Columns) -> list[Table]:
    """A table per group that has a row with a value."""
    grouped = {name for names in GROUPS.values() for name in names}
    named = (name for metrics in columns.values() for name in metrics.estimates)
    rest = dict.fromkeys(name for name in named if name not in grouped and not name.startswith("reference_"))
    found = []
    for title, names in (*GROUPS.items(), (OTHER, tuple(rest))):
        rows = [*_estimates(columns, names), *_MORE.get(title, lambda _: iter(()))(columns)]
        if rows:
            found.append(Table(title, ("metric", *columns), tuple(rows), words=1))
    return found


def _estimates(columns: Columns, names: tuple[str, ...]) -> Iterator[Row]:
    for name in names:
        cells = [metrics.estimates.get(name) for metrics in columns.values()]
        if any(one is not None and one.value is not None for one in cells):
            unit, same = _unit(name), _same(name)
            yield _row(name, unit, (cell(one, unit, differs(one, same)) for one in cells))


def _row(name: str, unit: Unit, cells: Iterator[str]) -> Row:
    return (f"{name}, {unit.value.strip()}" if unit.value else name, *cells)


def _same(name: str) -> float | None:
    """The value of no change, for a metric that is a change."""
    is_change = any(word in name for word in CHANGES) and name not in NO_CHANGES
    return SAME.get(name, 0.0 if is_change else None)


def differs(estimate: Estimate | None, same: float | None) -> bool:
    """Whether the interval leaves out the value of no change; where there is none, it does not."""
    if estimate is None or same is None or estimate.low is None or estimate.high is None:
        return False
    return estimate.low > same or estimate.high < same


def cell(estimate: Estimate | None, unit: Unit, bold: bool = False) -> str:
    """As in "89.29 [87.96, 90.47]"; the unit stands in the row's name."""
    if estimate is None or estimate.value is None:
        return MISSING
    value = _number(estimate.value, unit)
    if estimate.low is not None and estimate.high is not None:
        value += f" [{_number(estimate.low, unit)}, {_number(estimate.high, unit)}]"
    return f"**{value}**" if bold else value


def _number(value: float, unit: Unit) -> str:
    """Shares and points in hundredths of a per cent, ratios in thousandths."""
    scale, decimals = (100, 2) if unit in (Unit.SHARE, Unit.POINTS) else (1, 3)
    return f"{round(value * scale, decimals) + 0.0:.{decimals}f}".replace("-", MINUS)


def _unit(name: str) -> Unit:
    """Of a gate's metric where it is one; differences of shares in points, other shares in per cent."""
    gated = {gate.value: unit for gate, unit in UNITS.items()}
    if name in gated:
        return gated[name]
    if any(word in name for word in ("mce", "brier", "relative", "auroc")):
        return Unit.RATIO
    return Unit.POINTS if any(word in name for word in CHANGES) else Unit.SHARE


def _of_comparison(
    columns: Columns, comparisons: Callable[[Metrics], Mapping[str, Comparison]], what: str
) -> Iterator[Row]:
    """A row per kind of item: how many are right, or for "divergence" how many answers changed."""
    found = [comparisons(metrics) for metrics in columns.values()]
    for name in dict.fromkeys(name for one in found for name in one):
        there = [one.get(name) for one in found]
        if what != "divergence":
            cells = (
                cell(one.artifact_accuracy, Unit.SHARE, differs(one.accuracy_drop, 0.0)) if one else MISSING
                for one in there
            )
        else:
            cells = (cell(one.divergence_rate, Unit.SHARE) if one else MISSING for one in there)
        yield _row(f"{what}, {name}", Unit.SHARE, cells)


def _kinds(columns: Columns) -> Iterator[Row]:
    return _of_comparison(columns, lambda one: {row.group: row.comparison for row in one.groups}, "accuracy")


def _corruptions(columns: Columns) -> Iterator[Row]:
    def found(one: Metrics) -> dict[str, Comparison]:
        return {row.corruption: row.comparison for row in one.corruptions}

    return _of_comparison(columns, found, "divergence")


def _perturbations(columns: Columns) -> Iterator[Row]:
    def found(one: Metrics) -> dict[str, Comparison]:
        return {row.perturbation.removeprefix("perturbed:"): row.comparison for row in one.perturbations}

    return _of_comparison(columns, found, "divergence")


def _forms(columns: Columns) -> Iterator[Row]:
    for what in ("success", "divergence"):
        yield from _of_comparison(
            columns, lambda one: {row.form: row.comparison for row in one.negation}, what
        )


def _scaling(columns: Columns) -> Iterator[Row]:
    """What one number does to the calibration error, as the bundle ships it or as it would be fitted."""
    found = [metrics.scaling.get("artifact") for metrics in columns.values()]
    rows = {
        "temperature": [one and f"{one.temperature:.2f}" for one in found],
        "ece scaled by it, %": [one and _number(one.ece_after, Unit.SHARE) for one in found],
        "clean and corrupted: ece, %": [_share(one and one.all_before) for one in found],
        "clean and corrupted: ece scaled, %": [_share(one and one.all_after) for one in found],
    }
    for name, cells in rows.items():
        if any(cells):
            yield (name, *(one or MISSING for one in cells))


def _share(value: float | None) -> str | None:
    return None if value is None else _number(value, Unit.SHARE)


def _selective(columns: Columns) -> Iterator[Row]:
    """Ranked by MaxProb, on clean items. Φ: each half of the pictures by the other half's threshold."""
    found = [metrics.selective.get("artifact") for metrics in columns.values()]
    first = next((one for one in found if one is not None), None)
    if first is None:
        return
    for place, point in enumerate(first.points):
        cells = (_number(one.points[place].coverage, Unit.SHARE) if one else MISSING for one in found)
        yield (f"C@{point.risk:.1%}, %".replace(".0%", "%"), *cells)
    yield ("risk–coverage AUC × 100", *(f"{one.auc:.2f}" if one else MISSING for one in found))
    yield ("AURC", *(f"{one.aurc:.4f}" if one else MISSING for one in found))
    for place, reliability in enumerate(first.reliability):
        values = (_number(one.reliability[place].value, Unit.RATIO) if one else MISSING for one in found)
        yield (f"Φ at cost {reliability.cost:g}", *values)


def _selector(columns: Columns) -> Iterator[Row]:
    """Areas under risk over coverage by either score."""
    found = [metrics.selector[-1] if metrics.selector else None for metrics in columns.values()]
    if any(found):
        yield ("AUC × 100 by MaxProb", *(f"{one.max_prob.auc:.2f}" if one else MISSING for one in found))
        yield ("AUC × 100 by the Selector", *(f"{one.selector.auc:.2f}" if one else MISSING for one in found))


_MORE: Mapping[str, Callable[[Columns], Iterator[Row]]] = {
    "Accuracy and flips": _kinds,
    "Confidence": _scaling,
    "Answering only when sure": _selective,
    "The Selector, clean and corrupted": _selector,
    "Corruption": _corruptions,
    "Perturbation": _perturbations,
    "Negation and prior bias": _forms,
}
"""Rows that are no estimates of their own, below those of the group."""


TIMED = (GateName.LATENCY_MS_P95, GateName.TIME_TO_FIRST_TOKEN_MS_P95, GateName.PEAK_RSS_BYTES)
"""Gates that other benchmarks are for."""


def gates(verdicts: Mapping[str, Mapping[str, str]]) -> Table:
    """Column → gate → outcome, the verdict last."""
    names = dict.fromkeys(name for found in verdicts.values() for name in found if name not in TIMED)
    rows = [(name, *(_outcome(found.get(name, MISSING)) for found in verdicts.values())) for name in names]
    return Table("Gates", ("gate", *verdicts), tuple(rows), words=1)


def _outcome(outcome: str) -> str:
    return "**fail**" if outcome == "fail" else outcome
