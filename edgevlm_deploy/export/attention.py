"""Attention in the form that a runtime wants, put in place while torch traces transformers' modules.

transformers dispatches attention by a name in the config. Five names are added here. Three of them emit
ONNX Runtime's own `com.microsoft` nodes instead of computing: they are for tracing only. The fourth computes
in plain operators, which every runtime has; the last is ONNX's own Attention, for newer releases of
TensorRT.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

MULTI_HEAD_ATTENTION = "edgevlm_multi_head_attention"
GROUP_QUERY_ATTENTION = "edgevlm_group_query_attention"
PREFIX_ATTENTION = "edgevlm_prefix_attention"
STATIC_CACHE_ATTENTION = "edgevlm_static_cache_attention"
STANDARD_ATTENTION = "edgevlm_standard_attention"
PLAIN_ATTENTION = "eager"
"""transformers' own: matrix products and a softmax."""


@dataclass(frozen=True)
class KeyValues:
    """What GroupQueryAttention needs besides q, k, v, and where it leaves the updated cache.

    past           layer → (key, value), each [B, kv heads, past, head dim]
    last_position  int32 [B], number of attended tokens minus one (the operator's `seqlens_k`)
    total          int32 scalar, tokens after this step
    present        layer → (key, value), filled while the layers run
    """

    past: tuple[tuple[Any, Any], ...]
    last_position: Any
    total: Any
    total_length: Any
    present: dict[int, tuple[Any, Any]] = field(default_factory=dict)


def _multi_head_attention(
    module: Any,
    query: Any,
    key: Any,
    value: Any,
    attention_mask: Any,
    scaling: float,
    is_causal: bool = False,
    **_: Any,
) -> tuple[Any, None]:
    """q, k, v [B, heads, T, head dim] → [B, T, heads, head dim]; causal or not.

    attention_mask: None, or int32 [B, T] with 1 for the keys that are there.
    """
    import torch

    if attention_mask is not None and attention_mask.ndim != 2:
        raise ValueError("full tiles and whole texts have no attention mask, windows one of two dimensions")
    batch, heads, tokens, size = query.shape
    q, k, v = (x.transpose(1, 2).reshape(batch, tokens, heads * size) for x in (query, key, value))
    out = torch.onnx.ops.symbolic(
        "com.microsoft::MultiHeadAttention",
        (q, k, v) if attention_mask is None else (q, k, v, None, attention_mask),
        attrs={"num_heads": heads, "scale": float(scaling), "unidirectional": int(is_causal)},
        dtype=q.dtype,
        shape=(batch, tokens, heads * size),
        version=1,
    )
    return out.reshape(batch, tokens, heads, size), None


def _group_query_attention(
    module: Any,
    query: Any,
    key: Any,
    value: Any,
    attention_mask: Any,
    scaling: float,
    key_values: KeyValues,
    **_: Any,
) -> tuple[Any, None]:
    """q [B, heads, T, head dim], k and v [B, kv heads, T, head dim] → [B, T, heads, head dim]; causal.

    Past and present are the operator's own inputs and outputs, without a Concat between them: a runtime
    may bind both to one buffer of fixed length, which is then written in place.
    """
    return _grouped(module.layer_idx, query, key, value, scaling, key_values), None


def _grouped(layer: int, query: Any, key: Any, value: Any, scaling: float, key_values: KeyValues) -> Any:
    """GroupQueryAttention, which also appends key and value to the cache of `layer`: [B, T, heads, D]."""
    import torch

    batch, heads, tokens, size = query.shape
    kv_heads = key.shape[1]
    q = query.transpose(1, 2).reshape(batch, tokens, heads * size)
    k, v = (x.transpose(1, 2).reshape(batch, tokens, kv_heads * size) for x in (key, value))
    past_key, past_value = key_values.past[layer]
    held = (batch, kv_heads, key_values.total_length, size)
    out, *present = torch.onnx.ops.symbolic_multi_out(
        "com.microsoft::GroupQueryAttention",
        (q, k, v, past_key, past_value, key_values.last_position, key_values.total),
        attrs={"num_heads": heads, "kv_num_heads": kv_heads, "scale": float(scaling)},
        dtypes=(q.dtype, q.dtype, q.dtype),
        shapes=((batch, tokens, heads * size), held, held),
        version=1,
    )
    key_values.present[layer] = (present[0], present[1])
    return out.reshape(batch, tokens, heads, size)


