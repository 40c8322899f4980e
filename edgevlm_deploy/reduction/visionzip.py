"""VisionZip (Yang et al., CVPR 2025): keep the tokens that get most attention, merge the rest by similarity.

Without a CLS token, how much attention a token gets is averaged over all tokens that look, as the authors do
for SigLIP and for Qwen's encoder. Contextual tokens are taken at even distances among those left; every
other one joins the most similar, by cosine of the attention keys. Here a group is averaged; the authors'
program adds the average of those that join to the contextual token itself, which doubles its length, and
puts contextual tokens last, while here all stay in the order of the picture.
"""

from __future__ import annotations

from typing import Any

from edgevlm_deploy.reduction import selection

CONTEXTUAL_SHARE = 10 / 64
"""Published: 54 dominant and 10 contextual of 64, 108 and 20 of 128, 162 and 30 of 192."""


def contextual_tokens(kept: int) -> int:
    """How many of the kept tokens are merged ones; at least one is dominant."""
    return min(kept - 1, max(1, round(CONTEXTUAL_SHARE * kept)))


def merging(received: Any, keys: Any, kept: int) -> Any:
    """received float32 [..., n] (attention), keys float32 [..., n, D] → float32 [..., kept, n].

    Rows sum to 1. Multiplied with tokens [..., n, width] it gives the reduced ones.
    """
    n = received.shape[-1]
    contextual = contextual_tokens(kept)
    dominant = (selection.ranks(received) < kept - contextual).float()
    if contextual == 0:
        return selection.rows_of(dominant, kept)
    rest = 1 - dominant
    step = (n - (kept - contextual)) // contextual
    place = selection.places(rest)
    target = rest * sum((place == index * step).float() for index in range(contextual))
    joined = selection.most_similar(keys, target)
    return selection.means(selection.groups(dominant + target, joined, kept))
