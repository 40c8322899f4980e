"""Every answer is recomputed from the scene by rules written for the test, not by the generator's."""

from __future__ import annotations

import re
from collections import Counter, defaultdict

import pytest

from edgevlm_deploy.demo.questions import KINDS, Question, ask_any
from edgevlm_deploy.demo.scenes import (
    COLOURS,
    COLUMNS,
    SHAPES,
    SIZES,
    Scene,
    Split,
    Thing,
    crowded,
    generator,
    scene,
)

EVALUATED, LEARNT, PER_PICTURE = 400, 1200, 8


def asked(split: Split, pictures: int) -> list[tuple[Scene, Question]]:
    pairs = []
    for index in range(pictures):
        one = scene(split, index)
        pairs += [(one, question) for question in ask_any(one, PER_PICTURE, generator(split, index, 1))]
    return pairs


@pytest.fixture(scope="module")
def evaluation() -> list[tuple[Scene, Question]]:
    return asked(Split.EVALUATION, EVALUATED)


@pytest.fixture(scope="module")
def training() -> list[tuple[Scene, Question]]:
    return asked(Split.TRAIN, LEARNT)


def named(things: tuple[Thing, ...], words: str) -> list[Thing]:
    """Things that "red ball", "ball" or "red" speaks of."""
    wanted = words.removesuffix(" object").split()
    return [t for t in things if all(word in (t.colour, t.shape, t.size, t.texture) for word in wanted)]


def only(things: tuple[Thing, ...], words: str) -> Thing:
    found = named(things, words)
    assert len(found) == 1, f"{words!r} is ambiguous"
    return found[0]


def yes(truth: bool) -> str:
    return "yes" if truth else "no"


def half(cell: int, first: str, second: str) -> str:
    return first if cell < COLUMNS / 2 else second


def truth(things: tuple[Thing, ...], text: str) -> str:
    """The answer to a question, from the objects alone."""
    if match := re.fullmatch(r"(?:Is there|Do you see|Does the picture show) a (.+)\?", text):
        return yes(bool(named(things, match[1])))
    if match := re.fullmatch(r"Is there no (.+)\?", text):
        return yes(not named(things, match[1]))
    if match := re.fullmatch(r"What (color|shape|size) is the (.+?)(?: object)?\?", text):
        return str(getattr(only(things, match[2]), "colour" if match[1] == "color" else match[1]))
    if match := re.fullmatch(r"What texture does the (.+) have\?", text):
        return only(things, match[1]).texture
    if text == "How many objects are there?":
        return str(len(things))
    if match := re.fullmatch(r"How many (\w+?)(?: object)?s are there\?", text):
        return str(len(named(things, match[1])))
    if match := re.fullmatch(r"Is the (.+) above or below the (.+)\?", text):
        a, b = only(things, match[1]), only(things, match[2])
        assert a.row != b.row
        return "above" if a.row < b.row else "below"
    if match := re.fullmatch(r"Is the (.+) left or right of the (.+)\?", text):
        a, b = only(things, match[1]), only(things, match[2])
        assert a.column != b.column
        return "left" if a.column < b.column else "right"
    if match := re.fullmatch(r"Is the (.+) in the (?:top or bottom|left or right) half\?", text):
        thing = only(things, match[1])
        return half(thing.row, "top", "bottom") if "top" in text else half(thing.column, "left", "right")
    if match := re.fullmatch(r"Is the (.+) larger than the (.+)\?", text):
        a, b = only(things, match[1]), only(things, match[2])
        return yes(SIZES.index(a.size) > SIZES.index(b.size))
    if match := re.fullmatch(r"Are there more (\w+)s than (\w+)s\?", text):
        return yes(len(named(things, match[1])) > len(named(things, match[2])))
    if match := re.fullmatch(r"Is the (\w+) (not )?(\w+)\?", text):
        return yes((match[3] in vars(only(things, match[1])).values()) != bool(match[2]))
    if match := re.fullmatch(r"Describe the (\w+ \w+)\.", text):
        thing = only(things, match[1])
        place = f"{half(thing.row, 'top', 'bottom')} {half(thing.column, 'left', 'right')}"
        return f"{thing.size}, {thing.texture}, {place}"
    assert text == "Describe the picture.", text
    assert len({thing.column for thing in things}) == len(things), "from left to right is no order"
    names = [f"a {thing.colour} {thing.shape}" for thing in things]
    return f"{', '.join(names[:-1])} and {names[-1]}"


