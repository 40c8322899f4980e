"""What the two sides of a comparison are called on a page."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Names:
    """`before` and `now` stand in sentences, the short forms in labels."""

    before: str
    now: str
    before_short: str
    now_short: str


REPORT = Names("the reference", "the artifact", "reference", "artifact")
