"""The clean questions again without their pictures: what is then answered the same was not seen."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from edgevlm_runner.contract import BLIND, GREY, Item

from edgevlm_deploy.suites.clean import spread_over_images


def blind(clean: Sequence[Item], count: int, *, seed: int) -> tuple[Item, ...]:
    """At most `count` clean items without their pictures, named "<id>@blind", spread over the pictures."""
    return tuple(
        dataclasses.replace(item, id=f"{item.id}@{BLIND}", base_id=item.id, condition=BLIND, image="")
        for item in _seen(clean, count, seed)
    )


def grey(clean: Sequence[Item], count: int, *, seed: int) -> tuple[Item, ...]:
    """The first `count` of the same items about one grey area, for models that always want a picture."""
    return tuple(
        dataclasses.replace(item, id=f"{item.id}@{GREY}", base_id=item.id, condition=GREY)
        for item in _seen(clean, count, seed)
    )


def _seen(clean: Sequence[Item], count: int, seed: int) -> list[Item]:
    return spread_over_images([item for item in clean if item.image], seed=seed)[:count]
