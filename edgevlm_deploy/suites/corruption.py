"""The clean questions again, on corrupted pictures."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from edgevlm_runner.contract import Item

from edgevlm_deploy.errors import DataError
from edgevlm_deploy.suites.clean import spread_over_images


def corrupted(
    clean: Sequence[Item],
    corruptions: Sequence[str],
    severities: Sequence[int],
    items_per_condition: int,
    *,
    seed: int,
) -> tuple[Item, ...]:
    """`items_per_condition` variants of clean items per corruption and severity, named "<id>@<condition>".

    Conditions take turns through one list of the clean items that goes round all pictures before it
    comes back to one, so a condition holds as many different pictures as it can and every picture is
    used about equally often. Questions without a picture are left out. With fewer clean items than
    `items_per_condition`, each condition gets them all.
    Raises DataError when conditions are asked for and no item has a picture.
    """
    conditions = [f"{corruption}/{severity}" for corruption in corruptions for severity in severities]
    pool = spread_over_images([item for item in clean if item.image], seed=seed)
    if conditions and not pool:
        raise DataError(
            "corruptions or perturbations are asked for, but no clean item has a picture; give pictures "
            "or set `evaluation.corruptions` and `evaluation.perturbations` to empty lists."
        )
    count = min(items_per_condition, len(pool))
    variants: list[Item] = []
    for block, condition in enumerate(conditions):
        places = (place % len(pool) for place in range(block * count, (block + 1) * count))
        variants += [_variant(pool[place], condition) for place in places]
    return tuple(variants)


def _variant(item: Item, condition: str) -> Item:
    return dataclasses.replace(item, id=f"{item.id}@{condition}", base_id=item.id, condition=condition)
