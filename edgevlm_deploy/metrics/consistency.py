"""Does the artifact still say what the reference said? Pairs of answers to one item.

The identity `mean(right_artifact) − mean(right_reference) = PFR − NFR` holds for right/wrong as in
`accuracy.RIGHT_FROM`; with one to nine references it holds for accuracy itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum

from edgevlm_deploy.metrics.accuracy import RIGHT_FROM
from edgevlm_deploy.metrics.normalize import normalize


class Flip(str, Enum):
    """What became of a reference answer that the artifact did not repeat."""

    NEGATIVE = "negative"
    """Right before, wrong now."""
    POSITIVE = "positive"
    """Wrong before, right now."""
    NEUTRAL = "neutral"
    """Another answer, as right or as wrong as before."""


def diverges(reference: str, artifact: str) -> bool:
    """True when the normalised answers differ. The mean over all items is the divergence rate, DR."""
    return normalize(reference) != normalize(artifact)


def flip(reference_accuracy: float, artifact_accuracy: float, diverged: bool) -> Flip | None:
    """The kind of flip; None when the answer stayed.

    NFR and PFR are the shares of NEGATIVE and POSITIVE among all items.
    """
    was_right, is_right = reference_accuracy >= RIGHT_FROM, artifact_accuracy >= RIGHT_FROM
    if was_right and not is_right:
        return Flip.NEGATIVE
    if is_right and not was_right:
        return Flip.POSITIVE
    return Flip.NEUTRAL if diverged else None


def first_divergence(reference: Sequence[int], artifact: Sequence[int]) -> int | None:
    """Position of the first token that differs; None for equal sequences.

    When one answer begins with the whole of the other, that is the length of the shorter one.
    """
    for position, (expected, received) in enumerate(zip(reference, artifact, strict=False)):
        if expected != received:
            return position
    return None if len(reference) == len(artifact) else min(len(reference), len(artifact))
