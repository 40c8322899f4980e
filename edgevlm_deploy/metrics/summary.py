"""Every metric of one artifact: items × reference answers × artifact answers → Metrics."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from edgevlm_runner.contract import Answer, Certainty, Item, Kind
from numpy.typing import NDArray

from edgevlm_deploy.errors import DataError
from edgevlm_deploy.metrics import abstention, confidence, corruption, failures, selectors, temperature
from edgevlm_deploy.metrics.compared import compare, expected_calibration_error, partition, per_item
from edgevlm_deploy.metrics.consistency import Flip
from edgevlm_deploy.metrics.estimates import Subset, Table, mean, tabulate
from edgevlm_deploy.metrics.pairs import Pairs, pair
from edgevlm_deploy.metrics.probes import background, foreign, negation, prior
from edgevlm_deploy.metrics.statistics import Estimate, bootstrap, mcnemar
from edgevlm_deploy.metrics.tables import (
    FlippedItem,
    GroupRow,
    Metrics,
    PerturbationRow,
    Scaling,
    SelectorComparison,
)
from edgevlm_deploy.recipe import Evaluation

Floats = NDArray[np.float64]
Flags = NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Parts:
    """The items that most metrics are about, and their partitions by key."""

    clean: Subset
    corrupted: Subset
    perturbed: Subset
    everything: Subset
    """Clean and corrupted."""
    conditions: dict[str, Subset]
    corruptions: dict[str, Subset]
    perturbations: dict[str, Subset]
    groups: dict[str, Subset]

    @classmethod
    def of(cls, pairs: Pairs) -> Parts:
        clean, perturbed = Subset("clean", pairs.clean), Subset("perturbed", pairs.perturbed)
        corrupted = Subset("corrupted", pairs.corrupted)
        return cls(
            clean=clean,
            corrupted=corrupted,
            perturbed=perturbed,
            everything=Subset(selectors.EVERYTHING, pairs.clean | pairs.corrupted),
            conditions=partition(pairs, "condition", corrupted, lambda item: item.condition),
            corruptions=partition(pairs, "corruption", corrupted, _name),
            perturbations=partition(pairs, "perturbation", perturbed, _name),
            groups=partition(pairs, "group", clean, lambda item: item.group),
        )

    @property
    def subsets(self) -> tuple[Subset, ...]:
        named = (self.conditions, self.corruptions, self.perturbations, self.groups)
        whole = (self.clean, self.corrupted, self.perturbed, self.everything)
        return (*whole, *(subset for part in named for subset in part.values()))


def compute(
    items: Sequence[Item],
    reference: Sequence[Answer],
    artifact: Sequence[Answer],
    evaluation: Evaluation,
    certainty: Certainty | None = None,
) -> Metrics:
    """All metrics of `artifact` against `reference` on `items`.

    certainty: what the artifact's bundle does with its confidence; None: nothing.

    Raises DataError when there is no clean item or when items and answers do not fit together.
    """
    apart = {
        kind: pair([item for item in items if item.kind is kind], reference, artifact)
        for kind in (Kind.TEMPERATURE, Kind.OOD)
    }
    pairs = pair([item for item in items if item.kind not in apart], reference, artifact)
    if not pairs.clean.any():
        raise DataError("no clean items: every metric compares with them; put them into the table of items.")
    certainty, parts = certainty or Certainty(), Parts.of(pairs)
    given = selectors.decided(pairs, certainty)
    table = _table(pairs, parts, given, evaluation)
    probed, forms = negation.summary(pairs, evaluation)
    unmoved, blind = prior.summary(pairs, evaluation)
    spurious, backgrounds = background.summary(pairs, evaluation)
    foreign_estimates = foreign.summary(pairs, apart[Kind.OOD], evaluation)
    alone = {
        whose: failures.blind_answers(items, said)
        for whose, said in (("reference", reference), ("artifact", artifact))
    }
    taxonomy, failed = failures.sort(
        pairs, (parts.clean, parts.corrupted, parts.perturbed), alone, evaluation
    )
    compared = _compared(pairs, parts, evaluation)
    changes = [kind for kind, is_clean in zip(pairs.flips, pairs.clean, strict=True) if is_clean]
    return Metrics(
        level=evaluation.confidence_level,
        bootstrap_resamples=evaluation.bootstrap_resamples,
        clean_items=int(pairs.clean.sum()),
        corrupted_items=int(pairs.corrupted.sum()),
        perturbed_items=int(pairs.perturbed.sum()),
        probed_items=int(pairs.of(Kind.NEGATED).sum()),
        background_items=int(pairs.of(Kind.BACKGROUND).sum()),
        foreign_items=len(apart[Kind.OOD].items),
        images=table.totals.clusters,
        estimates=_estimates(table, parts, evaluation)
        | selectors.gated(compared[-1] if compared else None)
        | abstention.given(table, parts.everything, given is not None)
        | (probed | unmoved | spurious | foreign_estimates),
        mcnemar_p=mcnemar(changes.count(Flip.NEGATIVE), changes.count(Flip.POSITIVE)),
        **_rows(table, parts),
        negation=forms,
        blind=blind,
        backgrounds=backgrounds,
        reliability={
            whose: confidence.reliability(said[pairs.clean], right[pairs.clean])
            for whose, said, right in (
                ("reference", pairs.reference_confidence, pairs.reference_accuracy),
                ("artifact", pairs.artifact_confidence, pairs.artifact_accuracy),
            )
        },
        scaling=_scaling(pairs, apart[Kind.TEMPERATURE], parts, certainty),
        selective=abstention.tables(pairs),
        selector=compared,
        mixture=selectors.drifted(pairs, apart[Kind.OOD]),
        flips=_flipped(pairs),
        taxonomy=taxonomy,
        failures=failed,
    )


def _table(pairs: Pairs, parts: Parts, given: Flags | None, evaluation: Evaluation) -> Table:
    columns = per_item(pairs, given)
    totals = bootstrap(
        {
            f"{subset.name} {name}": np.where(subset.mask, column, 0.0)
            for subset in parts.subsets
            for name, column in columns.items()
            # Bins are needed for the two large subsets only.
            if subset in (parts.clean, parts.corrupted) or not name.startswith("bin ")
        },
        pairs.clusters,
        resamples=evaluation.bootstrap_resamples,
        seed=evaluation.seed,
    )
    return Table(pairs, columns, totals, evaluation.confidence_level)


def _estimates(table: Table, parts: Parts, evaluation: Evaluation) -> dict[str, Estimate]:
    """Of clean, corrupted and perturbed items."""
    clean, corrupted = parts.clean, parts.corrupted
    return (
        _clean_estimates(table, clean)
        | abstention.estimates(table, clean, evaluation)
        | corruption.estimates(table, clean, corrupted, list(parts.conditions.values()))
        | corruption.mean_errors(table, clean, corrupted, parts.conditions, list(parts.corruptions))
        | {
            "perturbed_divergence_rate": table.rate(parts.perturbed, "diverged"),
            "perturbed_negative_flip_rate": table.rate(parts.perturbed, "negative"),
        }
    )


def _rows(table: Table, parts: Parts) -> dict[str, Any]:
    """The comparison per group, condition, corruption and perturbation; keys are fields of Metrics."""
    return {
        "groups": tuple(
            GroupRow(group=name, comparison=compare(table, subset)) for name, subset in parts.groups.items()
        ),
        "conditions": tuple(
            corruption.condition_row(table, name, subset) for name, subset in parts.conditions.items()
        ),
        "corruptions": tuple(
            corruption.corruption_row(table, name, subset, parts.clean, parts.conditions)
            for name, subset in parts.corruptions.items()
        ),
        "perturbations": tuple(
            PerturbationRow(perturbation=name, comparison=compare(table, subset))
            for name, subset in parts.perturbations.items()
        ),
    }


def noise_floor(
    items: Sequence[Item], reference: Sequence[Answer], again: Sequence[Answer], evaluation: Evaluation
) -> Estimate:
    """Divergence rate of the reference from itself, run with another batch size or thread count."""
    pairs = pair(items, reference, again)
    columns = {"n": np.ones(len(items)), "diverged": pairs.diverged.astype(np.float64)}
    everything = Subset("all", np.ones(len(items), dtype=np.bool_))
    return tabulate(pairs, columns, [everything], evaluation).rate(everything, "diverged")


def _name(item: Item) -> str:
    """Corruption or perturbation of an item that is not clean."""
    return (item.corruption or ("", 0))[0]


def _clean_estimates(table: Table, clean: Subset) -> dict[str, Estimate]:
    pairs, mask = table.pairs, clean.mask
    compared = compare(table, clean)
    ece, reference_ece = (
        expected_calibration_error(clean, "artifact"),
        expected_calibration_error(clean, "reference"),
    )
    adaptive, reference_adaptive = (
        expected_calibration_error(clean, "artifact mass"),
        expected_calibration_error(clean, "reference mass"),
    )
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


def _compared(pairs: Pairs, parts: Parts, evaluation: Evaluation) -> tuple[SelectorComparison, ...]:
    found = (selectors.scored(pairs, one.name, one.mask) for one in (parts.clean, parts.everything))
    return tuple(selectors.compare(one, evaluation) for one in found if one is not None)


def _scaling(pairs: Pairs, held_out: Pairs, parts: Parts, certainty: Certainty) -> dict[str, Scaling]:
    """Temperatures, and what they do to the calibration error of the items that are judged.

    The artifact's is the one that its bundle ships, where it ships one; otherwise they are fitted on
    `held_out`.
    """
    found = {}
    for whose in ("reference", "artifact"):
        said, right = (getattr(pairs, f"{whose}_{column}") for column in ("confidence", "accuracy"))
        shipped, n = whose == "artifact" and certainty.fitted_on > 0, len(held_out.items)
        fitted = temperature.fit(
            getattr(held_out, f"{whose}_confidence"), getattr(held_out, f"{whose}_accuracy")
        )
        if shipped:
            fitted, n = certainty.temperature, certainty.fitted_on
        if fitted is None:
            continue
        before, after = (
            _errors(one, right, (parts.clean.mask, parts.everything.mask))
            for one in (said, temperature.scaled(said, fitted))
        )
        has_corrupted = bool(parts.corrupted.mask.any())
        found[whose] = Scaling(
            temperature=fitted,
            n=n,
            ece_before=before[0],
            ece_after=after[0],
            shipped=shipped,
            all_before=before[1] if has_corrupted else None,
            all_after=after[1] if has_corrupted else None,
        )
    return found


def _errors(said: Floats, right: Floats, masks: Sequence[Flags]) -> list[float]:
    errors = [confidence.expected_calibration_error(said[mask], right[mask]) for mask in masks]
    return [one for one in errors if one is not None]


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
        if kind is not None and not item.unseen
    )
