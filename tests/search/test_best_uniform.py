"""The uniform precision that a mixture is compared with: the smallest that really passes."""

from __future__ import annotations

import pytest
from search_proofs import proof

from edgevlm_deploy.recipe import Algorithm, GateName, Image, Scheme
from edgevlm_deploy.search import _best_uniform
from edgevlm_deploy.search.outlook import Outlook
from edgevlm_deploy.search.proof import Proof
from edgevlm_deploy.search.study import UNIFORM, Judged, Trial


def trial(number: int, size: int, value: float, bound: float) -> Trial:
    """One gate with a limit of 1."""
    gate = Outlook(
        metric=GateName.DIVERGENCE_RATE,
        value=value,
        bound=bound,
        limit=1.0,
        is_inside=value <= 1,
        excess=bound - 1,
    )
    judged = Judged(
        weight_bytes=size,
        memory_bytes=size,
        first_token_macs=0,
        latency_ms=None,
        accuracy=1.0,
        negative_flip_rate=0.0,
        relative_robustness=None,
        corrupted_divergence_rate=None,
        mean_kl=0.0,
        gates=(gate,),
    )
    return Trial(
        number=number,
        origin=UNIFORM,
        algorithm=Algorithm.RTN,
        schemes=(Scheme.W8A8,),
        image=Image(),
        image_label="",
        judged=judged,
    )


UNIFORMS = [
    trial(0, 10, 1.1, 1.3),
    trial(1, 20, 0.9, 1.1),
    trial(2, 30, 0.9, 1.2),
    trial(3, 30, 0.9, 1.2),
    trial(4, 40, 0.5, 0.7),
    trial(5, 50, 0.4, 0.6),
]


@pytest.mark.parametrize(
    ("passing", "best", "compiled"),
    [
        ({3, 4, 5}, 3, [2, 3, 1]),
        ({1, 2, 4}, 1, [2, 1]),
        ({4, 5}, 4, [2, 3, 4]),
        ({5}, 5, [2, 3, 4, 5]),
        (set(), None, [2, 3, 4, 5]),
    ],
)
def test_downwards_from_what_should_pass(passing: set[int], best: int | None, compiled: list[int]) -> None:
    """What is outside of its limit already is never compiled."""
    made: list[int] = []

    def proved(one: Trial) -> Proof:
        made.append(one.number)
        return proof(one.number, one.number in passing)

    found = _best_uniform(UNIFORMS, proved)
    assert (found.trial if found else None) == best
    assert made == compiled


def test_without_one_that_should_pass_there_is_none() -> None:
    assert _best_uniform(UNIFORMS[:3], lambda one: proof(one.number, True)) is None
