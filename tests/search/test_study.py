"""Trials on disk: what was judged is not judged again, and interruptions change nothing."""

from __future__ import annotations

import dataclasses
import multiprocessing
import os
import signal
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path

import pytest

from edgevlm_deploy.errors import MissingExtraError, StorageError
from edgevlm_deploy.recipe import Algorithm, GateName, Image, Reduction, ReductionMethod
from edgevlm_deploy.search import study
from edgevlm_deploy.search.cost import Cost
from edgevlm_deploy.search.outlook import Outlook
from edgevlm_deploy.search.space import Candidate, Space
from edgevlm_deploy.search.study import Judged, Study

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::ResourceWarning")


MODEL = "digest"


class Judge:
    """A landscape with a known smallest passing candidate: each block that has 4 bits adds a flip."""

    def __init__(self, choices: Space, allowed: int, patience: int | None = None) -> None:
        self.choices, self.allowed, self.patience = choices, allowed, patience
        self.seen: list[Candidate] = []

    def __call__(self, candidate: Candidate) -> Judged:
        if self.patience is not None and len(self.seen) >= self.patience:
            raise KeyboardInterrupt
        self.seen.append(candidate)
        harmed = sum(
            block.bits(one) < 8 for block, one in zip(self.choices.blocks, candidate.schemes, strict=True)
        )
        gate = Outlook(
            metric=GateName.DIVERGENCE_RATE,
            value=harmed,
            bound=harmed,
            limit=self.allowed,
            excess=(harmed - self.allowed) / self.allowed,
        )
        return Judged(
            weight_bytes=self.choices.weight_bytes(candidate),
            memory_bytes=self.choices.memory_bytes(candidate),
            first_token_macs=0,
            latency_ms=None,
            accuracy=1.0,
            negative_flip_rate=0.0,
            relative_robustness=None,
            corrupted_divergence_rate=None,
            mean_kl=harmed / 100,
            gates=(gate,),
        )


def explore(path: Path, judge: Judge, limit: int) -> Study:
    made = Study(path, "test", MODEL, judge.choices, judge, seed=3)
    schemes = [block.choices for block in judge.choices.blocks]

    def rung(place: int) -> Candidate:
        return judge.choices.canonical(
            Candidate(Algorithm.RTN, tuple(c[-1] if n < place else c[0] for n, c in enumerate(schemes)))
        )

    def smaller(candidate: Candidate) -> Sequence[Candidate]:
        places = [n for n, c in enumerate(schemes) if candidate.schemes[n] is not c[0]]
        return [
            dataclasses.replace(
                candidate,
                schemes=tuple(
                    schemes[n][schemes[n].index(one) - 1] if n == place else one
                    for n, one in enumerate(candidate.schemes)
                ),
            )
            for place in places
        ]

    study.explore(
        made,
        judge.choices.uniforms(),
        lambda _: [rung(place) for place in range(len(schemes) + 1)],
        smaller,
        limit,
        None,
        lambda _: None,
    )
    return made


def test_the_ladder_is_climbed_by_bisection(tmp_path: Path, choices: Space) -> None:
    judge = Judge(choices, allowed=10)
    trials = explore(tmp_path / "study.sqlite", judge, 15).trials()
    assert [one.origin for one in trials[:9]] == [study.UNIFORM] * 9
    ladder = [one for one in trials if one.origin == study.LADDER]
    assert 4 <= len(ladder) <= 5
    # The lowest rung that passes, and the one below it.
    assert max(one.judged.mean_kl for one in ladder if one.judged.passes) == 0.10
    assert min(one.judged.mean_kl for one in ladder if not one.judged.passes) == 0.11
    best = study.best(trials)
    assert best is not None
    uniform = [one for one in trials if one.origin == study.UNIFORM and one.judged.passes]
    assert best.judged.weight_bytes <= min(one.judged.weight_bytes for one in uniform)


