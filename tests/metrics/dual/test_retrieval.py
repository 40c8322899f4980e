"""Retrieval in both directions, with several right candidates and with ties."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from edgevlm_deploy.errors import DataError
from edgevlm_deploy.metrics.dual.retrieval import median_rank, ranks, recall_at

SIMILARITY = arrays(np.float64, (6, 6), elements=st.integers(0, 5).map(float))
RELEVANT = arrays(np.bool_, (6, 6)).map(lambda flags: flags | np.eye(6, dtype=np.bool_))


def test_golden() -> None:
    similarity = np.array([[0.9, 0.8, 0.1], [0.9, 0.5, 0.7], [0.1, 0.2, 0.3]])
    own = np.eye(3, dtype=np.bool_)
    texts, pictures = ranks(similarity, own), ranks(similarity.T, own)
    assert texts.tolist() == [1, 3, 1]
    assert pictures.tolist() == [2, 2, 2]  # picture 1 ties with picture 0 for text 0: not found first
    assert (recall_at(texts, 1), recall_at(pictures, 1)) == (pytest.approx(2 / 3), 0.0)
    assert (median_rank(texts), median_rank(pictures)) == (1.0, 2.0)
    both = own | np.array([[False, True, False]] * 3)
    assert ranks(similarity, both).tolist() == [1, 3, 1]


@given(SIMILARITY, RELEVANT)
def test_by_sorting(similarity: np.ndarray, relevant: np.ndarray) -> None:
    """Wrong candidates first among equals, then the place of the first right one."""
    for found, row, right in zip(ranks(similarity, relevant), similarity, relevant, strict=True):
        order = sorted(range(len(row)), key=lambda place: (-row[place], right[place]))
        assert found == 1 + next(place for place, candidate in enumerate(order) if right[candidate])


@given(SIMILARITY, RELEVANT)
def test_more_right_candidates_are_never_harder_to_find(similarity: np.ndarray, relevant: np.ndarray) -> None:
    only = ranks(similarity, np.eye(6, dtype=np.bool_))
    assert (ranks(similarity, relevant) <= only).all()


def test_a_query_without_a_right_candidate_is_refused() -> None:
    with pytest.raises(DataError, match="1 of 2 queries have no right candidate, for instance number 1"):
        ranks(np.zeros((2, 2)), np.array([[True, False], [False, False]]))
