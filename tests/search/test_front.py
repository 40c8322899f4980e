"""The Pareto front has no dominated member, and nothing outside of it is not dominated."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from edgevlm_deploy.recipe import Algorithm, Image, Scheme
from edgevlm_deploy.search.front import costs, dominates, front
from edgevlm_deploy.search.study import Judged, Trial

share = st.sampled_from([0.0, 0.25, 0.5, 1.0])


@st.composite
def judged(draw: st.DrawFn) -> Judged:
    return Judged(
        weight_bytes=1,
        memory_bytes=draw(st.integers(1, 4)),
        first_token_macs=draw(st.integers(1, 3)),
        latency_ms=draw(st.none() | share),
        accuracy=draw(share),
        negative_flip_rate=draw(share),
        relative_robustness=draw(st.none() | share),
        corrupted_divergence_rate=draw(share),
        mean_kl=0.0,
        gates=(),
    )


@given(st.lists(judged(), max_size=12))
def test_members_and_only_members_are_not_dominated(found: list[Judged]) -> None:
    trials = [
        Trial(
            number=n,
            origin="sampled",
            algorithm=Algorithm.RTN,
            schemes=(Scheme.FP16,),
            image=Image(),
            image_label="",
            judged=one,
        )
        for n, one in enumerate(found)
    ]
    kept = {trial.number for trial in front(trials)}
    for trial in trials:
        beaten = any(dominates(costs(other.judged), costs(trial.judged)) for other in trials)
        assert beaten is (trial.number not in kept)
    assert bool(kept) is bool(trials)


def test_equal_candidates_do_not_dominate_each_other() -> None:
    assert not dominates((1.0, 2.0), (1.0, 2.0))
    assert dominates((1.0, 1.0), (1.0, 2.0))
    assert not dominates((0.0, 3.0), (1.0, 2.0))
