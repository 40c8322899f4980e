"""Answer normalisation of the official VQA evaluation (Antol et al., ICCV 2015; VQA v2)."""

from __future__ import annotations

import re

_ARTICLES = frozenset({"a", "an", "the"})
_NUMBERS = {
    word: str(number)
    for number, word in enumerate(
        ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
    )
} | {"none": "0"}

# The official table maps a contraction that lost one apostrophe to the full one. Left out are its
# entries that can never match (capital letters after lower-casing) or that undo themselves.
_CONTRACTED = """
ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't
he'd he'd've he's how'd how'll how's isn't it'd it'd've it'll ma'am might've mightn't mightn't've must've
mustn't needn't not've o'clock oughtn't 'ow's'at shan't she'd've should've shouldn't shouldn't've
somebody'd've somebody'll somebody's someone'd someone'd've someone'll someone's something'd something'd've
something'll that's there'd there'd've there're there's they'd they'd've they'll they're they've 'twas
wasn't we'd've we've weren't what'll what're what's what've when's where'd where's where've who'd who'd've
who'll who's who've why'll why're why's won't would've wouldn't wouldn't've y'all y'all'll y'all'd've
you'd you'd've you'll you're you've
"""
_CONTRACTIONS = {
    word[:place] + word[place + 1 :]: word
    for word in _CONTRACTED.split()
    for place, letter in enumerate(word)
    if letter == "'"
}

_PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
_THOUSANDS_COMMA = re.compile(r"\d,\d")
_PERIOD_OUTSIDE_NUMBER = re.compile(r"\.(?!\d)")


def normalize(text: str) -> str:
    """`text` as VQA compares it: punctuation, case, number words, articles and contractions levelled.

    Unlike there, an answer that is nothing but an article stays: "A" is a choice, not silence.

    >>> normalize("The two cats, I think.")
    '2 cats i think'
    """
    words = _strip_punctuation(" ".join(text.split())).lower().split()
    levelled = [_NUMBERS.get(word, word) for word in words]
    telling = [word for word in levelled if word not in _ARTICLES] or levelled
    return " ".join(_CONTRACTIONS.get(word, word) for word in telling)


def _strip_punctuation(text: str) -> str:
    """Delete a mark that touches a space, or any mark when "1,000" occurs; else make it a space."""
    stripped = text
    for mark in _PUNCTUATION:
        delete = f"{mark} " in text or f" {mark}" in text or _THOUSANDS_COMMA.search(text) is not None
        stripped = stripped.replace(mark, "" if delete else " ")
    return _PERIOD_OUTSIDE_NUMBER.sub("", stripped)


_YES_NO = re.compile(r"\b(yes|no)\b", re.IGNORECASE)


def yes_or_no(text: str) -> str | None:
    """The first whole word "yes" or "no" in lower case, or None; "not", "know" and "snow" hold neither."""
    found = _YES_NO.search(text)
    return found.group(1).lower() if found else None
