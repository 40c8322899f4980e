"""Questions that no metric counts: the temperature of the confidence is fitted on them."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from edgevlm_runner.contract import TEMPERATURE, Item

from edgevlm_deploy.suites.clean import select


def held_out(calibration: Sequence[Item], count: int, *, seed: int) -> tuple[Item, ...]:
    """At most `count` calibration questions with a known answer, named "<id>@temperature".

    `calibration` shares no picture with the clean items. Its own pictures are asked about as they are,
    without the mixture that the quantiser sees.
    """
    known = [item for item in calibration if item.answers]
    if not known:
        return ()
    return tuple(
        dataclasses.replace(
            item,
            id=f"{item.id}@{TEMPERATURE}",
            base_id=f"{item.id}@{TEMPERATURE}",
            condition=TEMPERATURE,
        )
        for item in select(known, count, seed=seed)
    )
