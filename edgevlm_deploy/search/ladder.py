"""Candidates from the smallest upwards: each rung spends its bytes where they save the most divergence.

Blocks are taken to harm independently of each other, so the best rungs are found greedily: of all blocks and
larger schemes, the step that lowers the predicted harm by the most per byte comes next. That is the convex
hull of what a knapsack over all combinations would give.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from edgevlm_deploy.recipe import Algorithm, Scheme
from edgevlm_deploy.search.sensitivity import Sensitivity
from edgevlm_deploy.search.space import Block, Candidate, Space

STEPS = (0.02, 0.01, 0.005)
"""Shares of the bytes by which a passing candidate is made smaller."""


def rungs(
    space: Space, sensitivities: Mapping[str, Sensitivity], algorithm: Algorithm
) -> tuple[Candidate, ...]:
    """From every block at its smallest scheme to every block in fp16, in growing bytes."""
    current = [block.choices[0] for block in space.blocks]
    found = [tuple(current)]
    while True:
        steps = [
            (_gain(block, sensitivities[block.name], current[place], scheme), place, scheme)
            for place, block in enumerate(space.blocks)
            for scheme in block.choices[block.choices.index(current[place]) + 1 :]
            if block.sizes[scheme] > block.sizes[current[place]]
        ]
        if not steps:
            break
        _, place, scheme = max(steps, key=lambda step: (step[0], -step[1]))
        current[place] = scheme
        found.append(tuple(current))
    return tuple(space.canonical(Candidate(algorithm, schemes, space.image)) for schemes in found)


def _gain(block: Block, measured: Sensitivity, now: Scheme, then: Scheme) -> float:
    """Harm avoided per byte."""
    saved = measured.harm(now) - measured.harm(then)
    return saved / (block.sizes[then] - block.sizes[now])


def smaller(
    space: Space, sensitivities: Mapping[str, Sensitivity], candidate: Candidate
) -> tuple[Candidate, ...]:
    """Candidates that see less of a picture, then those that take each of STEPS off the bytes of the weights,
    where it should harm least; the boldest first.
    """
    found = [_descended(space, sensitivities, candidate, share) for share in STEPS]
    return tuple(dict.fromkeys([*_seeing_less(space, candidate), *(one for one in found if one is not None)]))


def _seeing_less(space: Space, candidate: Candidate) -> tuple[Candidate, ...]:
    """The cheapest, the middle and the next of what costs less to see."""
    others = [dataclasses.replace(candidate, image=image) for image in space.images]
    less = sorted((one for one in others if space.cost(one) < space.cost(candidate)), key=space.cost)
    return tuple(dict.fromkeys([less[0], less[len(less) // 2], less[-1]])) if less else ()


def _descended(
    space: Space, sensitivities: Mapping[str, Sensitivity], candidate: Candidate, share: float
) -> Candidate | None:
    """None when nothing more can be taken off."""
    current, wanted = list(candidate.schemes), share * space.weight_bytes(candidate)
    while wanted > 0:
        steps = [
            (_gain(block, sensitivities[block.name], below, current[place]), place, below)
            for place, block in enumerate(space.blocks)
            for below in block.choices
            if block.sizes[below] < block.sizes[current[place]]
        ]
        if not steps:
            return None
        _, place, below = min(steps, key=lambda step: (step[0], step[1]))
        wanted -= space.blocks[place].sizes[current[place]] - space.blocks[place].sizes[below]
        current[place] = below
    return space.canonical(dataclasses.replace(candidate, schemes=tuple(current)))
