"""The wrong answers of reference and artifact, sorted by `taxonomy`, and which kinds became more."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np
from edgevlm_runner.contract import BLIND, Answer, Item, Kind

from edgevlm_deploy.metrics.accuracy import RIGHT_FROM
from edgevlm_deploy.metrics.estimates import Subset, Table
from edgevlm_deploy.metrics.pairs import Pairs
from edgevlm_deploy.metrics.statistics import bootstrap
from edgevlm_deploy.metrics.tables import CategoryRow, FailedItem, Taxonomy
from edgevlm_deploy.metrics.taxonomy import Category, Failure, Rule, judge
from edgevlm_deploy.recipe import Evaluation

ASKED = (Kind.CLEAN, Kind.CORRUPTED, Kind.PERTURBED)
"""Kinds of item whose wrong answers are sorted: the others ask something else, or show something else."""
REFERENCE, ARTIFACT = "reference", "artifact"


def failures(pairs: Pairs, whose: str, blind: Mapping[str, str]) -> dict[int, Failure]:
    """Place among the pairs → the wrong answer of `whose` ("reference" or "artifact"), in item order.

    `blind`: base_id → what the same model says without the picture.
    """
    said = pairs.reference if whose == REFERENCE else pairs.artifact
    right = pairs.reference_accuracy if whose == REFERENCE else pairs.artifact_accuracy
    return {
        place: Failure(
            question=item.prompt,
            accepted=item.answers,
            said=said[place].text,
            reference=None if whose == REFERENCE else pairs.reference[place].text,
            blind=blind.get(item.base_id),
        )
        for place, item in enumerate(pairs.items)
        if right[place] < RIGHT_FROM and item.kind in ASKED
    }


def blind_answers(items: Sequence[Item], answers: Sequence[Answer]) -> dict[str, str]:
    """base_id → answer to the same question without its picture, where it was asked."""
    said = {answer.item_id: answer.text for answer in answers}
    return {item.base_id: said[item.id] for item in items if item.condition == BLIND and item.id in said}


def sort(
    pairs: Pairs,
    wholes: Sequence[Subset],
    blind: Mapping[str, Mapping[str, str]],
    evaluation: Evaluation,
) -> tuple[dict[str, Taxonomy], tuple[FailedItem, ...]]:
    """(name of each of `wholes` → failures by category, every failure of the artifact).

    `blind`: "reference" and "artifact" → base_id → answer without the picture. Both results are empty for a
    classifier: the rules are about words of questions, and it was asked none.
    """
    if not any(item.prompt for item in pairs.items):
        return {}, ()
    judged = {
        whose: {place: judge(one) for place, one in failures(pairs, whose, blind[whose]).items()}
        for whose in (REFERENCE, ARTIFACT)
    }
    inside = [whole for whole in wholes if whole.mask.any()]
    table = _table(pairs, inside, judged, evaluation)
    failed = tuple(
        FailedItem(
            id=pairs.items[place].id,
            group=pairs.items[place].group,
            condition=pairs.items[place].condition,
            category=rule.category if rule else None,
            rule=rule.name if rule else "",
            reason=rule.reason if rule else "The answer is empty.",
        )
        for place, rule in judged[ARTIFACT].items()
        if any(whole.mask[place] for whole in inside)
    )
    return {whole.name: _taxonomy(table, whole, judged) for whole in inside}, failed


Judged = Mapping[str, Mapping[int, Rule | None]]
"""Whose answers → place among the pairs → the rule that fits, None for an empty answer."""


def _table(pairs: Pairs, wholes: Sequence[Subset], judged: Judged, evaluation: Evaluation) -> Table:
    """Per category and item: failed so by the artifact, minus failed so by the reference."""
    columns = {"n": np.ones(len(pairs.items))} | {
        category.value: np.zeros(len(pairs.items)) for category in Category
    }
    for whose, sign in ((ARTIFACT, 1.0), (REFERENCE, -1.0)):
        for place, rule in judged[whose].items():
            if rule is not None:
                columns[rule.category.value][place] += sign
    totals = bootstrap(
        {
            f"{whole.name} {name}": np.where(whole.mask, column, 0.0)
            for whole in wholes
            for name, column in columns.items()
        },
        pairs.clusters,
        resamples=evaluation.bootstrap_resamples,
        seed=evaluation.seed,
    )
    return Table(pairs, columns, totals, evaluation.confidence_level)


def _taxonomy(table: Table, whole: Subset, judged: Judged) -> Taxonomy:
    counts = {
        whose: Counter(rule.category if rule else None for place, rule in found.items() if whole.mask[place])
        for whose, found in judged.items()
    }
    return Taxonomy(
        n=table.size(whole)[0],
        rows=tuple(
            CategoryRow(
                category=category,
                reference=counts[REFERENCE][category],
                artifact=counts[ARTIFACT][category],
                increase=table.difference(whole, category.value),
            )
            for category in Category
        ),
        reference_empty=counts[REFERENCE][None],
        artifact_empty=counts[ARTIFACT][None],
    )
