"""What the two sides of a comparison, and the kinds of failure, are called."""

from __future__ import annotations

from dataclasses import dataclass

from edgevlm_deploy.metrics.taxonomy import Category


@dataclass(frozen=True)
class Names:
    """`before` and `now` stand in sentences, the short forms in labels."""

    before: str
    now: str
    before_short: str
    now_short: str


REPORT = Names("the reference", "the artifact", "reference", "artifact")

CATEGORIES = {
    Category.OBJECT_BLINDNESS: "object blindness",
    Category.SEMANTIC_DRIFT: "semantic drift",
    Category.PRIOR_BIAS: "prior bias",
    Category.SPATIAL_ERROR: "spatial error",
    Category.OTHER: "other",
}
EMPTY = "empty output"
MEANINGS = {
    Category.OBJECT_BLINDNESS: "what is asked for goes unnoticed",
    Category.SEMANTIC_DRIFT: "noticed, and taken for something else",
    Category.PRIOR_BIAS: "what is usual, whatever the picture shows",
    Category.SPATIAL_ERROR: "position, size, count or orientation",
    Category.OTHER: "no answer of the kind asked for, or none of these",
}
