"""Counterfactual and foreign items."""

from __future__ import annotations

import dataclasses

import pytest
from edgevlm_runner.contract import Item, Kind

from edgevlm_deploy import suites
from edgevlm_deploy.errors import DataError
from edgevlm_deploy.recipe import Evaluation


def item(number: int) -> Item:
    picture = f"{number}"
    return Item(f"q{number}", f"q{number}", "", "clean", f"images/{picture}.png", picture, "What?", ("cow",))


def test_only_clean_items_have_counterfactuals() -> None:
    clean = [item(n) for n in range(10)]
    pairs = [
        dataclasses.replace(item(n), id=f"b{n}", base_id=f"q{n}", image_id=f"b{n}", background="beach")
        for n in range(14)
    ]
    made = suites.swapped(clean, pairs, 8, seed=0)
    assert len(made) == 8 and all(one.kind is Kind.BACKGROUND and one.background == "beach" for one in made)
    assert {one.base_id for one in made} < {one.id for one in clean}
    assert suites.swapped(clean, pairs[::-1], 8, seed=0) == made
    assert suites.swapped(clean, (), 0, seed=0) == ()
    with pytest.raises(DataError, match="none of the 4 counterfactual rows belongs to a clean item"):
        suites.swapped(clean, pairs[10:], 8, seed=0)


def test_foreign_items_are_items_of_their_own() -> None:
    """Ids may be those of clean items, and answers may be unknown."""
    foreign = [dataclasses.replace(item(n), answers=()) for n in range(5)]
    evaluation = Evaluation(corruptions=(), ood_items=3)
    table = suites.build([item(n) for n in range(6)], evaluation, ood=foreign)
    made = [one for one in table if one.kind is Kind.OOD]
    assert len(made) == 3 and all(one.id == one.base_id and one.id.endswith("@ood") for one in made)
    assert len({one.id for one in table}) == len(table) == 9
