"""Which clean items can be probed, in which words, and how many probes there are."""

from __future__ import annotations

import random

import pytest
from edgevlm_runner.contract import Item, Kind
from hypothesis import given
from hypothesis import strategies as st

from edgevlm_deploy import suites
from edgevlm_deploy.errors import DataError
from edgevlm_deploy.recipe import Evaluation, Negation, ProbeForm
from edgevlm_deploy.suites.negation import allows, subject

ANYTHING = st.text(min_size=1, max_size=30).filter(str.strip)


def item(number: int, question: str, *answers: str, image: bool = True) -> Item:
    return Item(
        id=f"q{number}",
        base_id=f"q{number}",
        group="",
        condition="clean",
        image=f"images/{number}.png" if image else "",
        image_id=f"{number}" if image else "",
        prompt=question,
        answers=answers or ("cube",),
    )


@pytest.mark.parametrize(
    ("question", "answers", "thing"),
    [
        ("What color is the cube?", ("red",), "red"),
        ("What animal is this?", ("cat",) * 6 + ("kitten",) * 4, "cat"),
        ("Is there a snowboard in the image?", ("yes",), "snowboard"),
        ("Is there a red ball?", ("Yes.",), "red ball"),
        ("Do you see a ball?", ("yes",), "ball"),
        ("Does the picture show a purple ring?", ("yes",), "purple ring"),
        ("Are there any dogs visible in this photo?", ("yes",), "dogs"),
        ("Is there a snowboard in the image?", ("no",), ""),
        ("Is there a cat or dog?", ("yes",), ""),
        ("Is the man wearing a hat?", ("yes",), ""),
        ("How many cubes are there?", ("2",), ""),
        ("How many cubes are there?", ("two",), ""),
        ("Is the cube left or right of the ball?", ("left",), ""),
        ("What size is the red cube?", ("large",), ""),
    ],
)
def test_what_is_shown_for_certain(question: str, answers: tuple[str, ...], thing: str) -> None:
    about = subject(item(0, question, *answers))
    assert about is not None and about.thing == thing
    for form in ProbeForm:
        assert allows(form, about) == (bool(thing) or form not in (ProbeForm.IS_NOT, ProbeForm.ABSENT))


@pytest.mark.parametrize(
    "left_out",
    [
        item(0, "Is there no ball?", "yes"),
        item(0, "Is the cube not red?", "no"),
        item(0, "What isn't there?", "dog"),
        item(0, "What is missing?", "wheel"),
        item(0, "Describe the picture.", "a red cube and a blue ball"),
        item(0, "What is it that one can see " + "very " * 12 + "well?", "dog"),
        item(0, "What is it?", "?"),
        item(0, "What follows one?", "two", image=False),
    ],
)
def test_what_is_not_probed(left_out: Item) -> None:
    assert subject(left_out) is None
    with pytest.raises(DataError, match="none of the 1 clean items can be probed"):
        suites.negated([left_out], Negation(), seed=0)


def test_the_words_of_each_form() -> None:
    made = suites.negated([item(1, "What color is the cube?", "red")], Negation(blind=False), seed=0)
    assert {probe.form: (probe.prompt, probe.answers) for probe in made} == {
        "is_not": ("What object or thing is NOT depicted in this image?", ("red",)),
        "absent": ("Name something absent from this image.", ("red",)),
        "false_yn": ("Is it true that 'red' is NOT shown in this image? Answer yes or no.", ("no",)),
        "counter": (
            "The answer to the question 'What color is the cube?' is NOT 'red'. What is the correct answer?",
            ("red",),
        ),
        "true_yn": ("Is it true that 'red' is shown in this image? Answer yes or no.", ("yes",)),
    }
    asked = {"is_not", "absent", "false_yn", "counter", "true_yn"}
    assert {probe.id for probe in made} == {f"q1@negated:{form}" for form in asked}
    assert {probe.base_id for probe in made} == {"q1"} and {probe.kind for probe in made} == {Kind.NEGATED}


