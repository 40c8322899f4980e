"""The normalisation of the official VQA evaluation."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgevlm_deploy.metrics.normalize import normalize, yes_or_no


@pytest.mark.parametrize(
    ("text", "normalized"),
    [
        ("The two cats.", "2 cats"),
        ("  A\tdog\non an  ice floe ", "dog on ice floe"),
        ("None", "0"),
        ("ten", "10"),
        ("dont know", "don't know"),
        ("couldnt've", "couldn't've"),
        ("couldn'tve", "couldn't've"),
        ("oclock", "o'clock"),
        ("twas", "'twas"),
        ("yallll", "yallll"),
        ("red/blue", "red blue"),
        ("red, blue", "red blue"),
        ("1,000", "1000"),
        ("3.5", "3.5"),
        ("St. Mary", "st mary"),
        ("black-and-white", "black and white"),
        ("", ""),
    ],
)
def test_golden(text: str, normalized: str) -> None:
    assert normalize(text) == normalized


@given(st.text(alphabet=st.characters(codec="ascii"), max_size=40))
def test_case_and_outer_space_do_not_matter(text: str) -> None:
    assert normalize(f"  {text.upper()} ") == normalize(text.lower())


@pytest.mark.parametrize(
    ("text", "parsed"),
    [
        ("Yes, there is.", "yes"),
        ("NO", "no"),
        ("There is not", None),
        ("I know snow", None),
        ("no, yes", "no"),
        ("", None),
    ],
)
def test_yes_and_no_are_whole_words(text: str, parsed: str | None) -> None:
    assert yes_or_no(text) == parsed
