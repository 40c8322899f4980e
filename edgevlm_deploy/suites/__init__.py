"""What is asked: clean items, and their corrupted variants, in one table."""

from __future__ import annotations

from collections.abc import Sequence

from edgevlm_runner.contract import Item

from edgevlm_deploy.recipe import Evaluation
from edgevlm_deploy.suites.clean import select
from edgevlm_deploy.suites.corruption import corrupted

__all__ = ["build", "corrupted", "select"]


def build(items: Sequence[Item], evaluation: Evaluation) -> tuple[Item, ...]:
    """The evaluation's table of items: the clean ones first, then one block per condition.

    Depends on the set of `items` and on `evaluation`, not on the order of `items`.
    Raises DataError when `items` cannot serve as clean items.
    """
    clean = select(items, evaluation.clean_items, seed=evaluation.seed)
    return clean + corrupted(
        clean,
        tuple(corruption.value for corruption in evaluation.corruptions),
        evaluation.severities,
        evaluation.items_per_condition,
        seed=evaluation.seed,
    )
