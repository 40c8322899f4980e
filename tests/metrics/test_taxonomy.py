"""Each failure gets one category and a sentence that says why."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgevlm_deploy.metrics.accuracy import accuracy
from edgevlm_deploy.metrics.taxonomy import RULES, Category, Failure, judge

BLIND, DRIFT, PRIOR, SPATIAL, OTHER = (
    Category.OBJECT_BLINDNESS,
    Category.SEMANTIC_DRIFT,
    Category.PRIOR_BIAS,
    Category.SPATIAL_ERROR,
    Category.OTHER,
)


@pytest.mark.parametrize(
    ("question", "accepted", "said", "rule", "category"),
    [
        ("Is there a dog?", "yes", "No, there is none.", "missed", BLIND),
        ("Do you see a red cube?", "yes", "no", "missed", BLIND),
        ("Is there no dog?", "no", "yes", "missed", BLIND),
        ("Is there no dog?", "yes", "no", "invented", PRIOR),
        ("Does the picture show a ring?", "no", "Yes.", "invented", PRIOR),
        ("Is a person visible in the image?", "yes", "I cannot see one", "missed", BLIND),
        ("What is on the table?", "a cup", "nothing", "denied", BLIND),
        ("What color is the cube?", "red", "There is no cube", "denied", BLIND),
        ("Is the cube red?", "yes", "The cube cannot be seen", "denied", BLIND),
        ("How many balls are there?", "2", "zero", "denied", BLIND),
        ("How many balls are there?", "0", "two", "place_size_or_count", SPATIAL),
        ("How many balls are there?", "2", "three", "place_size_or_count", SPATIAL),
        ("Is the ball left or right of the cube?", "left", "right", "place_size_or_count", SPATIAL),
        ("Is the ball above or below the cube?", "above", "below", "place_size_or_count", SPATIAL),
        ("What size is the ring?", "large", "small", "place_size_or_count", SPATIAL),
        ("Where is the cat?", "sofa", "table", "place_size_or_count", SPATIAL),
        ("Are there more cubes than balls?", "yes", "no", "place_size_or_count", SPATIAL),
        ("Are there three dogs?", "yes", "no", "place_size_or_count", SPATIAL),
        ("Is the cone larger than the star?", "no", "yes", "place_size_or_count", SPATIAL),
        (
            "Describe the cube.",
            "small, plain, top left",
            "large, plain, top left",
            "place_size_or_count",
            SPATIAL,
        ),
        ("Describe the cube.", "small, plain, top left", "small, striped, top left", "texture", DRIFT),
        (
            "Describe the picture.",
            "a red cube and a blue ball",
            "a blue ball and a red cube",
            "place_size_or_count",
            SPATIAL,
        ),
        ("What color is the cube?", "red", "Blue", "colour", DRIFT),
        ("What shape is the red object?", "cube", "ring", "shape", DRIFT),
        ("Is the cube red?", "yes", "no", "claim", DRIFT),
        ("Is the cube not red?", "no", "yes", "claim", DRIFT),
        ("What is he holding?", "tennis racket", "tennis ball", "partly_right", DRIFT),
        ("Describe the picture.", "a dog runs on grass", "blue ring", "nothing_named", BLIND),
        ("What animal is this?", "dog", "cat", "called_otherwise", DRIFT),
        ("Is the cube red?", "yes", "tree", "another_kind", OTHER),
        ("Is there a cube?", "yes", "2", "another_kind", OTHER),
        ("What color is the cube?", "red", "No.", "another_kind", OTHER),
        ("Is the ball left or right of the cube?", "left", "ring", "unclassified", OTHER),
        ("How many balls are there?", "2", "many", "unclassified", OTHER),
        ("Why is it wet?", "rain", "because", "unclassified", OTHER),
        ("What color is the cube?", "red", "the the the the the", "repetition", OTHER),
    ],
)
def test_rules(question: str, accepted: str, said: str, rule: str, category: Category) -> None:
    found = judge(Failure(question, (accepted,), said))
    assert found is not None
    assert (found.name, found.category) == (rule, category)


def test_what_is_said_without_the_picture_is_a_prior() -> None:
    asked = ("What color is the banana?", ("green",), "Yellow.")
    assert judge(Failure(*asked)).category is DRIFT  # type: ignore[union-attr]
    assert judge(Failure(*asked, blind="yellow")).category is PRIOR  # type: ignore[union-attr]
    assert judge(Failure(*asked, blind="blue")).category is DRIFT  # type: ignore[union-attr]
    there = ("Is there a dog?", ("yes",), "No.")
    assert judge(Failure(*there, blind="No, I see none")).name == "same_without_picture"  # type: ignore[union-attr]
    absent = ("Is there a dog?", ("no",), "Yes.")
    assert judge(Failure(*absent, blind="no")).name == "mistaken"  # type: ignore[union-attr]


def test_words_that_the_source_model_says_too_were_seen() -> None:
    asked = ("Describe the picture.", ("a dog runs on grass",), "brown animal")
    assert judge(Failure(*asked)).category is BLIND  # type: ignore[union-attr]
    assert judge(Failure(*asked, reference="an animal in a field")).name == "partly_right"  # type: ignore[union-attr]
    # The same wrong answer is no witness for itself.
    assert judge(Failure(*asked, reference="Brown animal.")).category is BLIND  # type: ignore[union-attr]


@pytest.mark.parametrize("said", ["", "  \n", "...", "<>", "—"])
def test_empty_outputs_are_never_judged(said: str) -> None:
    assert judge(Failure("What is it?", ("dog",), said)) is None


def test_the_answer_of_most_annotators_is_the_expected_one() -> None:
    failure = Failure("What color is it?", ("red",) * 6 + ("orange",) * 4, "blue")
    assert failure.expected == "red"
    assert judge(failure).name == "colour"  # type: ignore[union-attr]


WORDS = [
    "yes",
    "no",
    "0",
    "2",
    "three",
    "red",
    "blue",
    "cube",
    "left",
    "above",
    "small",
    "nothing",
    "cannot",
    "the",
    "a",
    "is",
    "there",
    "not",
    "how",
    "many",
    "{x}",
    "\n",
    ".",
    "?",
]
TEXTS = st.lists(st.sampled_from(WORDS), max_size=8).map(" ".join) | st.text(max_size=30)


@given(
    TEXTS,
    st.lists(TEXTS, min_size=1, max_size=10).map(tuple),
    TEXTS,
    st.none() | TEXTS,
    st.none() | TEXTS,
)
def test_every_failure_has_one_category_and_a_sentence(
    question: str, accepted: tuple[str, ...], said: str, reference: str | None, blind: str | None
) -> None:
    failure = Failure(question, accepted, said, reference, blind)
    found = judge(failure)
    assert (found is None) == failure.empty
    if found is not None:
        assert found in RULES and found.category in Category
        assert not any(rule.applies(failure) for rule in RULES[: RULES.index(found)])


def test_rules_have_a_name_of_their_own_and_a_sentence() -> None:
    assert len({rule.name for rule in RULES}) == len(RULES)
    assert {rule.category for rule in RULES} == set(Category)
    assert all(rule.reason[0].isupper() and rule.reason.endswith(".") for rule in RULES)


def test_the_page_about_the_rules_has_them_all_in_order(repository: Path) -> None:
    page = (repository / "docs" / "taxonomy.md").read_text()
    rows = [
        f"| {rule.name.replace('_', ' ')} | {rule.category.value.replace('_', ' ')} | {rule.reason} |"
        for rule in RULES
    ]
    assert "\n".join(rows) in page


def test_published_pope_failures_are_missed_or_invented_as_their_labels_say(real_data: Path) -> None:
    """LLaVA-1.5-13B on POPE's adversarial questions, which name what often stands beside the things shown."""
    scoring = real_data / "scoring"
    folder = scoring / "llava15_pope"
    questions = [json.loads(line) for line in (folder / "llava_pope_test.jsonl").read_text().splitlines()]
    said = [json.loads(line) for line in (folder / "answers/llava-v1.5-13b.jsonl").read_text().splitlines()]
    labelled = (scoring / "pope" / "coco_pope_adversarial.json").read_text().splitlines()
    labels = {(row["image"], row["text"]): row["label"] for row in map(json.loads, labelled)}
    counts: Counter[tuple[str, str]] = Counter()
    for question, answer in zip(questions, said, strict=True):
        text = question["text"].split("\n")[0]
        label = labels.get((question["image"], text))
        if question["category"] == "adversarial" and label and not accuracy(answer["text"], [label]):
            found = judge(Failure(text, (label,), answer["text"]))
            assert found is not None
            counts[label, found.name] += 1
    assert set(counts) == {("yes", "missed"), ("no", "invented")}
    assert sum(counts.values()) > 350
