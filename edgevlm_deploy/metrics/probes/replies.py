"""Is the reply to a negation probe a success? Two scorers, one as published and one that reads words.

`answers` are those of the probe's item: what is depicted for `is_not` and `absent`, the accepted answers
for `counter`, yes or no for the others.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

from edgevlm_deploy.metrics.accuracy import RIGHT_FROM, accuracy
from edgevlm_deploy.metrics.normalize import normalize, yes_or_no
from edgevlm_deploy.recipe import ProbeForm

NAMING = (ProbeForm.IS_NOT, ProbeForm.ABSENT)
NEAR_THE_START = 20
"""Characters in which the published scorer looks for a "no"."""
SUBSTANTIVE = 5
"""Characters that a reply to `counter` has to exceed there."""

_EMPTY_WORDS = """
yes no not and or none nothing anything something everything unknown i am do don't know cannot can't tell
sure it is there
"""
_SAYS_NOTHING = frozenset(_EMPTY_WORDS.split())
_DENIED_BEFORE = r"\b(?:not|no|never|isn't|wasn't|aren't|cannot be) (?:really |actually )?'?"
_DENIED_AFTER = r"'?(?: (?:is|are|was|were))? (?:not|wrong|incorrect|false|isn't|wasn't|aren't)\b"


def lenient(form: ProbeForm, text: str, answers: Sequence[str]) -> bool:
    """The rule of the published program, letter by letter: "I know" has a "no" near its start.

    Its right reply to `counter` fails when it is as short as "red", and any longer one passes.
    """
    reply, depicted = _letters(text), _letters(_commonest(answers))
    if not reply:
        return False
    if form in NAMING:
        return depicted[:NEAR_THE_START] not in reply
    if form is ProbeForm.COUNTER:
        return len(reply) > SUBSTANTIVE
    return ("yes" if form is ProbeForm.TRUE_YN else "no") in reply[:NEAR_THE_START]


def strict(form: ProbeForm, text: str, answers: Sequence[str]) -> bool:
    """Whole words only.

    `is_not`, `absent`: the reply names something, and nothing that is depicted. `false_yn`, `true_yn`: its
    first yes or no is the right one. `counter`: it holds to a right answer without denying it.
    """
    if form in NAMING:
        names = {word for word in normalize(text).split() if not word.isdigit()} - _SAYS_NOTHING
        return bool(names) and not any(_mentions(text, one) for one in _right(answers))
    if form is not ProbeForm.COUNTER:
        return yes_or_no(text) == answers[0]
    right = _right(answers)
    if right <= {"yes", "no"}:
        return yes_or_no(text) in right
    return any(_mentions(text, one) > _denials(text, one) for one in right)


def collapse(success: Sequence[float]) -> float:
    """Mean success over the forms − 1: 0 for a model that negation does not trouble."""
    return sum(success) / len(success) - 1.0


def _right(answers: Sequence[str]) -> set[str]:
    """Normalised answers that count as right: of ten annotators' those that two of them gave."""
    return {normalize(one) for one in answers if accuracy(one, answers) >= RIGHT_FROM}


def _mentions(text: str, words: str) -> int:
    return len(re.findall(rf"(?<!\w){re.escape(words)}(?!\w)", normalize(text))) if words else 0


def _denials(text: str, words: str) -> int:
    """Mentions that are denied: "not red", "red is wrong"."""
    named = rf"(?<!\w){re.escape(words)}(?!\w)"
    denied = rf"(?:{_DENIED_BEFORE}{named}|{named}{_DENIED_AFTER})"
    return len(re.findall(denied, normalize(text))) if words else 0


def _commonest(answers: Sequence[str]) -> str:
    return Counter(answers).most_common(1)[0][0]


def _letters(text: str) -> str:
    """Lower case, every mark a space, single spaces: the published program's normalisation."""
    return " ".join(re.sub(r"[^\w\s]", " ", text.lower()).split())
