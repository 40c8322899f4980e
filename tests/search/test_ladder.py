"""From the smallest model upwards, where bytes save the most divergence."""

from __future__ import annotations

import dataclasses

import pytest

from edgevlm_deploy.recipe import Algorithm, Image, Scheme
from edgevlm_deploy.search import ladder
from edgevlm_deploy.search.cost import Cost
from edgevlm_deploy.search.sensitivity import Sensitivity
from edgevlm_deploy.search.space import Block, Candidate, Space


def sensitivity(block: Block, shift: float) -> Sensitivity:
    errors = {
        one: 4.0 ** -block.bits(one) * (1 + block.choices.index(one)) ** -0.5
        for one in block.choices
        if one is not Scheme.FP16
    }
    return Sensitivity(
        block=block.name,
        scheme=block.choices[0],
        kl=shift,
        shift=shift,
        divergence_rate=0.0,
        corrupted_divergence_rate=0.0,
        negative_flip_rate=0.0,
        confidence_change=0.0,
        ece_increase=None,
        weight_error=errors,
    )


@pytest.fixture
def measured(choices: Space) -> dict[str, Sensitivity]:
    return {
        block.name: sensitivity(block, 0.5 if "vision" in block.name else 0.01) for block in choices.blocks
    }


def test_rungs_grow_from_the_smallest_to_fp16(choices: Space, measured: dict[str, Sensitivity]) -> None:
    rungs = ladder.rungs(choices, measured, Algorithm.GPTQ)
    sizes = [choices.weight_bytes(one) for one in rungs]
    assert sizes == sorted(set(sizes))
    assert rungs[0].schemes == tuple(block.choices[0] for block in choices.blocks)
    assert set(rungs[-1].schemes) == {Scheme.FP16} and rungs[-1].algorithm is Algorithm.RTN


def test_the_most_sensitive_blocks_grow_first(choices: Space, measured: dict[str, Sensitivity]) -> None:
    first = ladder.rungs(choices, measured, Algorithm.RTN)[10]
    for block, scheme in zip(choices.blocks, first.schemes, strict=True):
        assert "vision" in block.name or scheme is block.choices[0]


def test_the_harm_of_another_scheme_follows_the_weight_error(choices: Space) -> None:
    block = choices.blocks[0]
    row = sensitivity(block, 0.5)
    assert row.harm(block.choices[0]) == 0.25
    assert row.harm(Scheme.W8A16) < 0.25 / 256
    assert row.harm(Scheme.FP16) == 0.0


def test_neighbours_take_a_share_off_where_it_harms_least(
    choices: Space, measured: dict[str, Sensitivity]
) -> None:
    start = choices.uniform(Scheme.W4A16_G32, Algorithm.RTN)
    found = ladder.smaller(choices, measured, start)
    sizes = [choices.weight_bytes(one) / choices.weight_bytes(start) for one in found]
    assert len(found) == len(ladder.STEPS) and sizes == sorted(sizes)
    for size, share in zip(sizes, ladder.STEPS, strict=True):
        assert size <= 1 - share
    changed = [
        block.name
        for block, a, b in zip(choices.blocks, found[-1].schemes, start.schemes, strict=True)
        if a is not b
    ]
    assert changed and not any("vision" in name for name in changed)


def test_neighbours_that_see_less_come_first(choices: Space, measured: dict[str, Sensitivity]) -> None:
    """Of four that cost less than what is seen now: the cheapest, the middle one and the next."""
    looks = {Image(max_tiles=tiles): Cost(1000 * tiles, tiles) for tiles in (9, 5, 2, 17, 3, 7)}
    space = dataclasses.replace(choices, images=looks)
    start = dataclasses.replace(choices.uniform(Scheme.W4A16_G32, Algorithm.RTN), image=Image(max_tiles=9))
    found = ladder.smaller(space, measured, start)
    assert [one.image.max_tiles for one in found[:3]] == [2, 5, 7]
    assert {one.schemes for one in found[:3]} == {start.schemes}
    assert {one.image for one in found[3:]} == {start.image} and len(found) == 3 + len(ladder.STEPS)


def test_below_the_smallest_there_is_nothing(choices: Space, measured: dict[str, Sensitivity]) -> None:
    smallest = Candidate(Algorithm.RTN, tuple(block.choices[0] for block in choices.blocks))
    assert ladder.smaller(choices, measured, smallest) == ()
