from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgevlm_deploy import datasets
from edgevlm_deploy.datasets import Sample
from edgevlm_deploy.errors import DataError


def samples(pictures: int, questions: int = 3, first: int = 0) -> tuple[Sample, ...]:
    return tuple(
        Sample(f"{p}-{q}", "", Path(f"{p}.png"), f"{p:064x}", f"Question {q}?", ("yes",))
        for p in range(first, first + pictures)
        for q in range(questions)
    )


@given(seed=st.integers(), share=st.floats(0.2, 0.8))
def test_a_split_is_disjoint_complete_and_repeatable(seed: int, share: float) -> None:
    every = samples(100)
    calibration, evaluation = datasets.split(every, seed=seed, share=share)
    datasets.check_disjoint(calibration, evaluation)
    assert sorted(s.id for s in calibration + evaluation) == sorted(s.id for s in every)
    assert (calibration, evaluation) == datasets.split(every, seed=seed, share=share)


def test_the_share_is_met_and_more_pictures_move_nobody() -> None:
    few, _ = datasets.split(samples(500), seed=7, share=0.3)
    many, _ = datasets.split(samples(2000), seed=7, share=0.3)
    assert set(few) <= set(many)
    assert 0.27 < len(many) / 6000 < 0.33
    assert set(few) != set(datasets.split(samples(500), seed=8, share=0.3)[0])


def test_a_count_takes_whole_pictures() -> None:
    calibration, evaluation = datasets.split(samples(50), seed=0, count=10)
    assert len(calibration) == 12
    assert len(evaluation) == 138


def test_an_empty_side_is_refused() -> None:
    with pytest.raises(DataError, match="both need some"):
        datasets.split(samples(5), seed=0, count=15)
    with pytest.raises(DataError, match="leave 0 for calibration"):
        datasets.split(samples(5), seed=0, share=0.0)


def test_text_only_samples_are_their_own_cluster() -> None:
    text = tuple(Sample(str(n), "", None, "", f"Question {n}?", ()) for n in range(20))
    calibration, evaluation = datasets.split(text, seed=0, count=5)
    assert (len(calibration), len(evaluation)) == (5, 15)


def test_an_overlap_is_named() -> None:
    with pytest.raises(DataError) as caught:
        datasets.check_disjoint(samples(20), samples(15, first=18))
    message = str(caught.value)
    assert message.startswith("2 pictures are in the calibration and in the evaluation data")
    assert "18.png: 18-2 for calibration, 18-2 for evaluation" in message
