"""Every metric of one artifact: items × reference answers × artifact answers → Metrics."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from edgevlm_runner.contract import Answer, Certainty, Item, Kind
from numpy.typing import NDArray

from edgevlm_deploy.errors import DataError
from edgevlm_deploy.metrics import (
    abstention,
    background,
    confidence,
    corruption,
    failures,
    foreign,
    negation,
    prior,
    selectors,
    temperature,
)
from edgevlm_deploy.metrics.compared import compare, expected_calibration_error, partition, per_item
from edgevlm_deploy.metrics.consistency import Flip
from edgevlm_deploy.metrics.estimates import Subset, Table, mean, tabulate
from edgevlm_deploy.metrics.pairs import Pairs, pair
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
    clean, perturbed = Subset("clean", pairs.clean), Subset("perturbed", pairs.perturbed)
    corrupted = Subset("corrupted", pairs.corrupted)
    conditions = partition(pairs, "condition", corrupted, lambda item: item.condition)
    corruptions = partition(pairs, "corruption", corrupted, _name)
    perturbations = partition(pairs, "perturbation", perturbed, _name)
    groups = partition(pairs, "group", clean, lambda item: item.group)
    both = pairs.clean | corrupted.mask
    everything = Subset(selectors.EVERYTHING, both)
    certainty = certainty or Certainty()
    given = selectors.decided(pairs, certainty)
    columns = per_item(pairs, given)
    parts = (conditions, corruptions, perturbations, groups)
    subsets = [
        clean,
        corrupted,
        perturbed,
        everything,
        *(subset for part in parts for subset in part.values()),
    ]
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
    probed, forms = negation.summary(pairs, evaluation)
    unmoved, blind = prior.summary(pairs, evaluation)
    spurious, backgrounds = background.summary(pairs, evaluation)
    taxonomy, failed = failures.sort(
        pairs,
        (clean, corrupted, perturbed),
        {
            "reference": failures.blind_answers(items, reference),
            "artifact": failures.blind_answers(items, artifact),
        },
        evaluation,
    )
    compared = _compared(pairs, both, evaluation)
    changes = [kind for kind, is_clean in zip(pairs.flips, pairs.clean, strict=True) if is_clean]
    return Metrics(
        level=evaluation.confidence_level,
        bootstrap_resamples=evaluation.bootstrap_resamples,
        clean_items=int(pairs.clean.sum()),
        corrupted_items=int(corrupted.mask.sum()),
        perturbed_items=int(perturbed.mask.sum()),
        probed_items=int(pairs.of(Kind.NEGATED).sum()),
        background_items=int(pairs.of(Kind.BACKGROUND).sum()),
        foreign_items=len(apart[Kind.OOD].items),
        images=totals.clusters,
        estimates=_clean_estimates(table, clean)
        | abstention.estimates(table, clean, evaluation)
        | corruption.estimates(table, clean, corrupted, list(conditions.values()))
        | corruption.mean_errors(table, clean, corrupted, conditions, list(corruptions))
        | selectors.gated(compared[-1] if compared else None)
        | abstention.given(table, everything, given is not None)
        | {
            "perturbed_divergence_rate": table.rate(perturbed, "diverged"),
            "perturbed_negative_flip_rate": table.rate(perturbed, "negative"),
        }
        | probed
        | unmoved
        | spurious
        | foreign.summary(pairs, apart[Kind.OOD], evaluation),
        mcnemar_p=mcnemar(changes.count(Flip.NEGATIVE), changes.count(Flip.POSITIVE)),
        groups=tuple(
            GroupRow(group=name, comparison=compare(table, subset)) for name, subset in groups.items()
        ),
        conditions=tuple(
            corruption.condition_row(table, name, subset) for name, subset in conditions.items()
        ),
        corruptions=tuple(
            corruption.corruption_row(table, name, subset, clean, conditions)
            for name, subset in corruptions.items()
        ),
        perturbations=tuple(
            PerturbationRow(perturbation=name, comparison=compare(table, subset))
            for name, subset in perturbations.items()
        ),
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
        scaling=_scaling(pairs, apart[Kind.TEMPERATURE], both, certainty),
        selective=abstention.tables(pairs),
        selector=compared,
        mixture=selectors.drifted(pairs, apart[Kind.OOD]),
        flips=_flipped(pairs),
        taxonomy=taxonomy,
        failures=failed,
    )


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


def _compared(
    pairs: Pairs, both: NDArray[np.bool_], evaluation: Evaluation
) -> tuple[SelectorComparison, ...]:
    parts = {"clean": pairs.clean, selectors.EVERYTHING: both}
    found = (selectors.scored(pairs, part, mask) for part, mask in parts.items())
    return tuple(selectors.compare(one, evaluation) for one in found if one is not None)


def _scaling(
    pairs: Pairs, held_out: Pairs, both: NDArray[np.bool_], certainty: Certainty
) -> dict[str, Scaling]:
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
            _errors(one, right, (pairs.clean, both)) for one in (said, temperature.scaled(said, fitted))
        )
        has_corrupted = bool((both & ~pairs.clean).any())
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


def _errors(said: Floats, right: Floats, masks: Sequence[NDArray[np.bool_]]) -> list[float]:
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
