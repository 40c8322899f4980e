"""The clean questions again about pictures whose background was swapped: it should change no answer."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from edgevlm_runner.contract import BACKGROUND, Item

from edgevlm_deploy.errors import DataError
from edgevlm_deploy.suites.clean import spread_over_images


def swapped(
    clean: Sequence[Item], counterfactuals: Sequence[Item], count: int, *, seed: int
) -> tuple[Item, ...]:
    """At most `count` of the counterfactuals (`base_id` names the original) whose original is a clean item.

    Raises DataError when some are asked for and there are none.
    """
    asked = {item.id for item in clean}
    pool = [item for item in counterfactuals if item.base_id in asked]
    if count and not pool:
        raise DataError(
            f"evaluation.background_items asks for {count} questions on swapped backgrounds, and none of the "
            f"{len(counterfactuals)} counterfactual rows belongs to a clean item. Give rows with "
            "`counterfactual_of`, or set background_items to 0."
        )
    drawn = spread_over_images(pool, seed=seed)[:count]
    return tuple(dataclasses.replace(item, condition=BACKGROUND) for item in drawn)
