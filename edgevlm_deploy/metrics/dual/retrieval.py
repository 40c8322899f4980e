"""Finding the text of a picture and the picture of a text.

`similarity` is float [Q, M]: query q against candidate m. `relevant` is bool [Q, M]; a query may have
several right candidates, the best of which counts. The other direction is the transpose of both.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from edgevlm_deploy.errors import DataError

Floats = NDArray[np.float64]
Codes = NDArray[np.int64]
Flags = NDArray[np.bool_]


def ranks(similarity: Floats, relevant: Flags) -> Codes:
    """Rank of each query's best right candidate, from 1: int64 [Q]. Wrong ones of equal score go first.

    Raises DataError when a query has no right candidate.
    """
    lacking = np.flatnonzero(~relevant.any(axis=1))
    if len(lacking):
        raise DataError(
            f"retrieval: {len(lacking)} of {len(relevant)} queries have no right candidate, "
            f"for instance number {lacking[0]}; leave them out."
        )
    best = np.where(relevant, similarity, -np.inf).max(axis=1, keepdims=True)
    return np.asarray(1 + ((similarity >= best) & ~relevant).sum(axis=1), dtype=np.int64)


def recall_at(found: Codes, k: int) -> float:
    """R@k: the share of queries with a right candidate among the first k."""
    return float(np.mean(found <= k))


def median_rank(found: Codes) -> float:
    return float(np.median(found))