def test_an_existence_question_forbids_its_thing_and_holds_to_its_yes() -> None:
    made = suites.negated([item(1, "Is there a dog?", "yes")], Negation(blind=False), seed=0)
    said = {probe.form: (probe.prompt, probe.answers) for probe in made}
    assert said["absent"][1] == ("dog",) and "'dog' is NOT shown" in said["false_yn"][0]
    assert said["counter"][1] == ("yes",) and "is NOT 'yes'" in said["counter"][0]


def test_an_answer_that_is_no_thing_is_quoted_with_its_question() -> None:
    made = suites.negated([item(1, "How many cubes are there?", "2")], Negation(blind=False), seed=0)
    said = {probe.form: probe.prompt for probe in made}
    assert set(said) == {"false_yn", "counter", "true_yn"}
    claim = (
        "Is it true that the answer to the question 'How many cubes are there?' is {}'2'? Answer yes or no."
    )
    assert said["false_yn"] == claim.format("NOT ") and said["true_yn"] == claim.format("")


def test_every_probe_has_a_twin_without_its_picture() -> None:
    made = suites.negated([item(n, "What is it?", "dog") for n in range(3)], Negation(items=2), seed=0)
    seen, unseen = made[:10], made[10:]
    assert len(seen) == len(unseen) == 2 * 5
    for one, twin in zip(seen, unseen, strict=True):
        assert (twin.prompt, twin.answers, twin.form, twin.base_id) == (
            one.prompt,
            one.answers,
            one.form,
            one.base_id,
        )
        assert (twin.image, twin.image_id, twin.kind) == ("", one.image_id, Kind.NEGATED_BLIND)
        assert twin.unseen and not one.unseen


def test_items_for_every_form_come_first() -> None:
    counts = [item(n, "How many are there?", "2") for n in range(50)]
    things = [item(50 + n, "What is it?", "dog") for n in range(3)]
    made = suites.negated([*counts, *things], Negation(items=5, blind=False), seed=0)
    bases = {form.value: {probe.base_id for probe in made if probe.form == form.value} for form in ProbeForm}
    assert bases["is_not"] == bases["absent"] == {"q50", "q51", "q52"}
    assert len(bases["counter"]) == 5 and bases["counter"] == bases["false_yn"] > bases["is_not"]


def test_off_by_default_and_independent_of_the_order() -> None:
    clean = [item(n, "What is it?", "dog") for n in range(40)]
    plain = suites.build(clean, Evaluation(corruptions=()))
    assert {one.kind for one in plain} == {Kind.CLEAN}
    evaluation = Evaluation(corruptions=(), negation=Negation(items=7), blind_items=6, grey_items=4)
    table = suites.build(clean, evaluation)
    assert table[:40] == plain and len(table) == 40 + 2 * 5 * 7 + 6 + 4
    assert suites.build(random.Random(1).sample(clean, 40), evaluation) == table
    assert len({one.id for one in table}) == len(table)


def test_without_its_picture_a_question_stays_what_it_is() -> None:
    clean = [item(n, "What is it?", "dog") for n in range(9)] + [item(9, "What is 1 + 1?", "2", image=False)]
    blind, grey = suites.blind(clean, 20, seed=0), suites.grey(clean, 5, seed=0)
    assert {one.base_id for one in blind} == {f"q{n}" for n in range(9)}
    assert [one.base_id for one in grey] == [one.base_id for one in blind[:5]]
    assert all(one.image == "" and one.image_id and one.prompt == "What is it?" for one in blind)
    assert all(one.image and one.condition == "blind:grey" and one.unseen for one in grey)


@given(ANYTHING, ANYTHING)
def test_any_question_and_answer_give_whole_probes_or_none(question: str, answer: str) -> None:
    asked = item(1, question, answer)
    made = suites.negated([asked], Negation(blind=False), seed=0) if subject(asked) else ()
    assert len(made) in (0, 3, 5)
    for probe in made:
        assert probe.answers
        if probe.form == "counter":
            assert question.strip() in probe.prompt and answer.strip() in probe.prompt
