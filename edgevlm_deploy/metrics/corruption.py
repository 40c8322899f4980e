"""What corruption costs: accuracy and relative robustness over all conditions, corruption errors, rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from edgevlm_deploy.metrics import robustness
from edgevlm_deploy.metrics.compared import compare, expected_calibration_error
from edgevlm_deploy.metrics.estimates import Statistic, Subset, Table, independent, mean, undefined
from edgevlm_deploy.metrics.statistics import Estimate, Totals, wilson
from edgevlm_deploy.metrics.tables import ConditionRow, CorruptionRow


def estimates(
    table: Table, clean: Subset, corrupted: Subset, conditions: Sequence[Subset]
) -> dict[str, Estimate]:
    result = {
        "robustness_gap": table.difference(corrupted, "robustness_gap"),
        "corrupted_divergence_rate": table.rate(corrupted, "diverged"),
        "corrupted_negative_flip_rate": table.rate(corrupted, "negative"),
        "corrupted_positive_flip_rate": table.rate(corrupted, "positive"),
        "corrupted_ece": table.calibration(corrupted, expected_calibration_error(corrupted, "artifact"), 0.0),
    }
    for prefix, whose in (("", "artifact"), ("reference_", "reference")):
        result |= {
            f"{prefix}{name}": estimate
            for name, estimate in _robustness(table, clean, corrupted, conditions, whose).items()
        }
    return result


def _robustness(
    table: Table, clean: Subset, corrupted: Subset, conditions: Sequence[Subset], whose: str
) -> dict[str, Estimate]:
    """RS, mean drop and corrupted accuracy of one model. Every condition counts the same."""
    column, why = f"{whose}_accuracy", "no corrupted items"
    clean_mean, means = mean(clean, column), [mean(condition, column) for condition in conditions]
    if not means:
        names = ("corrupted_accuracy", "relative_robustness", "mean_accuracy_drop")
        return {name: undefined(why) for name in names}

    def corrupted_mean(totals: Totals) -> Any:
        return sum(one(totals) for one in means) / len(means)

    def relative(totals: Totals) -> Any:
        return robustness.relative_robustness(clean_mean(totals), [one(totals) for one in means])

    def drop(totals: Totals) -> Any:
        return robustness.mean_accuracy_drop(clean_mean(totals), [one(totals) for one in means])

    trials = independent(*table.size(corrupted))
    base = clean_mean(table.totals.observed)
    low, high = wilson(corrupted_mean(table.totals.observed) * trials, trials, table.level)
    scaled = (low / base, high / base) if base > 0 else None
    no_ratio = f"the {whose}'s clean accuracy is zero"
    return {
        "corrupted_accuracy": table.statistic(corrupted, corrupted_mean, why, (low, high)),
        "relative_robustness": table.statistic(corrupted, relative, no_ratio, scaled),
        "mean_accuracy_drop": table.statistic(corrupted, drop, why, (base - high, base - low)),
    }


def _corruption_error(corruption: str, conditions: Mapping[str, Subset]) -> Statistic:
    """CE of one corruption as a function of totals."""

    def statistic(totals: Totals) -> Any:
        artifact = _by_severity(totals, corruption, conditions, "artifact")
        return robustness.corruption_error(
            artifact, _by_severity(totals, corruption, conditions, "reference")
        )

    return statistic


def _relative_corruption_error(corruption: str, conditions: Mapping[str, Subset], clean: Subset) -> Statistic:
    """Relative CE of one corruption as a function of totals."""

    def statistic(totals: Totals) -> Any:
        return robustness.relative_corruption_error(
            _by_severity(totals, corruption, conditions, "artifact"),
            mean(clean, "artifact_accuracy")(totals),
            _by_severity(totals, corruption, conditions, "reference"),
            mean(clean, "reference_accuracy")(totals),
        )

    return statistic


def _by_severity(
    totals: Totals, corruption: str, conditions: Mapping[str, Subset], whose: str
) -> dict[int, Any]:
    return {
        int(name.partition("/")[2]): mean(subset, f"{whose}_accuracy")(totals)
        for name, subset in conditions.items()
        if name.partition("/")[0] == corruption
    }


def mean_errors(
    table: Table,
    clean: Subset,
    corrupted: Subset,
    conditions: Mapping[str, Subset],
    corruptions: Sequence[str],
) -> dict[str, Estimate]:
    """mCE and relative mCE with the reference as base: above 1 the artifact suffers more."""
    absolute = [_corruption_error(name, conditions) for name in corruptions]
    relative = [_relative_corruption_error(name, conditions, clean) for name in corruptions]
    why = "the reference loses nothing under some corruption" if corruptions else "no corrupted items"

    def mean_of(statistics: Sequence[Statistic]) -> Statistic:
        return lambda totals: robustness.mean_corruption_error([one(totals) for one in statistics])

    return {
        "mce": table.statistic(corrupted, mean_of(absolute), why),
        "relative_mce": table.statistic(corrupted, mean_of(relative), why),
    }


def condition_row(table: Table, condition: str, subset: Subset) -> ConditionRow:
    corruption, _, severity = condition.partition("/")
    return ConditionRow(
        condition=condition,
        corruption=corruption,
        severity=int(severity),
        comparison=compare(table, subset),
        robustness_gap=table.difference(subset, "robustness_gap"),
    )


def corruption_row(
    table: Table, corruption: str, subset: Subset, clean: Subset, conditions: Mapping[str, Subset]
) -> CorruptionRow:
    observed = table.totals.observed
    return CorruptionRow(
        corruption=corruption,
        comparison=compare(table, subset),
        robustness_gap=table.difference(subset, "robustness_gap"),
        corruption_error=_corruption_error(corruption, conditions)(observed),
        relative_corruption_error=_relative_corruption_error(corruption, conditions, clean)(observed),
    )