def test_a_killed_search_goes_on_and_finds_the_same(tmp_path: Path, choices: Space) -> None:
    whole = explore(tmp_path / "whole.sqlite", Judge(choices, allowed=10), 22).trials()
    killed = Judge(choices, allowed=10, patience=12)
    with pytest.raises(KeyboardInterrupt):
        explore(tmp_path / "killed.sqlite", killed, 22)
    rest = Judge(choices, allowed=10)
    resumed = explore(tmp_path / "killed.sqlite", rest, 22).trials()
    assert resumed == whole
    assert {*killed.seen}.isdisjoint(rest.seen) and len(killed.seen) + len(rest.seen) == len(whole) == 22


def test_more_trials_are_added_to_those_there_are(tmp_path: Path, choices: Space) -> None:
    path = tmp_path / "study.sqlite"
    first = explore(path, Judge(choices, allowed=10), 10).trials()
    again = Judge(choices, allowed=10)
    assert explore(path, again, 10).trials() == first and not again.seen
    assert explore(path, again, 12).trials()[:10] == first and len(again.seen) == 2


def test_another_name_is_another_study_in_the_same_file(tmp_path: Path, choices: Space) -> None:
    path = tmp_path / "study.sqlite"
    explore(path, Judge(choices, allowed=10), 5)
    assert Study(path, "other", MODEL, choices, Judge(choices, allowed=10), seed=0).trials() == ()


def test_what_is_seen_is_a_choice_of_the_sampler(tmp_path: Path, choices: Space) -> None:
    fewer = Image(reduction=Reduction(method=ReductionMethod.TOME, keep=0.5))
    both = dataclasses.replace(choices, images={Image(): Cost(9), fewer: Cost(5)})
    path = tmp_path / "study.sqlite"
    trials = explore(path, Judge(both, allowed=99), 22).trials()
    assert {one.image for one in trials if one.origin == study.UNIFORM} == {Image()}
    seen = [one for one in trials if one.image == fewer]
    assert seen and {one.image_label for one in seen} == {"tome 0.5"}
    one = seen[0]
    assert one.judged.memory_bytes == one.judged.weight_bytes + 5 and one.candidate.image == fewer
    assert explore(path, Judge(both, allowed=99), 22).trials() == trials, "read back"


def test_the_trials_of_another_model_are_left_alone(tmp_path: Path, choices: Space) -> None:
    path = tmp_path / "study.sqlite"
    study.require_same_model(path, MODEL)
    explore(path, Judge(choices, allowed=10), 1)
    study.require_same_model(path, MODEL)
    with pytest.raises(StorageError, match=r"another model by the same name\. Give another --out"):
        study.require_same_model(path, "other")


def test_what_is_no_study_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "study.sqlite"
    path.write_text("trials\n" * 100)
    with pytest.raises(StorageError, match=r"no file of a search's trials .*Give another --out"):
        study.require_same_model(path, MODEL)


def test_without_optuna_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(MissingExtraError, match=r"edgevlm\[compile,search\]"):
        study.require_optuna()


def test_the_deadline_ends_it(tmp_path: Path, choices: Space) -> None:
    made = Study(tmp_path / "study.sqlite", "test", MODEL, choices, Judge(choices, allowed=10), seed=0)
    study.explore(made, choices.uniforms(), lambda _: [], lambda _: [], 9, 0.0, lambda _: None)
    assert len(made.trials()) == 1


def test_a_trial_that_was_killed_is_judged_again(tmp_path: Path, choices: Space) -> None:
    """By SIGKILL, in a process of its own, while its second candidate is judged."""
    path = tmp_path / "study.sqlite"
    process = multiprocessing.get_context("fork").Process(target=_dies, args=(path, choices))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a fork while libraries hold threads
        process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    judge = Judge(choices, allowed=10)
    uniforms = choices.uniforms()
    trials = explore(path, judge, 3).trials()
    assert tuple(one.candidate for one in trials) == uniforms[:3]
    assert judge.seen == [*uniforms[1:3]]


def _dies(path: Path, choices: Space) -> None:
    judge = Judge(choices, allowed=10)

    def killed(candidate: Candidate) -> Judged:
        if judge.seen:
            os.kill(os.getpid(), signal.SIGKILL)
        return judge(candidate)

    made = Study(path, "test", MODEL, choices, killed, seed=3)
    for uniform in choices.uniforms():
        made.judged(uniform, study.UNIFORM)
