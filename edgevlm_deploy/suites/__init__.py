"""What is asked: clean items, their variants, probes, and what fits the temperature."""

from __future__ import annotations

from collections.abc import Sequence

from edgevlm_runner.contract import Item

from edgevlm_deploy.recipe import Evaluation
from edgevlm_deploy.suites.background import swapped
from edgevlm_deploy.suites.blind import blind, grey
from edgevlm_deploy.suites.clean import select
from edgevlm_deploy.suites.corruption import corrupted
from edgevlm_deploy.suites.negation import negated
from edgevlm_deploy.suites.ood import foreign
from edgevlm_deploy.suites.perturbation import perturbed
from edgevlm_deploy.suites.temperature import held_out

__all__ = [
    "blind",
    "build",
    "corrupted",
    "foreign",
    "grey",
    "held_out",
    "negated",
    "perturbed",
    "select",
    "swapped",
]


def build(
    items: Sequence[Item],
    evaluation: Evaluation,
    calibration: Sequence[Item] = (),
    counterfactuals: Sequence[Item] = (),
    ood: Sequence[Item] = (),
) -> tuple[Item, ...]:
    """The evaluation's table of items: the clean ones first, then one block per condition, and last
    questions of `calibration` for the temperature.

    Depends on the sets of items and on `evaluation`, not on their order.
    Raises DataError when `items` cannot serve as clean items, or there are no counterfactuals of them.
    """
    clean = select(items, evaluation.clean_items, seed=evaluation.seed)
    each, seed = evaluation.items_per_condition, evaluation.seed
    perturbations = [perturbation.value for perturbation in evaluation.perturbations]
    return (
        clean
        + corrupted(clean, evaluation.corruption_names, evaluation.severities, each, seed=seed)
        + perturbed(clean, perturbations, evaluation.severities, each, seed=seed)
        + (negated(clean, evaluation.negation, seed=seed) if evaluation.negation else ())
        + blind(clean, evaluation.blind_items, seed=seed)
        + grey(clean, evaluation.grey_items, seed=seed)
        + swapped(clean, counterfactuals, evaluation.background_items, seed=seed)
        + foreign(ood, evaluation.ood_items, seed=seed)
        + held_out(calibration, evaluation.temperature_items, seed=seed)
    )
