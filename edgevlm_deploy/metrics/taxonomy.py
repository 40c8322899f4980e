"""Why is an answer wrong? One category a failure, by rules over words; the first rule that fits decides.

The five categories are those of "Edge Reliability Gap in Vision-Language Models" (Erol, arXiv 2603.26769,
2026), which had GPT-4o judge the text; these rules are ours. They see what was said and never the picture,
so a category is a reading of the answer, not a diagnosis of the network. An answer without a letter or a
digit is counted apart and never judged.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from functools import cached_property, partial

from edgevlm_deploy.metrics.normalize import normalize, yes_or_no


class Category(str, Enum):
    OBJECT_BLINDNESS = "object_blindness"
    """The thing that is asked for goes unnoticed."""
    SEMANTIC_DRIFT = "semantic_drift"
    """Things are noticed, what they are or mean is lost."""
    PRIOR_BIAS = "prior_bias"
    """The picture is ignored for what is usual."""
    SPATIAL_ERROR = "spatial_error"
    """Position, size, count or orientation."""
    OTHER = "other"


def _class(words: str) -> frozenset[str]:
    return frozenset(words.split())


_YES_NO = _class("yes no")
_POSITIONS = _class(
    """
    left right top bottom above below under underneath over behind front between beside near nearest
    far farthest closer closest inside outside middle center centre upper lower corner foreground
    background side edge north south east west
    """
)
_SIZES = _class(
    """
    small smaller smallest large larger largest big bigger biggest tiny huge tall taller tallest
    short shorter shortest long longer longest wide wider narrow narrower
    """
)
_ORIENTATIONS = _class(
    """
    up down upward downward upside upright sideways horizontal vertical diagonal clockwise facing
    tilted
    """
)
_SPATIAL = _POSITIONS | _SIZES | _ORIENTATIONS
_KINDS = {
    "colour": _class(
        """
        red orange yellow green blue purple violet pink brown black white gray grey cyan turquoise teal
        magenta maroon beige tan gold golden silver
        """
    ),
    "texture": _class(
        """
        plain striped dotted spotted checkered plaid smooth rough shiny matte wooden wood metal metallic
        plastic glass rubber stone brick leather fabric
        """
    ),
    "shape": _class(
        """
        cube box ball sphere cylinder cone pyramid ring star circle square triangle rectangle oval
        diamond heart cross round flat
        """
    ),
}
"""Properties of things whose words can be told from one another."""
_STOP_WORDS = _class(
    """
    a an the is are was were be it its this that these those there and or but of in on at to with
    for by as from i you he she they we his her their some very
    """
)

_EXISTENCE = re.compile(
    r"^(is|are|was|were) there\b|^(do|does|can|could) (you|we|one) (see|find|spot|notice)\b"
    r"|^(do|does) (the|this) (picture|image|photo|scene|video)s? (show|contain|have|include|depict)"
    r"|\b(visible|present|shown|depicted) in (the|this) (picture|image|photo|scene)",
    re.IGNORECASE,
)
_AMOUNT = re.compile(
    r"\b(how (many|much)|number of|more|fewer|less|as many|exactly|at least|at most"
    r"|[2-9]|\d\d+|two|three|four|five|six|seven|eight|nine|ten)\b",
    re.IGNORECASE,
)
_WHERE = re.compile(r"^(where|which (side|way|direction))\b", re.IGNORECASE)
_NEGATED = re.compile(r"\b(no|not|without|cannot)\b|n't\b", re.IGNORECASE)
_NAMING = re.compile(r"\b(what|which|who|whose)\b|^(describe|name|list|caption)\b", re.IGNORECASE)
_DENIAL = re.compile(
    r"\b(nothing|none|nobody|no one|nowhere|unknown|unanswerable|absent|missing|invisible|unable|cannot)\b"
    r"|\bnot (visible|there|present|shown|depicted|pictured|sure|clear|possible)\b|\b(can|could)n?[’']t\b"
    r"|\bthere (is|are) (no|not)\b|\bno (such|picture|image|object|people|person|animal|text)",
    re.IGNORECASE,
)
_WORD = re.compile(r"[^\W_]")
_REPETITIONS = 4
"""A word this often in a row is a decoder that does not stop, not an answer."""
_DESCRIPTION_WORDS = 3
"""From as many content words on an expected answer describes, below it names."""


@dataclass(frozen=True)
class Failure:
    """A wrong answer and what is known about it; texts as they were given and said."""

    question: str
    accepted: tuple[str, ...]
    said: str
    reference: str | None = None
    """What the source model says on the same item; None when its own answer is judged. Where the two differ,
    a word that both say is taken for something that is seen."""
    blind: str | None = None
    """What the same model says to the question without its picture; None when it was not asked."""

    @property
    def empty(self) -> bool:
        """Whether there is nothing to judge."""
        return _WORD.search(self.said) is None

    @cached_property
    def expected(self) -> str:
        """The accepted answer that most annotators gave, normalised."""
        return Counter(normalize(one) for one in self.accepted).most_common(1)[0][0]

    @cached_property
    def is_yes_no(self) -> bool:
        """Whether yes or no is the answer."""
        return self.expected in _YES_NO

    @cached_property
    def asks_existence(self) -> bool:
        """Whether it is asked if something is there, and not how much of it."""
        return self.is_yes_no and bool(_EXISTENCE.search(self.question)) and not self.asks_amount

    @cached_property
    def asks_amount(self) -> bool:
        return bool(_AMOUNT.search(self.question))

    @cached_property
    def is_there(self) -> bool:
        """Whether the thing that an existence question asks for is there."""
        return (self.expected == "yes") != bool(_NEGATED.search(self.question))

    @cached_property
    def missed_words(self) -> Counter[str]:
        """Expected words that were not said."""
        return _words(self.expected) - _words(self.said)

    @cached_property
    def added_words(self) -> Counter[str]:
        """Words that were said and not expected."""
        return _words(self.said) - _words(self.expected)

    @cached_property
    def shared_words(self) -> set[str]:
        """Words that were said and also stand in an accepted answer, or in another answer of the source."""
        known = _words(" ".join(self.accepted))
        if self.reference is not None and normalize(self.reference) != normalize(self.said):
            known |= _words(self.reference)
        return set((known & _words(self.said)).keys()) - _YES_NO

    def of_kind(self, kind: str) -> bool:
        """Whether another word of the kind was said than the expected one."""
        words = _KINDS[kind]
        return bool(self.missed_words.keys() & words) and bool(self.added_words.keys() & words)


def _words(text: str) -> Counter[str]:
    """Content words, as often as they occur."""
    return Counter(word for word in normalize(text).replace(".", " ").split() if word not in _STOP_WORDS)


def _same_without_picture(one: Failure) -> bool:
    if one.blind is None:
        return False
    if one.is_yes_no and yes_or_no(one.said) is not None:
        return yes_or_no(one.said) == yes_or_no(one.blind)
    return normalize(one.said) == normalize(one.blind)


def _repeats_itself(one: Failure) -> bool:
    words = normalize(one.said).split()
    rows = zip(*(words[shift:] for shift in range(_REPETITIONS)), strict=False)
    return any(len(set(row)) == 1 for row in rows)


def _denies(one: Failure) -> bool:
    """Nothing is seen, of something that is there: an expected answer that denies too is no such case."""
    denied = _DENIAL.search(one.said) is not None or normalize(one.said) == "0"
    expected = one.expected == "0" or any(_DENIAL.search(text) for text in one.accepted)
    return denied and not expected and not one.asks_existence


def _claims(one: Failure) -> bool | None:
    """Whether the answer to an existence question says that the thing is there."""
    if not one.asks_existence:
        return None
    said = yes_or_no(one.said)
    if said is None:
        return False if _DENIAL.search(one.said) else None
    return (said == "yes") != bool(_NEGATED.search(one.question))


def _is_of_another_kind(one: Failure) -> bool:
    """Yes or no to an open question, or no yes or no to a closed one."""
    if one.is_yes_no:
        return yes_or_no(one.said) is None
    return normalize(one.said) in _YES_NO


def _is_spatial(one: Failure) -> bool:
    if one.is_yes_no:
        return one.asks_amount or bool(_SPATIAL & set(normalize(one.question).split()))
    if _WHERE.search(one.question):
        return True
    missed, added = one.missed_words.keys(), one.added_words.keys()
    if not missed and not added:  # the same things in another order
        return len(_words(one.expected)) >= _DESCRIPTION_WORDS
    # An answer to a spatial question that is not spatial itself is no mistake about space.
    return all(map(_tells_space, missed or added)) and (not added or any(map(_tells_space, added)))


def _tells_space(word: str) -> bool:
    return word in _SPATIAL or word.isdigit()


@dataclass(frozen=True)
class Rule:
    """`reason` is the sentence that a report shows beside question, accepted and given answer."""

    name: str
    category: Category
    applies: Callable[[Failure], bool]
    reason: str


RULES = (
    Rule(
        "repetition",
        Category.OTHER,
        _repeats_itself,
        "It repeats itself instead of answering.",
    ),
    Rule(
        "same_without_picture",
        Category.PRIOR_BIAS,
        _same_without_picture,
        "It says the same without the picture.",
    ),
    Rule(
        "denied",
        Category.OBJECT_BLINDNESS,
        _denies,
        "It says that there is nothing of the kind, and there is.",
    ),
    Rule(
        "missed",
        Category.OBJECT_BLINDNESS,
        lambda one: one.is_there and _claims(one) is False,
        "What is asked for is there, and it says that it is not.",
    ),
    Rule(
        "mistaken",
        Category.SEMANTIC_DRIFT,
        lambda one: not one.is_there and _claims(one) is True and one.blind is not None,
        "It sees what is not there; without the picture it says otherwise, so it took something else for it.",
    ),
    Rule(
        "invented",
        Category.PRIOR_BIAS,
        lambda one: not one.is_there and _claims(one) is True,
        "It says that something is there that is not: the picture cannot have told it.",
    ),
    Rule(
        "another_kind",
        Category.OTHER,
        _is_of_another_kind,
        "It is no answer of the kind that was asked for.",
    ),
    Rule(
        "place_size_or_count",
        Category.SPATIAL_ERROR,
        _is_spatial,
        "It is wrong about a position, size, count or orientation.",
    ),
    Rule(
        "claim",
        Category.SEMANTIC_DRIFT,
        lambda one: one.is_yes_no,
        "The thing is named in the question; what is claimed about it is judged wrongly.",
    ),
    *(
        Rule(
            kind,
            Category.SEMANTIC_DRIFT,
            partial(Failure.of_kind, kind=kind),
            f"It sees the thing and takes its {kind} for another.",
        )
        for kind in _KINDS
    ),
    Rule(
        "partly_right",
        Category.SEMANTIC_DRIFT,
        lambda one: bool(one.shared_words),
        "Some of it is right, or said by the source model too, but not the whole.",
    ),
    Rule(
        "nothing_named",
        Category.OBJECT_BLINDNESS,
        lambda one: sum(_words(one.expected).values()) >= _DESCRIPTION_WORDS,
        "It names nothing of what is there.",
    ),
    Rule(
        "called_otherwise",
        Category.SEMANTIC_DRIFT,
        lambda one: bool(_NAMING.search(one.question)),
        "It sees something and calls it by another name.",
    ),
    Rule(
        "unclassified",
        Category.OTHER,
        lambda one: True,
        "None of the rules knows what went wrong.",
    ),
)
"""In the order in which they are tried; the last one fits everything."""


def judge(failure: Failure) -> Rule | None:
    """The rule that gives a wrong answer its category; None when it is empty.

    That the answer is wrong is taken for granted.
    """
    return None if failure.empty else next(rule for rule in RULES if rule.applies(failure))
