"""What things are called: the sides of a comparison, kinds of failure, and what a kind of model does."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from edgevlm_runner.contract import DUAL_ENCODER, ENCODER_DECODER, GENERATIVE

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


@dataclass(frozen=True)
class Words:
    """How a page speaks of what a model is asked and of how sure it is."""

    group: str
    """What items are grouped by."""
    calibrated_on: str
    confidence: str
    max_prob: str
    accepted: str


_ANSWERS = Words(
    group="Kind of question",
    calibrated_on="calibration questions",
    confidence="the geometric mean of the token probabilities",
    max_prob="MaxProb, the product of the token probabilities",
    accepted="accepted",
)
WORDS: Mapping[str, Words] = {
    GENERATIVE: _ANSWERS,
    ENCODER_DECODER: _ANSWERS,
    DUAL_ENCODER: Words(
        group="Class",
        calibrated_on="calibration pictures",
        confidence="the probability of the chosen class",
        max_prob="MaxProb, the probability of the chosen class",
        accepted="class",
    ),
}
"""Kind of model → its words."""
