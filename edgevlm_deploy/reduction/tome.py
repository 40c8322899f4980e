"""ToMe (Bolya et al., ICLR 2023): bipartite soft matching, on the image tokens behind the connector.

The paper merges between the layers of the encoder. A pixel shuffle needs the whole grid behind the last
layer, so the merging comes after it, in rounds that stand for layers. Similarity is the cosine of the last
layer's attention keys, averaged over a group as the tokens are, each of the encoder's tokens counting once.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from edgevlm_deploy.reduction import selection

ROUNDS = 8
"""Rounds that it would take to merge everything. A single round may halve the tokens, but then it also merges
what is not alike; the paper too takes few tokens a layer.
"""


def merging(keys: Any, kept: int) -> Any:
    """keys float32 [..., n, D] → float32 [..., kept, n].

    Rows sum to 1. Multiplied with tokens [..., n, width] it gives the merged ones.
    """
    n = keys.shape[-2]
    members = selection.constant(np.eye(n))
    while (count := members.shape[-2]) > kept:
        merged = min(max(1, n // ROUNDS), count // 2, count - kept)
        members = matched(selection.means(members) @ keys, merged) @ members
    return selection.means(members)


def matched(keys: Any, merged: int) -> Any:
    """keys float32 [..., n, D] → 0/1 [..., n − merged, n]: one round of bipartite soft matching.

    Every token at an even place proposes the most similar one at an odd place; the `merged` ≤ n / 2 most
    similar pairs become one group each.
    """
    n = keys.shape[-2]
    odd = selection.constant(np.arange(n) % 2)
    joined = selection.most_similar(keys, odd)
    unit = selection.normalized(keys)
    proposed = (unit * (joined @ unit)).sum(-1)  # cosine to the chosen partner
    gone = (selection.ranks(proposed - 4 * odd) < merged).float()
    return selection.groups(1 - gone, joined, n - merged)
