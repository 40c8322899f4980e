"""Flips: kinds, rates and their identity with accuracy."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgevlm_deploy.metrics.consistency import Flip, diverges, first_divergence, flip


@pytest.mark.parametrize(
    ("before", "now", "diverged", "kind"),
    [
        (1.0, 0.0, True, Flip.NEGATIVE),
        (0.0, 1.0, True, Flip.POSITIVE),
        (0.0, 0.0, True, Flip.NEUTRAL),
        (1.0, 1.0, True, Flip.NEUTRAL),
        (1.0, 1.0, False, None),
        (0.0, 0.0, False, None),
        (0.9, 0.6, True, Flip.NEUTRAL),
        (0.6, 0.3, True, Flip.NEGATIVE),
    ],
)
def test_kinds_of_flip(before: float, now: float, diverged: bool, kind: Flip | None) -> None:
    assert flip(before, now, diverged) is kind


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1))
def test_accuracy_difference_is_positive_minus_negative_flips(pairs: list[tuple[bool, bool]]) -> None:
    kinds = [flip(float(before), float(now), before != now) for before, now in pairs]
    difference = sum(now for _, now in pairs) - sum(before for before, _ in pairs)
    assert difference == kinds.count(Flip.POSITIVE) - kinds.count(Flip.NEGATIVE)


def test_divergence_compares_normalised_answers() -> None:
    assert not diverges("Two dogs.", "the 2 dogs")
    assert diverges("two dogs", "two cats")


@pytest.mark.parametrize(
    ("reference", "artifact", "position"),
    [
        ((1, 2, 3), (1, 2, 3), None),
        ((1, 2, 3), (1, 4, 3), 1),
        ((1, 2), (1, 2, 3), 2),
        ((), (1,), 0),
        ((), (), None),
    ],
)
def test_first_divergence(
    reference: tuple[int, ...], artifact: tuple[int, ...], position: int | None
) -> None:
    assert first_divergence(reference, artifact) == position
