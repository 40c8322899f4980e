"""What a model answers without looking: the share of items whose answer stays when the picture goes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from edgevlm_runner.contract import BLIND, GREY, Answer, Kind
from numpy.typing import NDArray

from edgevlm_deploy.metrics.compared import COMPARED, compare, partition, per_item
from edgevlm_deploy.metrics.consistency import diverges
from edgevlm_deploy.metrics.estimates import Subset, Table, tabulate, undefined
from edgevlm_deploy.metrics.pairs import Pairs
from edgevlm_deploy.metrics.statistics import Estimate
from edgevlm_deploy.metrics.tables import BlindRow
from edgevlm_deploy.recipe import Evaluation

Floats = NDArray[np.float64]
WITHHELD = {BLIND: "", GREY: "grey_"}
"""Condition → how its estimates begin."""


def summary(pairs: Pairs, evaluation: Evaluation) -> tuple[dict[str, Estimate], tuple[BlindRow, ...]]:
    """Prior bias of both models and its increase, for pictures left out and for grey ones."""
    everything = Subset("blind", pairs.of(Kind.BLIND))
    conditions = partition(pairs, "withheld", everything, lambda item: item.condition)
    columns = {name: column for name, column in per_item(pairs).items() if name in COMPARED}
    columns["reference_prior"] = _unmoved(pairs, pairs.reference)
    columns["artifact_prior"] = _unmoved(pairs, pairs.artifact)
    columns["prior_increase"] = columns["artifact_prior"] - columns["reference_prior"]
    table = tabulate(pairs, columns, conditions.values(), evaluation)
    estimates: dict[str, Estimate] = {}
    for condition, prefix in WITHHELD.items():
        estimates |= _estimates(table, conditions.get(condition), prefix)
    return estimates, tuple(
        BlindRow(
            condition=condition,
            comparison=compare(table, subset),
            reference_prior_bias=table.rate(subset, "reference_prior"),
            artifact_prior_bias=table.rate(subset, "artifact_prior"),
            prior_bias_increase=table.difference(subset, "prior_increase"),
        )
        for condition, subset in conditions.items()
    )


def _estimates(table: Table, subset: Subset | None, prefix: str) -> dict[str, Estimate]:
    names = (f"{prefix}prior_bias", f"reference_{prefix}prior_bias", f"{prefix}prior_bias_increase")
    if subset is None:
        return dict.fromkeys(names, undefined(f"no {prefix.rstrip('_') or 'blind'} items"))
    return {
        names[0]: table.rate(subset, "artifact_prior"),
        names[1]: table.rate(subset, "reference_prior"),
        names[2]: table.difference(subset, "prior_increase"),
    }


def _unmoved(pairs: Pairs, answers: Sequence[Answer]) -> Floats:
    """1 where an item's answer is that of its clean item, float64 [N]."""
    same = (
        not diverges(answers[clean].text, answer.text)
        for clean, answer in zip(pairs.base, answers, strict=True)
    )
    return np.fromiter(same, dtype=np.float64)
