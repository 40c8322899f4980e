"""Candidates from the smallest upwards: each rung spends its bytes where they save the most divergence.

Blocks are taken to harm independently of each other, so the best rungs are found greedily: of all blocks and
larger schemes, the step that lowers the predicted KL by the most per byte comes next. That is the convex
hull of what a knapsack over all combinations would give.
"""

from __future__ import annotations

from collections.abc import Mapping

from edgevlm_deploy.recipe import Algorithm, Scheme
from edgevlm_deploy.search.sensitivity import Sensitivity
from edgevlm_deploy.search.space import Block, Candidate, Space


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
    return tuple(space.canonical(Candidate(algorithm, schemes)) for schemes in found)


def _gain(block: Block, measured: Sensitivity, now: Scheme, then: Scheme) -> float:
    """Nats saved per byte."""
    saved = measured.predicted_kl(now) - measured.predicted_kl(then)
    return saved / (block.sizes[then] - block.sizes[now])


def smaller(
    space: Space, sensitivities: Mapping[str, Sensitivity], candidate: Candidate
) -> tuple[Candidate, ...]:
    """Neighbours with one block one scheme smaller, the one that should harm least per byte first."""
    found = []
    for place, (block, now) in enumerate(zip(space.blocks, candidate.schemes, strict=True)):
        below = [one for one in block.choices if block.sizes[one] < block.sizes[now]]
        if below:
            then = below[-1]
            schemes = (*candidate.schemes[:place], then, *candidate.schemes[place + 1 :])
            harm = _gain(block, sensitivities[block.name], then, now)
            found.append((harm, place, space.canonical(Candidate(candidate.algorithm, schemes))))
    return tuple(one for _, _, one in sorted(found, key=lambda row: row[:2]))
