"""Questions from another distribution: a model should be less sure of its answers to them."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from edgevlm_runner.contract import OOD, Item

from edgevlm_deploy.suites.clean import spread_over_images


def foreign(items: Sequence[Item], count: int, *, seed: int) -> tuple[Item, ...]:
    """At most `count` of them, named "<id>@ood"; known answers may be missing."""
    return tuple(
        dataclasses.replace(item, id=f"{item.id}@{OOD}", base_id=f"{item.id}@{OOD}", condition=OOD)
        for item in spread_over_images(items, seed=seed)[:count]
    )
