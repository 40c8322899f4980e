"""Every metric of one artifact: items × reference answers × artifact answers → Metrics."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from edgevlm_runner.contract import TEMPERATURE, Answer, Item
from numpy.typing import NDArray

from edgevlm_deploy.errors import DataError
from edgevlm_deploy.metrics import abstention, confidence, robustness, temperature
from edgevlm_deploy.metrics.consistency import Flip
from edgevlm_deploy.metrics.estimates import Statistic, Subset, Table, independent, mean, undefined
from edgevlm_deploy.metrics.pairs import Pairs, pair
from edgevlm_deploy.metrics.robustness import ratio
from edgevlm_deploy.metrics.statistics import Estimate, Totals, bootstrap, mcnemar, wilson
from edgevlm_deploy.metrics.tables import (
    Comparison,
    ConditionRow,
    CorruptionRow,
    FlippedItem,
    GroupRow,
    Metrics,
    PerturbationRow,
    Scaling,
)
from edgevlm_deploy.recipe import Evaluation

Floats = NDArray[np.float64]


def compute(
    items: Sequence[Item],
    reference: Sequence[Answer],
    artifact: Sequence[Answer],
    evaluation: Evaluation,
) -> Metrics:
    """All metrics of `artifact` against `reference` on `items`.

    Raises DataError when there is no clean item or when items and answers do not fit together.
    """
    pairs = pair([item for item in items if item.condition != TEMPERATURE], reference, artifact)
    held_out = pair([item for item in items if item.condition == TEMPERATURE], reference, artifact)
    if not pairs.clean.any():
        raise DataError("no clean items: every metric compares with them; put them into the table of items.")
    clean, perturbed = Subset("clean", pairs.clean), Subset("perturbed", pairs.perturbed)
    corrupted = Subset("corrupted", ~pairs.clean & ~pairs.perturbed)
    conditions = partition(pairs, "condition", corrupted, lambda item: item.condition)
    corruptions = partition(pairs, "corruption", corrupted, _name)
    perturbations = partition(pairs, "perturbation", perturbed, _name)
    groups = partition(pairs, "group", clean, lambda item: item.group)
    columns = per_item(pairs)
    parts = (conditions, corruptions, perturbations, groups)
    subsets = [clean, corrupted, perturbed, *(subset for part in parts for subset in part.values())]
    totals = bootstrap(
        {
            f"{subset.name} {name}": np.where(subset.mask, column, 0.0)
            for subset in subsets
            for name, column in columns.items()
            # Bins are needed for the two large subsets only.
            if subset in (clean, corrupted) or not name.startswith("bin ")
        },
        pairs.clusters,
        resamples=evaluation.bootstrap_resamples,
        seed=evaluation.seed,
    )
    table = Table(pairs, columns, totals, evaluation.confidence_level)
    changes = [kind for kind, is_clean in zip(pairs.flips, pairs.clean, strict=True) if is_clean]
    return Metrics(
        level=evaluation.confidence_level,
        bootstrap_resamples=evaluation.bootstrap_resamples,
        clean_items=int(pairs.clean.sum()),
        corrupted_items=int(corrupted.mask.sum()),
        perturbed_items=int(perturbed.mask.sum()),
        images=totals.clusters,
        estimates=_clean_estimates(table, clean)
        | abstention.estimates(table, clean, evaluation)
        | _corrupted_estimates(table, clean, corrupted, list(conditions.values()))
        | _mean_corruption_errors(table, clean, corrupted, conditions, list(corruptions))
        | {
            "perturbed_divergence_rate": table.rate(perturbed, "diverged"),
            "perturbed_negative_flip_rate": table.rate(perturbed, "negative"),
        },
        mcnemar_p=mcnemar(changes.count(Flip.NEGATIVE), changes.count(Flip.POSITIVE)),
        groups=tuple(
            GroupRow(group=name, comparison=compare(table, subset)) for name, subset in groups.items()
        ),
        conditions=tuple(_condition_row(table, name, subset) for name, subset in conditions.items()),
        corruptions=tuple(
            _corruption_row(table, name, subset, clean, conditions) for name, subset in corruptions.items()
        ),
        perturbations=tuple(
            PerturbationRow(perturbation=name, comparison=compare(table, subset))
            for name, subset in perturbations.items()
        ),
        reliability={
            whose: confidence.reliability(said[pairs.clean], right[pairs.clean])
            for whose, said, right in (
                ("reference", pairs.reference_confidence, pairs.reference_accuracy),
                ("artifact", pairs.artifact_confidence, pairs.artifact_accuracy),
            )
        },
        scaling=_scaling(pairs, held_out),
        selective=abstention.tables(pairs),
        flips=_flipped(pairs),
    )


def noise_floor(
    items: Sequence[Item], reference: Sequence[Answer], again: Sequence[Answer], evaluation: Evaluation
) -> Estimate:
    """Divergence rate of the reference from itself, run with another batch size or thread count."""
    pairs = pair(items, reference, again)
    columns = {"n": np.ones(len(items)), "diverged": pairs.diverged.astype(np.float64)}
    totals = bootstrap(
        {f"all {name}": column for name, column in columns.items()},
        pairs.clusters,
        resamples=evaluation.bootstrap_resamples,
        seed=evaluation.seed,
    )
    table = Table(pairs, columns, totals, evaluation.confidence_level)
    return table.rate(Subset("all", np.ones(len(items), dtype=np.bool_)), "diverged")


def _name(item: Item) -> str:
    """Corruption or perturbation of an item that is not clean."""
    return (item.corruption or ("", 0))[0]


def partition(pairs: Pairs, kind: str, of: Subset, key: Callable[[Item], str]) -> dict[str, Subset]:
    """Subsets of `of` by key, in the order in which keys first occur."""
    keys = [key(item) if inside else None for item, inside in zip(pairs.items, of.mask, strict=True)]
    return {
        value: Subset(f"{kind} {value!r}", np.array([one == value for one in keys], dtype=np.bool_))
        for value in dict.fromkeys(keys)
        if value is not None
    }


def per_item(pairs: Pairs) -> dict[str, Floats]:
    """Per-item numbers whose totals make up every metric."""
    reference_drop = pairs.reference_clean_accuracy - pairs.reference_accuracy
    artifact_drop = pairs.artifact_clean_accuracy - pairs.artifact_accuracy
    columns: dict[str, Floats] = {
        "n": np.ones(len(pairs.items)),
        "reference_accuracy": pairs.reference_accuracy,
        "artifact_accuracy": pairs.artifact_accuracy,
        "accuracy_drop": pairs.reference_accuracy - pairs.artifact_accuracy,
        "robustness_gap": robustness.robustness_gap(artifact_drop, reference_drop),
        "diverged": pairs.diverged.astype(np.float64),
        "negative": np.array([kind is Flip.NEGATIVE for kind in pairs.flips], dtype=np.float64),
        "positive": np.array([kind is Flip.POSITIVE for kind in pairs.flips], dtype=np.float64),
    }
    for whose, said, right in (
        ("reference", pairs.reference_confidence, pairs.reference_accuracy),
        ("artifact", pairs.artifact_confidence, pairs.artifact_accuracy),
    ):
        bins = confidence.bin_of(said)
        # Bins of equal size are of the clean items; a resample keeps the bins that were observed.
        masses = np.full(len(pairs.items), -1)
        masses[pairs.clean] = confidence.mass_bin_of(said[pairs.clean])
        for number in range(confidence.BINS):
            columns[f"bin {whose} {number}"] = np.where(bins == number, right - said, 0.0)
            columns[f"bin {whose} mass {number}"] = np.where(masses == number, right - said, 0.0)
        columns[f"bin {whose} brier"] = np.square(said - right)
    columns["bin brier_increase"] = columns["bin artifact brier"] - columns["bin reference brier"]
    return columns


def _ece(subset: Subset, whose: str) -> Statistic:
    """`whose`: "artifact" or "reference"; with " mass" after it, over bins of equal size."""
    bins = [f"{subset.name} bin {whose} {number}" for number in range(confidence.BINS)]
    return lambda totals: ratio(sum(abs(totals[name]) for name in bins), totals[f"{subset.name} n"])


def compare(table: Table, subset: Subset) -> Comparison:
    return Comparison(
        n=table.size(subset)[0],
        reference_accuracy=table.rate(subset, "reference_accuracy"),
        artifact_accuracy=table.rate(subset, "artifact_accuracy"),
        accuracy_drop=table.difference(subset, "accuracy_drop"),
        divergence_rate=table.rate(subset, "diverged"),
        negative_flip_rate=table.rate(subset, "negative"),
        positive_flip_rate=table.rate(subset, "positive"),
    )


def _clean_estimates(table: Table, clean: Subset) -> dict[str, Estimate]:
    pairs, mask = table.pairs, clean.mask
    compared = compare(table, clean)
    ece, reference_ece = _ece(clean, "artifact"), _ece(clean, "reference")
    adaptive, reference_adaptive = _ece(clean, "artifact mass"), _ece(clean, "reference mass")
    n, clusters = table.size(clean)

    def point(value: float | None) -> Estimate:
        return Estimate(value=value, low=None, high=None, n=n, clusters=clusters, method="point")

    return {
        "accuracy": compared.artifact_accuracy,
        "reference_accuracy": compared.reference_accuracy,
        "accuracy_drop": compared.accuracy_drop,
        "divergence_rate": compared.divergence_rate,
        "negative_flip_rate": compared.negative_flip_rate,
        "positive_flip_rate": compared.positive_flip_rate,
        "ece": table.calibration(clean, ece, 0.0),
        "reference_ece": table.calibration(clean, reference_ece, 0.0),
        "ece_increase": table.calibration(clean, lambda t: ece(t) - reference_ece(t), -1.0),
        "adaptive_ece": table.calibration(clean, adaptive, 0.0),
        "reference_adaptive_ece": table.calibration(clean, reference_adaptive, 0.0),
        "adaptive_ece_increase": table.calibration(
            clean, lambda t: adaptive(t) - reference_adaptive(t), -1.0
        ),
        "brier": table.statistic(clean, mean(clean, "bin artifact brier"), "no clean items"),
        "reference_brier": table.statistic(clean, mean(clean, "bin reference brier"), "no clean items"),
        "brier_increase": table.difference(clean, "bin brier_increase"),
        "mean_confidence": point(float(pairs.artifact_confidence[mask].mean())),
        "reference_mean_confidence": point(float(pairs.reference_confidence[mask].mean())),
        "mean_max_prob": point(float(pairs.artifact_max_prob[mask].mean())),
        "reference_mean_max_prob": point(float(pairs.reference_max_prob[mask].mean())),
    }


def _corrupted_estimates(
    table: Table, clean: Subset, corrupted: Subset, conditions: Sequence[Subset]
) -> dict[str, Estimate]:
    result = {
        "robustness_gap": table.difference(corrupted, "robustness_gap"),
        "corrupted_divergence_rate": table.rate(corrupted, "diverged"),
        "corrupted_negative_flip_rate": table.rate(corrupted, "negative"),
        "corrupted_positive_flip_rate": table.rate(corrupted, "positive"),
        "corrupted_ece": table.calibration(corrupted, _ece(corrupted, "artifact"), 0.0),
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


def _mean_corruption_errors(
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


def _condition_row(table: Table, condition: str, subset: Subset) -> ConditionRow:
    corruption, _, severity = condition.partition("/")
    return ConditionRow(
        condition=condition,
        corruption=corruption,
        severity=int(severity),
        comparison=compare(table, subset),
        robustness_gap=table.difference(subset, "robustness_gap"),
    )


def _corruption_row(
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


def _scaling(pairs: Pairs, held_out: Pairs) -> dict[str, Scaling]:
    """Temperatures fitted on `held_out`, and what they do to the calibration error of the clean items."""
    found = {}
    for whose in ("reference", "artifact"):
        said, right = (getattr(pairs, f"{whose}_{column}") for column in ("confidence", "accuracy"))
        fitted = temperature.fit(
            getattr(held_out, f"{whose}_confidence"), getattr(held_out, f"{whose}_accuracy")
        )
        if fitted is not None:
            clean, hits = said[pairs.clean], right[pairs.clean]
            before = confidence.expected_calibration_error(clean, hits)
            after = confidence.expected_calibration_error(temperature.scaled(clean, fitted), hits)
            assert before is not None and after is not None
            found[whose] = Scaling(
                temperature=fitted, n=len(held_out.items), ece_before=before, ece_after=after
            )
    return found


def _flipped(pairs: Pairs) -> tuple[FlippedItem, ...]:
    return tuple(
        FlippedItem(
            id=item.id,
            group=item.group,
            condition=item.condition,
            flip=kind,
            reference=before.text,
            artifact=now.text,
            first_divergence=position,
        )
        for item, kind, before, now, position in zip(
            pairs.items, pairs.flips, pairs.reference, pairs.artifact, pairs.first_divergences, strict=True
        )
        if kind is not None
    )
