"""What is asked: clean items, their corrupted variants, and what fits the temperature, in one table."""

from __future__ import annotations

from collections.abc import Sequence

from edgevlm_runner.contract import Item

from edgevlm_deploy.recipe import Evaluation
from edgevlm_deploy.suites.clean import select
from edgevlm_deploy.suites.corruption import corrupted
from edgevlm_deploy.suites.temperature import held_out

__all__ = ["build", "corrupted", "held_out", "select"]


def build(
    items: Sequence[Item], evaluation: Evaluation, calibration: Sequence[Item] = ()
) -> tuple[Item, ...]:
    """The evaluation's table of items: the clean ones first, then one block per condition, and last
    questions of `calibration` for the temperature.

    Depends on the sets of `items` and `calibration` and on `evaluation`, not on their order.
    Raises DataError when `items` cannot serve as clean items.
    """
    clean = select(items, evaluation.clean_items, seed=evaluation.seed)
    variants = corrupted(
        clean,
        tuple(corruption.value for corruption in evaluation.corruptions),
        evaluation.severities,
        evaluation.items_per_condition,
        seed=evaluation.seed,
    )
    return clean + variants + held_out(calibration, evaluation.temperature_items, seed=evaluation.seed)
