"""Negation probes: clean items asked again in words that deny what the picture shows.

Forms, the words of `is_not`, `absent`, `false_yn` and `counter`, and 100 items a form are those of Erol,
"Edge Reliability Gap in Vision-Language Models", arXiv 2603.26769, and its program (knrl/quantifying-vlms).
There an answer such as "yes" or "2" is called shown; here a question whose answer is no thing that can be
seen is quoted instead, and is left out of `is_not` and `absent`.
"""

from __future__ import annotations

import dataclasses
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice

from edgevlm_runner.contract import NEGATED, NEGATED_BLIND, Item

from edgevlm_deploy.errors import DataError
from edgevlm_deploy.recipe import Negation, ProbeForm
from edgevlm_deploy.suites.clean import spread_over_images

IS_NOT = "What object or thing is NOT depicted in this image?"
ABSENT = "Name something absent from this image."
SHOWN = "Is it true that '{thing}' is {negation}shown in this image? Answer yes or no."
QUOTED = "Is it true that the answer to the question '{question}' is {negation}'{answer}'? Answer yes or no."
COUNTER = "The answer to the question '{question}' is NOT '{answer}'. What is the correct answer?"

MOST_WORDS = 3
"""Of an answer that a probe can be about: as many as nearly every answer of VQA has; a caption has more."""
LONGEST_QUESTION = 80
"""Characters. The published program cuts a longer one; here it is not probed."""

_DENIES = re.compile(r"\b(?:no|not|never|none|nothing|neither|without|absent|missing)\b|n't\b", re.IGNORECASE)
_ASKS_FOR_A_THING = re.compile(
    r"(?:(?:is|are) there|do you see|can you see|does (?:the|this) (?:image|picture|photo) (?:show|contain))"
    r" (?:an?|any|some) (?P<thing>[^?,]+?)"
    r"(?: (?:visible |shown |depicted )?in (?:the|this) (?:image|picture|photo|scene))?\s*\?",
    re.IGNORECASE,
)
_ABSTRACT = """
yes no none nothing unknown unsure both neither other zero one two three four five six seven eight nine ten
left right top bottom above below up down middle center centre front behind inside outside near far
small large big medium little tiny huge
"""
_NO_THINGS = frozenset(_ABSTRACT.split())
"""What answers name that no picture shows as a thing: truth, numbers, places, sizes."""


@dataclass(frozen=True)
class Subject:
    """What probes of one clean item speak of."""

    question: str
    answer: str
    """The commonest accepted answer."""
    thing: str
    """What the picture shows for certain, "" when question and answer name no thing."""


def negated(clean: Sequence[Item], wanted: Negation, *, seed: int) -> tuple[Item, ...]:
    """At most `wanted.items` probes per form, named "<id>@negated:<form>", then the same without pictures.

    Items that allow every form come first, so that the forms are asked of the same items as far as there
    are such. A form that no item allows has no probes.
    Raises DataError when no item can be probed at all.
    """
    pool = [(item, about) for item in spread_over_images(clean, seed=seed) if (about := subject(item))]
    if not pool:
        raise DataError(
            f"evaluation.negation asks for probes, and none of the {len(clean)} clean items can be probed: "
            f"that takes a picture, a question of at most {LONGEST_QUESTION} characters that denies nothing "
            f"itself, and an answer of at most {MOST_WORDS} words. Leave evaluation.negation out."
        )
    pool.sort(key=lambda row: not row[1].thing)
    probes: list[Item] = []
    for form in wanted.forms:
        made = (_probe(item, about, form) for item, about in pool if allows(form, about))
        probes += islice(made, wanted.items)
    return (*probes, *(_without_picture(probe) for probe in probes)) if wanted.blind else tuple(probes)


def subject(item: Item) -> Subject | None:
    """None when the item cannot be probed: no picture, a question that itself denies, a long question or
    answer.

    >>> shown = Item("q", "q", "", "clean", "a.png", "a", "Is there a dog in the image?", ("yes",))
    >>> subject(shown).thing
    'dog'
    """
    question, answer = item.prompt.strip(), Counter(item.answers).most_common(1)[0][0].strip()
    words = _words(answer)
    usable = item.image and words and len(words) <= MOST_WORDS and len(question) <= LONGEST_QUESTION
    if not usable or _DENIES.search(question):
        return None
    return Subject(question, answer, _thing(question, answer))


def allows(form: ProbeForm, about: Subject) -> bool:
    """`is_not` and `absent` are answered wrongly by naming the thing, so there has to be one."""
    return bool(about.thing) or form not in (ProbeForm.IS_NOT, ProbeForm.ABSENT)


def _thing(question: str, answer: str) -> str:
    """The thing that a yes confirms; for an open question the answer."""
    words = _words(answer)
    if words == ["yes"]:
        asked = _ASKS_FOR_A_THING.fullmatch(question)
        thing = asked["thing"].strip() if asked else ""
        # A yes to "a cat or a dog" confirms neither.
        return thing if len(_words(thing)) <= MOST_WORDS and "or" not in _words(thing) else ""
    names = all(word not in _NO_THINGS and not any(map(str.isdigit, word)) for word in words)
    return answer if names else ""


def _words(text: str) -> list[str]:
    return re.findall(r"[^\W_]+", text.lower())


def _probe(item: Item, about: Subject, form: ProbeForm) -> Item:
    question, answer = about.question, about.answer
    shown = item.answers if about.thing == answer else (about.thing,)
    prompt, answers = {
        ProbeForm.IS_NOT: (IS_NOT, shown),
        ProbeForm.ABSENT: (ABSENT, shown),
        ProbeForm.FALSE_YN: (_claim(about, "NOT "), ("no",)),
        ProbeForm.COUNTER: (COUNTER.format(question=question, answer=answer), item.answers),
        ProbeForm.TRUE_YN: (_claim(about, ""), ("yes",)),
    }[form]
    condition = NEGATED + form.value
    return dataclasses.replace(
        item,
        id=f"{item.id}@{condition}",
        base_id=item.id,
        condition=condition,
        prompt=prompt,
        answers=answers,
    )


def _claim(about: Subject, negation: str) -> str:
    if about.thing:
        return SHOWN.format(thing=about.thing, negation=negation)
    return QUOTED.format(question=about.question, answer=about.answer, negation=negation)


def _without_picture(probe: Item) -> Item:
    condition = NEGATED_BLIND + probe.form
    return dataclasses.replace(probe, id=f"{probe.base_id}@{condition}", condition=condition, image="")
