"""What is asked: clean items, and their corrupted and perturbed variants, in one table."""

from __future__ import annotations

from collections.abc import Sequence

from edgevlm_runner.contract import Item

from edgevlm_deploy.recipe import Evaluation
from edgevlm_deploy.suites.clean import select
from edgevlm_deploy.suites.corruption import corrupted
from edgevlm_deploy.suites.perturbation import perturbed

__all__ = ["build", "corrupted", "perturbed", "select"]


def build(items: Sequence[Item], evaluation: Evaluation) -> tuple[Item, ...]:
    """The evaluation's table of items: the clean ones first, then one block per condition.

    Depends on the set of `items` and on `evaluation`, not on the order of `items`.
    Raises DataError when `items` cannot serve as clean items.
    """
    clean = select(items, evaluation.clean_items, seed=evaluation.seed)
    each, seed = evaluation.items_per_condition, evaluation.seed
    perturbations = [perturbation.value for perturbation in evaluation.perturbations]
    return (
        clean
        + corrupted(clean, evaluation.corruption_names, evaluation.severities, each, seed=seed)
        + perturbed(clean, perturbations, evaluation.severities, each, seed=seed)
    )
