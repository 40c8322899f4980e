"""What negation costs: success on probes of the items whose clean question the reference answers correctly.

The definition of success is in `replies`; what a probe's "accuracy" is anywhere is success by the strict
scorer. The affirmative control is a form with a row of its own, and no part of any mean.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from edgevlm_runner.contract import Answer, Kind
from numpy.typing import NDArray

from edgevlm_deploy.metrics.accuracy import RIGHT_FROM
from edgevlm_deploy.metrics.compared import COMPARED, compare, partition, per_item
from edgevlm_deploy.metrics.estimates import Subset, Table, independent, mean, tabulate, undefined
from edgevlm_deploy.metrics.pairs import Pairs
from edgevlm_deploy.metrics.probes.replies import lenient
from edgevlm_deploy.metrics.statistics import Estimate, Totals, paired_difference, wilson
from edgevlm_deploy.metrics.tables import NegationRow
from edgevlm_deploy.recipe import Evaluation, ProbeForm

Floats = NDArray[np.float64]

CONTROL = ProbeForm.TRUE_YN.value
SUCCESS = {
    "negation_success": "artifact_accuracy",
    "reference_negation_success": "reference_accuracy",
    "lenient_negation_success": "artifact_lenient",
    "reference_lenient_negation_success": "reference_lenient",
    "negation_divergence_rate": "diverged",
}
"""Estimate → column that it is the mean of, over forms."""
NAMES = (*SUCCESS, "negation_success_drop", "blind_negation_success", "reference_blind_negation_success")


def counted(pairs: Pairs) -> Subset:
    """Probes of items that the reference answers correctly when nothing is negated."""
    return Subset("negated", pairs.of(Kind.NEGATED) & (pairs.reference_clean_accuracy >= RIGHT_FROM))


def summary(pairs: Pairs, evaluation: Evaluation) -> tuple[dict[str, Estimate], tuple[NegationRow, ...]]:
    """Estimates and one row per form; every form counts the same, as published."""
    probes = counted(pairs)
    asked = partition(pairs, "asked", Subset("asked", pairs.of(Kind.NEGATED)), lambda item: item.form)
    if not probes.mask.any():
        why = "the reference answers no probed item correctly" if asked else "no negation probes"
        return dict.fromkeys(NAMES, undefined(why)), ()
    twins = Subset("blind", pairs.of(Kind.NEGATED_BLIND) & (pairs.reference_clean_accuracy >= RIGHT_FROM))
    forms = partition(pairs, "negated", probes, lambda item: item.form)
    blind = partition(pairs, "blind", twins, lambda item: item.form)
    columns = {name: column for name, column in per_item(pairs).items() if name in COMPARED}
    columns["reference_lenient"] = _lenient(pairs, pairs.reference)
    columns["artifact_lenient"] = _lenient(pairs, pairs.artifact)
    table = tabulate(pairs, columns, [*forms.values(), *blind.values()], evaluation)
    return _estimates(table, _negative(forms), _negative(blind)), tuple(
        _row(table, name, int(subset.mask.sum()), forms[name], blind.get(name))
        for name, subset in asked.items()
        if name in forms
    )


def _negative(forms: Mapping[str, Subset]) -> list[Subset]:
    """Without the control."""
    return [subset for name, subset in forms.items() if name != CONTROL]


def _estimates(table: Table, forms: Sequence[Subset], blind: Sequence[Subset]) -> dict[str, Estimate]:
    why, unseen = "no form but the control", "no probes without pictures"
    found = {name: _mean(table, forms, column, why) for name, column in SUCCESS.items()}
    return found | {
        "negation_success_drop": _mean(table, forms, "accuracy_drop", why),
        "blind_negation_success": _mean(table, blind, "artifact_accuracy", unseen),
        "reference_blind_negation_success": _mean(table, blind, "reference_accuracy", unseen),
    }


def _mean(table: Table, forms: Sequence[Subset], column: str, why: str) -> Estimate:
    """Mean over forms of a column's mean. The closed form pools the probes of all forms."""
    if not forms:
        return undefined(why)
    statistics = [mean(form, column) for form in forms]

    def over_forms(totals: Totals) -> Any:
        return sum(one(totals) for one in statistics) / len(statistics)

    whole = Subset("probes", np.logical_or.reduce([form.mask for form in forms]))
    n, clusters = table.size(whole)
    trials = independent(n, clusters)
    value = over_forms(table.totals.observed)
    if column == "accuracy_drop":
        square = sum(float(np.square(table.columns[column][form.mask]).mean()) for form in forms) / len(forms)
        closed = paired_difference(value * trials, square * trials, trials, table.level)
    else:
        closed = wilson(value * trials, trials, table.level)
    return table.statistic(whole, over_forms, why, closed)


def _row(table: Table, form: str, asked: int, subset: Subset, blind: Subset | None) -> NegationRow:
    return NegationRow(
        form=form,
        asked=asked,
        comparison=compare(table, subset),
        reference_lenient=table.rate(subset, "reference_lenient"),
        artifact_lenient=table.rate(subset, "artifact_lenient"),
        blind=compare(table, blind) if blind is not None else None,
    )


def _lenient(pairs: Pairs, answers: Sequence[Answer]) -> Floats:
    """1 where the lenient scorer calls the reply to a probe a success, float64 [N]."""
    values = np.zeros(len(pairs.items))
    for place, (item, answer) in enumerate(zip(pairs.items, answers, strict=True)):
        if item.kind is Kind.NEGATED:
            values[place] = lenient(ProbeForm(item.form), answer.text, item.answers)
    return values
