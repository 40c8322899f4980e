"""What the background decides: the same questions before and after it was swapped.

Spurious gap: RSG = (A_common − A_counter) / A_common, with the accuracy on the original pictures and on
those with another background.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from edgevlm_runner.contract import Answer, Kind
from numpy.typing import NDArray

from edgevlm_deploy.metrics.compared import COMPARED, compare, partition, per_item
from edgevlm_deploy.metrics.consistency import diverges
from edgevlm_deploy.metrics.estimates import Statistic, Subset, Table, independent, mean, tabulate, undefined
from edgevlm_deploy.metrics.pairs import Pairs
from edgevlm_deploy.metrics.spurious import LEAST_IN_GROUP, group, relative_spurious_gap, worst_group
from edgevlm_deploy.metrics.statistics import Estimate, Totals, wilson
from edgevlm_deploy.metrics.tables import BackgroundRow
from edgevlm_deploy.recipe import Evaluation

Floats = NDArray[np.float64]
_NO_GROUPS = f"no kind of question has {LEAST_IN_GROUP} items on one background"
_PER_MODEL = (
    "worst_group_accuracy",
    "relative_spurious_gap",
    "background_accuracy",
    "background_divergence_rate",
)
NAMES = (
    "background_gap",
    "relative_spurious_gap_increase",
    "worst_group_accuracy_drop",
    *_PER_MODEL,
    *(f"reference_{name}" for name in _PER_MODEL),
)


def summary(pairs: Pairs, evaluation: Evaluation) -> tuple[dict[str, Estimate], tuple[BackgroundRow, ...]]:
    """Estimates, and one row per kind of question and background that has enough items."""
    counter = Subset("background", pairs.of(Kind.BACKGROUND))
    if not counter.mask.any():
        return dict.fromkeys(NAMES, undefined("no items on another background")), ()
    originals = np.zeros(len(pairs.items), dtype=np.bool_)
    originals[pairs.base[counter.mask]] = True
    common = Subset("common", originals)
    groups = _groups(pairs, Subset("both", common.mask | counter.mask))
    columns = {
        name: column for name, column in per_item(pairs).items() if name in (*COMPARED, "robustness_gap")
    }
    columns["reference_moved"] = _moved(pairs, pairs.reference)
    columns["artifact_moved"] = _moved(pairs, pairs.artifact)
    table = tabulate(pairs, columns, [common, counter, *groups], evaluation)
    gap = table.difference(counter, "robustness_gap")
    estimates = {
        "background_gap": gap,
        "relative_spurious_gap_increase": _increase(table, common, counter, gap),
        "worst_group_accuracy_drop": _worst_drop(table, groups),
    }
    for prefix, whose in (("", "artifact"), ("reference_", "reference")):
        estimates |= {
            f"{prefix}background_accuracy": table.rate(counter, f"{whose}_accuracy"),
            f"{prefix}background_divergence_rate": table.rate(counter, f"{whose}_moved"),
            f"{prefix}relative_spurious_gap": table.statistic(
                counter, _spurious(common, counter, whose), f"the {whose} answers no original correctly"
            ),
            f"{prefix}worst_group_accuracy": _worst(table, groups, f"{whose}_accuracy"),
        }
    rows = (
        BackgroundRow(group=kind, background=ground, comparison=compare(table, subset))
        for subset in groups
        for kind, ground in [group(pairs.items[int(np.flatnonzero(subset.mask)[0])])]
    )
    return estimates, tuple(sorted(rows, key=lambda row: (row.group, row.background)))


def _groups(pairs: Pairs, both: Subset) -> list[Subset]:
    """Groups with at least `LEAST_IN_GROUP` items."""
    found = partition(pairs, "group", both, lambda item: "\n".join(group(item)))
    return [subset for subset in found.values() if subset.mask.sum() >= LEAST_IN_GROUP]


def _worst(table: Table, groups: Sequence[Subset], column: str) -> Estimate:
    """Lowest accuracy of a group. The interval is at least that of the group which is lowest."""
    if not groups:
        return undefined(_NO_GROUPS)
    worst, lowest = _lowest(table, groups, column)
    trials = independent(*table.size(lowest))
    closed = wilson(worst(table.totals.observed) * trials, trials, table.level)
    return table.statistic(lowest, worst, _NO_GROUPS, closed)


def _worst_drop(table: Table, groups: Sequence[Subset]) -> Estimate:
    """Of the reference minus of the artifact. The interval is at least that of the drop in the group where
    the artifact is worst.
    """
    if not groups:
        return undefined(_NO_GROUPS)
    (before, _), (now, lowest) = (
        _lowest(table, groups, f"{whose}_accuracy") for whose in ("reference", "artifact")
    )
    own = table.difference(lowest, "accuracy_drop")
    value = before(table.totals.observed) - now(table.totals.observed)
    closed = None
    if own.value is not None and own.low is not None and own.high is not None:
        closed = (value + own.low - own.value, value + own.high - own.value)
    return table.statistic(lowest, lambda totals: before(totals) - now(totals), _NO_GROUPS, closed)


def _lowest(table: Table, groups: Sequence[Subset], column: str) -> tuple[Statistic, Subset]:
    """The lowest mean of a column over the groups, and the group that has it."""
    means = [mean(one, column) for one in groups]
    observed = [one(table.totals.observed) for one in means]

    def worst(totals: Totals) -> Any:
        return worst_group([one(totals) for one in means])

    return worst, groups[int(np.argmin(observed))]


def _spurious(common: Subset, counter: Subset, whose: str) -> Statistic:
    before, after = (mean(subset, f"{whose}_accuracy") for subset in (common, counter))
    return lambda totals: relative_spurious_gap(before(totals), after(totals))


def _increase(table: Table, common: Subset, counter: Subset, gap: Estimate) -> Estimate:
    """ΔRSG. The interval is at least that of the gap over the reference's accuracy on the originals."""
    of_artifact, of_reference = (_spurious(common, counter, whose) for whose in ("artifact", "reference"))

    def increase(totals: Totals) -> Any:
        artifact, reference = of_artifact(totals), of_reference(totals)
        return None if artifact is None or reference is None else artifact - reference

    value, base = increase(table.totals.observed), mean(common, "reference_accuracy")(table.totals.observed)
    closed = None
    if value is not None and gap.value is not None and gap.low is not None and gap.high is not None:
        closed = (value + (gap.low - gap.value) / base, value + (gap.high - gap.value) / base)
    return table.statistic(counter, increase, "a model answers no original correctly", closed)


def _moved(pairs: Pairs, answers: Sequence[Answer]) -> Floats:
    """1 where an item's answer is not that of its clean item, float64 [N]."""
    moved = (diverges(answers[base].text, said.text) for base, said in zip(pairs.base, answers, strict=True))
    return np.fromiter(moved, dtype=np.float64)
