"""FastV (Chen et al., ECCV 2024): after a few decoder layers most image tokens are no longer looked at.

In front of layer K the image tokens are ranked by the attention that the last token of the prompt pays them
in layer K − 1, averaged over heads. The highest ranked go on, with their own positions; the others are
dropped from this and all later layers, once, while the prompt is read.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch


def layers(
    text: Any,
    hidden: Any,
    positions: Any,
    places: Any,
    left: int,
    layer: int,
    asked: int | None = None,
    before: dict[str, Any] | None = None,
    after: dict[str, Any] | None = None,
) -> Any:
    """The decoder `text` (transformers' Llama) on one prompt, or on one step after it.

    hidden         float32 [B, T, D], embedded prompt
    positions      int64 [B, T]
    places         int64 [B, T], 1 where an image token is
    left           tokens that go on from `layer`: T without the dropped image tokens
    asked          tokens of the prompt, the last of which ranks them; None: all T
    before, after  further arguments of the layers before `layer` and from there on

    Returns float32 [B, left, D] behind the last norm.
    """
    embeddings = text.rotary_emb(hidden, position_ids=positions)
    with _watched(text.layers[layer - 1].self_attn) as seen:
        for one in text.layers[:layer]:
            hidden = one(hidden, position_embeddings=embeddings, position_ids=positions, **(before or {}))
    paid = attention_paid(seen["query"], seen["key"], embeddings, asked)
    rows = going_on(paid, places, left)
    hidden = hidden.gather(1, rows[..., None].expand(-1, -1, hidden.shape[-1]))
    positions = positions.gather(1, rows)
    embeddings = text.rotary_emb(hidden, position_ids=positions)
    for one in text.layers[layer:]:
        hidden = one(hidden, position_embeddings=embeddings, position_ids=positions, **(after or {}))
    return text.norm(hidden)


def attention_paid(query: Any, key: Any, embeddings: Any, asked: int | None = None) -> Any:
    """query float32 [B, T, heads · size], key float32 [B, T, kv heads · size], cosines and sines [B, T, size]
    → float32 [B, T]: attention that the last of the first `asked` tokens pays to those, averaged over heads.
    """
    from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

    batch, tokens, size = key.shape[0], key.shape[1], embeddings[0].shape[-1]
    q, k = (one.reshape(batch, tokens, -1, size).transpose(1, 2) for one in (query, key))
    q, k = apply_rotary_pos_emb(q, k, *embeddings)
    q, k = q[:, :, :asked][:, :, -1:], k[:, :, :asked]
    folded = q.reshape(batch, k.shape[1], -1, size)  # [B, kv heads, heads per key, size]
    paid = torch.softmax(folded @ k.transpose(-1, -2) * size**-0.5, dim=-1).mean((1, 2))
    return paid if asked is None else torch.nn.functional.pad(paid, (0, tokens - asked))


def going_on(paid: Any, places: Any, left: int) -> Any:
    """paid float32 [B, T], places int64 [B, T] → int64 [B, left]: where all other tokens and the image tokens
    with most attention are, in order.
    """
    rank = torch.where(places == 1, paid, 2.0)  # attention is at most 1
    return rank.topk(left, dim=-1).indices.sort(dim=-1).values


@contextmanager
def _watched(attention: Any) -> Iterator[dict[str, Any]]:
    """What the projections of `attention` give meanwhile: "query" and "key"."""
    seen: dict[str, Any] = {}

    def keep(name: str) -> Any:
        def hook(_: Any, args: Any, output: Any) -> None:
            seen[name] = output

        return hook

    handles = [
        attention.q_proj.register_forward_hook(keep("query")),
        attention.k_proj.register_forward_hook(keep("key")),
    ]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()
