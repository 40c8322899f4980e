"""Masks and buckets, by enumeration."""

from __future__ import annotations

import numpy as np
import pytest
from edgevlm_runner.errors import ExecutionError
from edgevlm_runner.runtimes import decoder_window
from edgevlm_runner.runtimes.decoder_window import HIDDEN


@pytest.mark.parametrize(
    ("filled", "max_context", "expected"),
    [
        (0, 2048, 64),
        (64, 2048, 64),
        (65, 2048, 128),
        (1025, 2048, 2048),
        (2048, 2048, 2048),
        (300, 320, 320),
        (320, 320, 320),
        (24, 24, 64),
    ],
)
def test_a_bucket_holds_what_is_filled(filled: int, max_context: int, expected: int) -> None:
    assert decoder_window.bucket(filled, max_context) == expected
    assert expected in decoder_window.buckets(max_context)


def test_buckets_are_few_and_end_with_the_cache() -> None:
    assert decoder_window.buckets(320) == [64, 128, 256, 320]
    assert decoder_window.buckets(24) == [64] == [decoder_window.rows(24)]


@pytest.mark.parametrize("filled", [-1, 321])
def test_more_tokens_than_the_cache_has(filled: int) -> None:
    with pytest.raises(ValueError, match="in a cache of 320"):
        decoder_window.bucket(filled, 320)


@pytest.mark.parametrize(("filled", "past", "tokens"), [(0, 64, 1), (0, 64, 5), (3, 64, 1), (64, 64, 2)])
def test_the_append_mask(filled: int, past: int, tokens: int) -> None:
    mask = decoder_window.mask(filled, past, tokens)
    assert mask.dtype == np.float32 and mask.shape == (1, 1, tokens, past + tokens)
    for row in range(tokens):
        seen = [column for column in range(past + tokens) if mask[0, 0, row, column] == 0]
        assert seen == [*range(filled), *range(past, past + row + 1)]
    assert set(np.unique(mask)) <= {0.0, float(HIDDEN)}
    assert np.float16(HIDDEN) == HIDDEN


@pytest.mark.parametrize(("filled", "tokens"), [(0, 1), (0, 5), (3, 1), (30, 2)])
def test_the_update_mask(filled: int, tokens: int) -> None:
    mask = decoder_window.mask_static(filled, tokens, 32)
    assert mask.dtype == np.float32 and mask.shape == (1, 1, tokens, 32)
    for row in range(tokens):
        seen = [column for column in range(32) if mask[0, 0, row, column] == 0]
        assert seen == list(range(filled + row + 1))


def test_positions_follow_what_is_filled() -> None:
    found = decoder_window.positions(7, 3)
    assert found.dtype == np.int32 and found.tolist() == [[7, 8, 9]]


def test_pieces_cover_a_prompt_once() -> None:
    assert decoder_window.pieces(7, 3) == [(0, 3), (3, 3), (6, 1)]
    assert decoder_window.pieces(3, 3) == [(0, 3)]


def test_a_prompt_that_sees_all_of_itself_stays_in_one_piece() -> None:
    appended = decoder_window.mask(0, 64, 3, whole=True)[0, 0]
    assert (appended[:, :64] == HIDDEN).all() and (appended[:, 64:] == 0).all()
    updated = decoder_window.mask_static(0, 3, 8, whole=True)[0, 0]
    assert (updated[:, :3] == 0).all() and (updated[:, 3:] == HIDDEN).all()
    # One token after it sees what a causal one does.
    np.testing.assert_array_equal(decoder_window.mask(3, 64, 1, True), decoder_window.mask(3, 64, 1))
    np.testing.assert_array_equal(
        decoder_window.mask_static(3, 1, 8, True), decoder_window.mask_static(3, 1, 8)
    )
    assert decoder_window.pieces(5, 8, whole=True) == [(0, 5)]
    with pytest.raises(ExecutionError, match="5 tokens all see each other"):
        decoder_window.pieces(5, 4, whole=True)
