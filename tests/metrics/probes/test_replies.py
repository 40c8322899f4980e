"""Two scorers of replies to negation probes, on replies written by hand."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgevlm_deploy.metrics.probes.replies import collapse, lenient, strict
from edgevlm_deploy.recipe import ProbeForm

IS_NOT, ABSENT, FALSE_YN, COUNTER, TRUE_YN = (ProbeForm(form.value) for form in ProbeForm)


@pytest.mark.parametrize(
    ("form", "reply", "answers", "published", "by_words"),
    [
        (IS_NOT, "A bicycle.", ("dog",), True, True),
        (IS_NOT, "A dog.", ("dog",), False, False),
        (IS_NOT, "There is no dog.", ("dog",), False, False),
        (IS_NOT, "A hotdog", ("dog",), False, True),
        (IS_NOT, "Nothing.", ("dog",), True, False),
        (IS_NOT, "2", ("dog",), True, False),
        (IS_NOT, "yes and no", ("dog",), True, False),
        (IS_NOT, "I don't know", ("dog",), True, False),
        (IS_NOT, "", ("dog",), False, False),
        (ABSENT, "a kitten", ("cat", "kitten"), True, False),
        (ABSENT, "The two dogs", ("2 dogs",), True, False),
        (FALSE_YN, "No.", ("no",), True, True),
        (FALSE_YN, "No, the dog is shown.", ("no",), True, True),
        (FALSE_YN, "Yes.", ("no",), False, False),
        (FALSE_YN, "I do not know", ("no",), True, False),
        (FALSE_YN, "Yes, it is not shown", ("no",), True, False),
        (FALSE_YN, "There is snow", ("no",), True, False),
        (FALSE_YN, "It is certainly not so, no.", ("no",), True, True),
        (FALSE_YN, "That is certainly a false claim, no.", ("no",), False, True),
        (TRUE_YN, "Yes", ("yes",), True, True),
        (TRUE_YN, "eyes", ("yes",), True, False),
        (TRUE_YN, "No", ("yes",), False, False),
        (COUNTER, "red", ("red",), False, True),
        (COUNTER, "It is red.", ("red",), True, True),
        (COUNTER, "purple", ("red",), True, False),
        (COUNTER, "It is not red", ("red",), True, False),
        (COUNTER, "red is wrong, it is blue", ("red",), True, False),
        (COUNTER, "Not blue, it is red", ("red",), True, True),
        (COUNTER, "the answer is not 'red'", ("red",), True, False),
        (COUNTER, "Not red? It is red.", ("red",), True, True),
        (COUNTER, "tired", ("red",), False, False),
        (COUNTER, "two", ("2",), False, True),
        (COUNTER, "yes", ("yes",), False, True),
        (COUNTER, "No, it is not", ("yes",), True, False),
        (COUNTER, "", ("red",), False, False),
    ],
)
def test_replies_by_both_scorers(
    form: ProbeForm, reply: str, answers: tuple[str, ...], published: bool, by_words: bool
) -> None:
    assert lenient(form, reply, answers) is published
    assert strict(form, reply, answers) is by_words


def test_what_one_of_ten_annotators_said_is_neither_right_nor_forbidden() -> None:
    answers = ("red",) * 6 + ("crimson",) * 3 + ("blue",)
    assert strict(COUNTER, "crimson", answers) and not strict(COUNTER, "blue", answers)
    assert strict(IS_NOT, "something blue", answers) and not strict(IS_NOT, "crimson", answers)


LETTERS = st.text("bcdfghjklmpqrtvwxz", min_size=1, max_size=6)
"""No vowels: articles, number words and contractions are levelled before words are compared."""


@given(LETTERS, LETTERS)
def test_no_inside_another_word_is_never_a_no(before: str, after: str) -> None:
    for word in (f"{before}no", f"no{after}", f"{before}no{after}"):
        assert not strict(FALSE_YN, word, ("no",))
        assert not strict(TRUE_YN, word.replace("no", "yes"), ("yes",))
        assert lenient(FALSE_YN, word, ("no",))


@given(st.sampled_from(["No.", "no", "NO!", "No, it is."]), LETTERS)
def test_a_no_of_its_own_is_a_no_for_both(reply: str, after: str) -> None:
    assert strict(FALSE_YN, f"{reply} {after}", ("no",)) and lenient(FALSE_YN, f"{reply} {after}", ("no",))


@given(LETTERS, LETTERS)
def test_a_word_is_held_to_only_as_a_whole(right: str, more: str) -> None:
    assert strict(COUNTER, f"It is {right}.", (right,))
    assert not strict(COUNTER, f"It is {right}{more}.", (right,))
    assert not strict(COUNTER, f"It's not {right}.", (right,))
    assert not strict(IS_NOT, f"No {right} there", (right,))


def test_published_rates_collapse_as_published() -> None:
    """Erol, arXiv 2603.26769: −20.8 and −33.2 points from the rates of four forms on VQA and COCO."""
    assert collapse([0.47, 0.56, 0.49, 1.00, 0.97, 0.99, 0.86, 1.00]) == pytest.approx(-0.208, abs=6e-4)
    assert collapse([0.94, 0.99, 0.02, 0.39, 1.00, 1.00, 0.00, 1.00]) == pytest.approx(-0.332, abs=6e-4)
