"""Choosing and merging as matrix products, from operators that every backend has.

No TopK, no gathering by computed indices, no shapes that depend on values: what is kept is a 0/1 vector, and
what becomes of it a matrix that multiplies the tokens.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch


def constant(values: Any) -> Any:
    """float32 of an array, as a constant of the traced graph: torch.arange and the like would be computed by
    operators that not every runtime has.
    """
    return torch.tensor(values.tolist(), dtype=torch.float32)


def normalized(vectors: Any) -> Any:
    """float32 [..., D], each divided by its length."""
    return vectors / ((vectors * vectors).sum(-1, keepdim=True) + 1e-24).sqrt()


def ranks(scores: Any) -> Any:
    """float32 [..., n] → float32 [..., n]: 0 for the largest; of equals the first one comes first."""
    n = scores.shape[-1]
    other, own = scores[..., None, :], scores[..., :, None]
    earlier = constant(np.tri(n, k=-1))
    # Greater alone: older opsets do not have GreaterOrEqual.
    before = earlier * (1 - (own > other).float()) + (1 - earlier) * (other > own).float()
    return before.sum(-1)


def places(chosen: Any) -> Any:
    """0/1 [..., n] → float32 [..., n]: how many were chosen before each."""
    n = chosen.shape[-1]
    return (chosen[..., None, :] * constant(np.tri(n, k=-1))).sum(-1)


def rows_of(chosen: Any, count: int) -> Any:
    """0/1 [..., n] with `count` ones → 0/1 [..., count, n]: one row for each that was chosen, in order."""
    wanted = constant(np.arange(count)[:, None])
    return chosen[..., None, :] * (places(chosen)[..., None, :] == wanted).float()


def most_similar(keys: Any, candidates: Any) -> Any:
    """keys float32 [..., n, D], candidates 0/1 [..., n] → 0/1 [..., n, n]: row i has its one at the candidate
    with the largest cosine to i.
    """
    unit = normalized(keys)
    cosine = unit @ unit.transpose(-1, -2)  # within [−1, 1], so 4 less is less than any candidate's
    nearest = (cosine - 4 * (1 - candidates[..., None, :])).argmax(-1, keepdim=True)
    return (nearest.float() == constant(np.arange(keys.shape[-2]))).float()


def groups(kept: Any, joined: Any, count: int) -> Any:
    """kept 0/1 [..., n] with `count` ones, joined 0/1 [..., n, n] → 0/1 [..., count, n]: who is in which
    group.

    A kept token stands in its own group; any other one goes where its row of `joined` says. Groups come in
    the order of the kept tokens.
    """
    n = kept.shape[-1]
    stays = kept[..., :, None] * constant(np.eye(n))
    goes = (1 - kept)[..., :, None] * joined
    return rows_of(kept, count) @ (stays + goes).transpose(-1, -2)


def means(members: Any) -> Any:
    """0/1 [..., count, n] → float32 [..., count, n]: the matrix that averages each group."""
    return members / members.sum(-1, keepdim=True)