def test_every_answer_is_true(evaluation: list[tuple[Scene, Question]]) -> None:
    for one, question in evaluation:
        assert question.answer == truth(one.things, question.text), (one.things, question)


def test_every_answer_about_a_crowd_is_true() -> None:
    """Among them are crowds that hold every shape."""
    for index in range(250):
        one = crowded(Split.TUNING, index)
        for question in ask_any(one, PER_PICTURE, generator(Split.TUNING, index, 1)):
            assert question.answer == truth(one.things, question.text), (one.things, question)


def test_questions_of_one_picture_differ(evaluation: list[tuple[Scene, Question]]) -> None:
    for start in range(0, len(evaluation), PER_PICTURE):
        of_one = [question for _, question in evaluation[start : start + PER_PICTURE]]
        assert len(set(of_one)) == PER_PICTURE


def test_every_kind_is_asked(evaluation: list[tuple[Scene, Question]]) -> None:
    counts = Counter(question.kind for _, question in evaluation)
    assert set(counts) == set(KINDS)
    assert min(counts.values()) > 0.05 * len(evaluation)


@pytest.mark.parametrize("kind", ["existence", "yes_no", "negation", "comparison"])
def test_yes_and_no_are_even(training: list[tuple[Scene, Question]], kind: str) -> None:
    answers = [question.answer for _, question in training if question.kind == kind]
    assert set(answers) == {"yes", "no"}
    assert 0.45 < answers.count("yes") / len(answers) < 0.55


def test_no_answer_dominates_a_kind(training: list[tuple[Scene, Question]]) -> None:
    by_kind: dict[str, Counter[str]] = defaultdict(Counter)
    for _, question in training:
        by_kind[question.kind][question.answer] += 1
    highest = {kind: max(counts.values()) / counts.total() for kind, counts in by_kind.items()}
    limits = dict.fromkeys(KINDS, 0.55) | {"attribute": 0.2, "count": 0.35, "relation": 0.4, "caption": 0.06}
    assert all(highest[kind] < limits[kind] for kind in KINDS), highest


def test_the_question_alone_does_not_give_the_answer_away(
    training: list[tuple[Scene, Question]], evaluation: list[tuple[Scene, Question]]
) -> None:
    """The best blind guess: per question text the commonest training answer, else that of its template."""
    tables: list[dict[str, Counter[str]]] = [defaultdict(Counter), defaultdict(Counter)]
    for _, question in training:
        for table, key in zip(tables, _keys(question), strict=True):
            table[key][question.answer] += 1

    def guess(question: Question) -> str:
        for table, key in zip(tables, _keys(question), strict=True):
            if table[key].total() >= 20:
                return table[key].most_common(1)[0][0]
        return ""

    hits: dict[str, list[bool]] = defaultdict(list)
    for _, question in evaluation:
        hits[question.kind].append(guess(question) == question.answer)
    blind = {kind: sum(values) / len(values) for kind, values in hits.items()}
    limits = dict.fromkeys(KINDS, 0.6) | {"attribute": 0.45, "count": 0.47, "caption": 0.1}
    assert all(blind[kind] <= limits[kind] for kind in KINDS), blind


def _keys(question: Question) -> tuple[str, str]:
    """The text, and the text without the names of shapes and colours."""
    values = "|".join((*SHAPES, *COLOURS))
    return question.text, question.kind + re.sub(rf"\b({values})s?\b", "_", question.text)