def _prefix_attention(
    module: Any,
    query: Any,
    key: Any,
    value: Any,
    attention_mask: Any,
    scaling: float,
    key_values: KeyValues,
    **_: Any,
) -> tuple[Any, None]:
    """As `_group_query_attention`, but every token sees every other: of a prompt, or one after it.

    The operator is always causal, so only its cache is used; it is asked for one head per key, the cheapest.
    """
    import torch

    _grouped(module.layer_idx, key, key, value, scaling, key_values)
    present = key_values.present[module.layer_idx]
    # A bound cache is longer than what it holds.
    bounds = (torch.zeros(1, dtype=torch.int64), key_values.total.to(torch.int64).reshape(1))
    axis = torch.full((1,), 2, dtype=torch.int64)
    keys, values = (
        torch.onnx.ops.symbolic("Slice", (one, *bounds, axis), dtype=one.dtype, shape=one.shape)
        for one in present
    )
    return _folded(query, keys, values, scaling), None


def _folded(query: Any, keys: Any, values: Any, scaling: float, mask: Any = None) -> Any:
    """q [B, heads, T, head dim], k and v [B, kv heads, S, head dim] → [B, T, heads, head dim].

    The heads that share a key are folded into the rows of one matrix product, [kv heads, heads per key · T],
    so keys and values are never repeated. mask [1, 1, T, S] is added to the scores.
    """
    import torch

    batch, heads, tokens, size = query.shape
    kv_heads = keys.shape[1]
    per_key = heads // kv_heads
    folded = (query * scaling).reshape(batch, kv_heads, per_key * tokens, size)
    scores = torch.matmul(folded, keys.transpose(-1, -2))
    if mask is not None:
        scores = scores + (torch.cat([mask] * per_key, dim=-2) if per_key > 1 else mask)
    mixed = torch.matmul(torch.softmax(scores, dim=-1), values).reshape(batch, heads, tokens, size)
    return mixed.transpose(1, 2)


@dataclass(frozen=True)
class StaticCache:
    """A cache of S columns that every layer writes its new tokens into.

    past     layer → (key, value), in the layout that `write` knows
    write    (cache, new tokens [1, kv heads, T, head dim]) → what is attended to, [1, kv heads, S, head dim]
    mask     [1, 1, T, S], added to the scores: 0 where a token is seen
    present  layer → (key, value), filled while the layers run
    """

    past: tuple[tuple[Any, Any], ...]
    write: Callable[[Any, Any], Any]
    mask: Any
    present: dict[int, tuple[Any, Any]] = field(default_factory=dict)


def _static_cache_attention(
    module: Any,
    query: Any,
    key: Any,
    value: Any,
    attention_mask: Any,
    scaling: float,
    static_cache: StaticCache,
    **_: Any,
) -> tuple[Any, None]:
    """q [1, heads, T, head dim], k and v [1, kv heads, T, head dim] → [1, T, heads, head dim]."""
    past_key, past_value = static_cache.past[module.layer_idx]
    keys, values = static_cache.write(past_key, key), static_cache.write(past_value, value)
    static_cache.present[module.layer_idx] = (keys, values)
    return _folded(query, keys, values, scaling, static_cache.mask), None


def _standard_attention(
    module: Any,
    query: Any,
    key: Any,
    value: Any,
    attention_mask: Any,
    scaling: float,
    static_cache: StaticCache | None = None,
    **_: Any,
) -> tuple[Any, None]:
    """ONNX's Attention: q [1, heads, T, head dim], k and v [1, kv heads, S, head dim] after the cache, if
    any.

    Its own past inputs stay empty: TensorRT does not read them.
    """
    import torch

    mask = attention_mask
    if static_cache is not None:
        if mask is not None:
            raise ValueError("a decoder's mask comes with the cache")
        past_key, past_value = static_cache.past[module.layer_idx]
        key, value = static_cache.write(past_key, key), static_cache.write(past_value, value)
        static_cache.present[module.layer_idx] = (key, value)
        mask = static_cache.mask
    out = torch.onnx.ops.attention(query, key, value, mask, scale=float(scaling))[0]
    return out.transpose(1, 2), None


_ADDED = {
    MULTI_HEAD_ATTENTION: _multi_head_attention,
    GROUP_QUERY_ATTENTION: _group_query_attention,
    PREFIX_ATTENTION: _prefix_attention,
    STATIC_CACHE_ATTENTION: _static_cache_attention,
    STANDARD_ATTENTION: _standard_attention,
}


@contextmanager
def attention(config: Any, name: str) -> Iterator[None]:
    """Trace with the attention of that name; the config's own choice is restored afterwards."""
    from transformers import AttentionInterface, AttentionMaskInterface

    for added, function in _ADDED.items():
        AttentionInterface.register(added, function)
        AttentionMaskInterface.register(added, lambda *args, **kwargs: None)
    own = config._attn_implementation
    config._attn_implementation = name
    try:
        yield
    finally:
        config._attn_implementation = own
