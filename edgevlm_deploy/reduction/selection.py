"""Choosing and merging as matrix products, from operators that every backend has.

No TopK, no gathering by computed indices, no shapes that depend on values: what is kept is a 0/1 vector, and
what becomes of it a matrix that multiplies the tokens.
"""

from __future__ import annotations

from typing import Any

import torch


def ranks(scores: Any) -> Any:
    """float32 [..., n] → float32 [..., n]: 0 for the largest; of equals the first one comes first."""
    n = scores.shape[-1]
    other, own = scores[..., None, :], scores[..., :, None]
    earlier = torch.ones(n, n).tril(-1)
    before = earlier * (other >= own).float() + (1 - earlier) * (other > own).float()
    return before.sum(-1)


def places(chosen: Any) -> Any:
    """0/1 [..., n] → float32 [..., n]: how many were chosen before each."""
    n = chosen.shape[-1]
    return (chosen[..., None, :] * torch.ones(n, n).tril(-1)).sum(-1)


def rows_of(chosen: Any, count: int) -> Any:
    """0/1 [..., n] with `count` ones → 0/1 [..., count, n]: one row for each that was chosen, in order."""
    wanted = torch.arange(count, dtype=torch.float32)[:, None]
    return chosen[..., None, :] * (places(chosen)[..., None, :] == wanted).float()


def most_similar(keys: Any, candidates: Any) -> Any:
    """keys float32 [..., n, D], candidates 0/1 [..., n] → 0/1 [..., n, n]: row i has its one at the candidate
    with the largest cosine to i.
    """
    unit = keys / keys.norm(dim=-1, keepdim=True).clamp(min=1e-12)
    cosine = unit @ unit.transpose(-1, -2)  # within [−1, 1], so 4 less is less than any candidate's
    nearest = (cosine - 4 * (1 - candidates[..., None, :])).argmax(-1, keepdim=True)
    return (nearest == torch.arange(keys.shape[-2])).float()


def groups(kept: Any, joined: Any, count: int) -> Any:
    """kept 0/1 [..., n] with `count` ones, joined 0/1 [..., n, n] → 0/1 [..., count, n]: who is in which group.

    A kept token stands in its own group; any other one goes where its row of `joined` says. Groups come in
    the order of the kept tokens.
    """
    n = kept.shape[-1]
    stays = kept[..., :, None] * torch.eye(n)
    goes = (1 - kept)[..., :, None] * joined
    return rows_of(kept, count) @ (stays + goes).transpose(-1, -2)


def means(members: Any) -> Any:
    """0/1 [..., count, n] → float32 [..., count, n]: the matrix that averages each group."""
    return members / members.sum(-1, keepdim=True)
