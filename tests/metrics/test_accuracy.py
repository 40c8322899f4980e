"""Accuracy: VQAv2 with ten references, exact match with fewer, and a published model's score."""

from __future__ import annotations

import json
from itertools import combinations
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgevlm_deploy.metrics.accuracy import accuracy, vqa_accuracy


@pytest.mark.parametrize(("matches", "score"), [(0, 0.0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1.0), (10, 1.0)])
def test_vqa_accuracy_of_ten_references(matches: int, score: float) -> None:
    assert vqa_accuracy("Red.", ["red"] * matches + ["blue"] * (10 - matches)) == pytest.approx(score)


@given(st.lists(st.sampled_from(["red", "blue", "green"]), min_size=10, max_size=10))
def test_vqa_accuracy_is_the_mean_over_leave_one_out_subsets(references: list[str]) -> None:
    subsets = list(combinations(references, 9))
    expected = sum(min(1.0, subset.count("red") / 3) for subset in subsets) / len(subsets)
    assert vqa_accuracy("red", references) == pytest.approx(expected)


def test_fewer_references_are_an_exact_match() -> None:
    assert accuracy("Two!", ["2"]) == 1.0
    assert accuracy("two cubes", ["2"]) == 0.0
    assert accuracy("bike", ["bicycle", "bike"]) == 1.0


def test_the_choice_a_is_no_silence() -> None:
    assert accuracy("A", ["A"]) == accuracy("a.", ["A"]) == 1.0
    assert accuracy("", ["A"]) == accuracy("The", ["A"]) == accuracy("B", ["A"]) == 0.0


def test_yes_no_questions_are_parsed_by_word() -> None:
    assert accuracy("Yes, a dog.", ["yes"]) == 1.0
    assert accuracy("I do not know", ["no"]) == 0.0
    assert accuracy("", ["no"]) == 0.0


@pytest.mark.parametrize(
    ("category", "percent", "f1"),
    [("random", 87.9, 87.3), ("popular", 87.7, 86.3), ("adversarial", 85.7, 84.5)],
)
def test_published_pope_answers_get_their_published_score(
    real_data: Path, category: str, percent: float, f1: float
) -> None:
    """LLaVA-1.5-13B on POPE: answers belong to questions by position, labels by picture and question.

    The label files are a later edition than the questions; some 1 to 5 % of the questions are not in both.
    """
    scoring = real_data / "scoring"
    questions = _lines(scoring / "llava15_pope" / "llava_pope_test.jsonl")
    answers = _lines(scoring / "llava15_pope" / "answers" / "llava-v1.5-13b.jsonl")
    labels = {
        (row["image"], row["text"]): row["label"]
        for row in _lines(scoring / "pope" / f"coco_pope_{category}.json")
    }
    rows = []
    for question, answer in zip(questions, answers, strict=True):
        key = question["image"], question["text"].split("\n")[0]
        if question["category"] == category and key in labels:
            rows.append((labels[key], accuracy(answer["text"], [labels[key]])))
    assert len(rows) > 2700
    assert 100 * sum(hit for _, hit in rows) / len(rows) == pytest.approx(percent, abs=0.1)
    true_positive = sum(hit for label, hit in rows if label == "yes")
    false_positive = sum(1 - hit for label, hit in rows if label == "no")
    positive = sum(label == "yes" for label, _ in rows)
    assert 100 * 2 * true_positive / (true_positive + false_positive + positive) == pytest.approx(f1, abs=0.2)


def _lines(path: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.mark.parametrize(("with_picture", "percent"), [(False, 74.4), (True, 71.6)])
def test_published_scienceqa_answers_get_their_published_score(
    real_data: Path, with_picture: bool, percent: float
) -> None:
    """LLaVA-1.5-13B answers "B" or "B. a compound": all 4,241 questions, and those with a picture.

    The published scorer takes the letter before ". "; an exact match would not.
    """
    (path,) = (real_data / "scoring" / "llava15_scienceqa" / "answers").iterdir()
    scored = json.loads(path.read_text(encoding="utf-8"))
    rows = [*scored["correct"], *scored["incorrect"]]
    assert len(rows) == 4241
    hits = [
        accuracy(row["pred"].split(". ")[0], [row["ground_truth"]])
        for row in rows
        if row["is_multimodal"] or not with_picture
    ]
    assert 100 * sum(hits) / len(hits) == pytest.approx(percent, abs=0.05)
