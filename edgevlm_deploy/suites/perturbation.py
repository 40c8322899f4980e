"""The clean questions again, changed so little that no answer should change."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

from edgevlm_runner.contract import PARAPHRASE, PERTURBED, Item

from edgevlm_deploy.suites.corruption import corrupted

PARAPHRASES: tuple[Callable[[str], str], ...] = (
    lambda question: f"{question} ",
    lambda question: question[:1].lower() + question[1:],
    lambda question: question.lower(),
    lambda question: question.rstrip(" ?.!"),
    lambda question: f"Please answer: {question}",
)
"""Level 1 to 5, from a typing habit to other words. A question that has the form already stays as it is."""


def perturbed(
    clean: Sequence[Item],
    perturbations: Sequence[str],
    levels: Sequence[int],
    items_per_condition: int,
    *,
    seed: int,
) -> tuple[Item, ...]:
    """Like `corrupted`, with conditions "perturbed:<perturbation>/<level>"; a paraphrase is in the prompt.

    Raises DataError when perturbations are asked for and no item has a picture.
    """
    names = [PERTURBED + name for name in perturbations]
    return tuple(_reworded(item) for item in corrupted(clean, names, levels, items_per_condition, seed=seed))


def _reworded(item: Item) -> Item:
    name, level = item.corruption or ("", 0)
    if name != PERTURBED + PARAPHRASE:
        return item
    return dataclasses.replace(item, prompt=PARAPHRASES[level - 1](item.prompt))
