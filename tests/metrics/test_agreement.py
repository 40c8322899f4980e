"""Cohen's κ between two judges of the same failures."""

from __future__ import annotations

from itertools import repeat

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgevlm_deploy.errors import DataError
from edgevlm_deploy.metrics.agreement import cohens_kappa
from edgevlm_deploy.recipe import Evaluation

QUICK = Evaluation(bootstrap_resamples=300)


def judged(*cells: tuple[str, str, int]) -> tuple[list[str], list[str], list[str]]:
    """(category by a, by b, how often) → the two judges and one picture per failure."""
    pairs = [pair for a, b, times in cells for pair in repeat((a, b), times)]
    return [a for a, _ in pairs], [b for _, b in pairs], [f"picture{n}" for n in range(len(pairs))]


@pytest.mark.parametrize(
    ("cells", "kappa"),
    [
        ((20, 5, 10, 15), 0.4),
        ((45, 15, 25, 15), 0.1304348),
        ((25, 35, 5, 35), 0.2592593),
        ((10, 0, 0, 10), 1.0),
        ((0, 10, 10, 0), -1.0),
    ],
)
def test_golden(cells: tuple[int, ...], kappa: float) -> None:
    names = (("x", "x"), ("x", "y"), ("y", "x"), ("y", "y"))
    rows = judged(*((a, b, times) for (a, b), times in zip(names, cells, strict=True)))
    found = cohens_kappa(*rows, QUICK)
    assert found.value == pytest.approx(kappa, abs=1e-6)
    assert found.low is not None and found.high is not None
    assert found.low - 1e-9 <= kappa <= found.high + 1e-9
    assert found.n == sum(cells)


def test_three_categories_by_hand() -> None:
    rows = judged(("x", "x", 4), ("y", "y", 3), ("z", "z", 1), ("x", "y", 1), ("z", "x", 1))
    # Agreed 8 of 10; expected (5·5 + 3·4 + 2·1) / 100 = 0.39.
    assert cohens_kappa(*rows, QUICK).value == pytest.approx((0.8 - 0.39) / (1 - 0.39))


def test_one_category_only_is_undefined_and_says_so() -> None:
    found = cohens_kappa(*judged(("x", "x", 5)), QUICK)
    assert found.value is None and found.note == "both judges know one category only"
    assert cohens_kappa([], [], [], QUICK).value is None


def test_items_of_one_picture_widen_the_interval() -> None:
    a, b, alone = judged(("x", "x", 40), ("x", "y", 10), ("y", "x", 10), ("y", "y", 40))
    pictures = [f"picture{n // 10}" for n in range(100)]
    one, ten = cohens_kappa(a, b, alone, QUICK), cohens_kappa(a, b, pictures, QUICK)
    assert one.value == ten.value and ten.clusters == 10
    assert ten.high - ten.low > one.high - one.low  # type: ignore[operator]


def test_judges_of_different_failures_are_refused() -> None:
    with pytest.raises(DataError, match="2 and 1 judgements of 2 failures"):
        cohens_kappa(["x", "y"], ["x"], ["p", "q"], QUICK)


@settings(max_examples=30)
@given(st.lists(st.tuples(st.sampled_from("xyz"), st.sampled_from("xyz")), min_size=2, max_size=40))
def test_kappa_is_symmetric_and_at_most_one(pairs: list[tuple[str, str]]) -> None:
    a, b = [one for one, _ in pairs], [other for _, other in pairs]
    alone = [str(n) for n in range(len(pairs))]
    found, turned = cohens_kappa(a, b, alone, QUICK), cohens_kappa(b, a, alone, QUICK)
    assert (found.value is None) == (turned.value is None)
    if found.value is not None and turned.value is not None:
        assert found.value == pytest.approx(turned.value)
        assert found.value <= 1 and (found.value == pytest.approx(1.0)) == (a == b)
