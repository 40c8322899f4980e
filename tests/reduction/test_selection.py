"""Choosing and merging by matrix products, against loops."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from edgevlm_deploy.reduction import selection

SCORES = arrays.arrays(np.float32, 9, elements=st.integers(-3, 3).map(float))
CHOSEN = arrays.arrays(np.float32, 9, elements=st.sampled_from([0.0, 1.0]))


@given(SCORES)
def test_ranks_are_those_of_a_stable_sort(scores: np.ndarray) -> None:
    order = np.argsort(-scores, kind="stable")
    assert selection.ranks(torch.from_numpy(scores))[torch.from_numpy(order)].tolist() == list(range(9))


@given(CHOSEN.filter(np.any))
def test_rows_of_pick_in_order(chosen: np.ndarray) -> None:
    count = int(chosen.sum())
    picked = selection.rows_of(torch.from_numpy(chosen), count) @ torch.arange(9.0)
    assert picked.tolist() == np.flatnonzero(chosen).tolist()


@given(arrays.arrays(np.float32, (6, 4), elements=st.floats(-2, 2, width=32)), st.integers(0, 5))
def test_most_similar_is_a_candidate_with_the_largest_cosine(keys: np.ndarray, only: int) -> None:
    candidates = np.ones(6, np.float32)
    candidates[only] = 0
    unit = keys / np.sqrt(np.square(keys).sum(1, keepdims=True) + 1e-24)
    found = selection.most_similar(torch.from_numpy(keys), torch.from_numpy(candidates)).numpy()
    assert found.sum(1).tolist() == [1] * 6 and not found[:, only].any()
    for row, column in enumerate(found.argmax(1)):
        best = max(float(unit[row] @ unit[one]) for one in range(6) if one != only)
        assert float(unit[row] @ unit[column]) >= best - 1e-5


def test_groups_hold_every_token_once() -> None:
    kept = torch.tensor([1.0, 0, 1, 0])
    joined = torch.tensor([[0.0, 0, 1, 0], [1, 0, 0, 0], [1, 0, 0, 0], [0, 0, 1, 0]])
    members = selection.groups(kept, joined, 2)
    assert members.tolist() == [[1, 1, 0, 0], [0, 0, 1, 1]]
    assert selection.means(members).tolist() == [[0.5, 0.5, 0, 0], [0, 0, 0.5, 0.5]]
