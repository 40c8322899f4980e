"""Float ONNX graphs in the words that one generation of TensorRT knows, traced from transformers' modules.

    vision_encoder  pixel_values [tiles, 3, S, S] → image_features [tiles, tokens per tile, D]
    embedding       input_ids int32 [1, tokens] → inputs_embeds [1, tokens, D]
    decoder         inputs_embeds [1, tokens, D], position_ids int32 [1, tokens], mask, past_key.0, …
                    → logits float32 [1, V] of the last token, where it is asked for its hidden state
                    float32 [1, D], and the cache, in one of two forms

`append` is for every release. past_key.i and past_value.i are [1, past, kv heads, head dim]: token-major, so
that the first rows of a longer buffer are contiguous and can be bound as they are. mask is
[1, 1, tokens, past + tokens]. The output new_keys_values [2 · layers, tokens, kv heads, head dim] holds the
new rows alone, which the runtime copies behind the old ones in one strided copy.

`update` is for releases with a cache operator (ONNX's TensorScatter, TensorRT's IKVCacheUpdate). past_key.i
and past_value.i are [1, kv heads, S, head dim] with S the whole context, written in place from position
write_index int64 [1]; present_key.i and present_value.i are the same buffers. mask is [1, 1, tokens, S].

The mask is added to the scores: 0 where a token is seen, −1e4 where not.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from unittest import mock

import onnx_ir as ir
import torch
from edgevlm_runner.contract import NativeSpec, Pixels, sides

from edgevlm_deploy.export import mrope, onnx
from edgevlm_deploy.export.attention import (
    PLAIN_ATTENTION,
    STANDARD_ATTENTION,
    STATIC_CACHE_ATTENTION,
    StaticCache,
    attention,
)
from edgevlm_deploy.export.components import Embedding, adding, deepstack, head_dim, layered
from edgevlm_deploy.export.passes import lower_opset
from edgevlm_deploy.export.vision import vision_encoder

LOWEST_TRACED_OPSET = 18
"""torch's exporter writes no older one; `lower_opset` rewrites what differs."""


@dataclass(frozen=True)
class Dialect:
    """What the graphs for one release are made of.

    opset       of the ONNX domain
    half        fp16 tensors and a strongly typed network; else fp32 tensors, and the builder may choose fp16
    standard    ONNX's own Attention, RotaryEmbedding, RMSNormalization, and the cache in `update` form
    layer_norm  ONNX's LayerNormalization; releases without it are given fp32 tensors
    """

    opset: int
    half: bool
    standard: bool
    layer_norm: bool

    @property
    def dtype(self) -> torch.dtype:
        return torch.float16 if self.half else torch.float32


def cache_names(layers: int, kind: str) -> list[str]:
    """`past_key.0`, `past_value.0`, `past_key.1` … for the kind "past"."""
    return [f"{kind}_{part}.{layer}" for layer in range(layers) for part in ("key", "value")]


def export_vision_encoder(source: Any, dialect: Dialect, pixels: Pixels | None = None) -> ir.Model:
    """pixels: how pictures are prepared; those at their own resolution have one size here, and come one by
    one."""
    native = isinstance(pixels, NativeSpec)
    size = sides(pixels) if pixels else (source.config.vision_config.image_size,) * 2
    wanted = STANDARD_ATTENTION if dialect.standard else PLAIN_ATTENTION
    with attention(source.get_encoder("image").config, wanted), _norms(source, dialect):
        return trace(
            vision_encoder(cast(source, dialect), pixels),
            (torch.zeros(1 if native else 2, 3, *size, dtype=dialect.dtype),),
            ({} if native else {0: "tiles"},),
            ["pixel_values"],
            ["image_features"],
            dialect,
        )


def export_embedding(source: Any, dialect: Dialect) -> ir.Model:
    ids = torch.zeros(1, 3, dtype=torch.int32)
    embedding = Embedding(cast(source, dialect))
    return trace(embedding, (ids,), ({1: "tokens"},), ["input_ids"], ["inputs_embeds"], dialect)


def export_decoder(source: Any, dialect: Dialect, max_context: int, hidden: bool = False) -> ir.Model:
    text = source.config.text_config
    past, tokens = max_context if dialect.standard else 5, 3
    columns = past if dialect.standard else past + tokens
    size = head_dim(source)
    held: tuple[int, ...] = (1, past, text.num_key_value_heads, size)
    if dialect.standard:
        held = (1, text.num_key_value_heads, past, size)
    cache = [torch.zeros(held, dtype=dialect.dtype) for _ in range(2 * text.num_hidden_layers)]
    width = (1 + deepstack(source)) * text.hidden_size
    positions = torch.arange(tokens, dtype=torch.int32)[None]
    rows = mrope.rows(source)
    inputs = {
        "inputs_embeds": (torch.zeros(1, tokens, width, dtype=dialect.dtype), {1: "tokens"}),
        "position_ids": (positions, {1: "tokens"})
        if rows == 1
        else (positions.repeat(rows, 1, 1), {2: "tokens"}),
        "mask": (
            torch.zeros(1, 1, tokens, columns, dtype=dialect.dtype),
            {2: "tokens"} if dialect.standard else {2: "tokens", 3: "columns"},
        ),
    }
    outputs = ["logits", *(["hidden"] if hidden else [])]
    if dialect.standard:
        inputs["write_index"] = torch.zeros(1, dtype=torch.int64), {}
        outputs += cache_names(text.num_hidden_layers, "present")
    else:
        outputs.append("new_keys_values")
    kind = _UpdateDecoder if dialect.standard else _AppendDecoder
    module: Any = kind(cast(source, dialect), max_context, hidden)
    wanted = STANDARD_ATTENTION if dialect.standard else STATIC_CACHE_ATTENTION
    cache_axes = tuple({} if dialect.standard else {1: "past"} for _ in cache)
    with (
        attention(source.get_decoder().config, wanted),
        _norms(source, dialect),
        module.rotation(),
        adding(source),
    ):
        return trace(
            module,
            (*(tensor for tensor, _ in inputs.values()), *cache),
            (*(axes for _, axes in inputs.values()), cache_axes),
            [*inputs, *cache_names(text.num_hidden_layers, "past")],
            outputs,
            dialect,
        )


class _AppendDecoder(torch.nn.Module):  # type: ignore[misc]
    def __init__(self, source: Any, max_context: int, gives_hidden: bool) -> None:
        super().__init__()
        self.source = source
        self.gives_hidden = gives_hidden
        # float32 in every dialect: a position's angle is rounded once, after the look-up.
        cosine, sine = map(torch.from_numpy, onnx.rotary_table(source, max_context))  # [S, head dim / 2]
        self.register_buffer("cosine_sine", torch.cat([cosine, sine], dim=1), persistent=False)
        self.by_rows = mrope.look_up(source, cosine, sine) if mrope.rows(source) > 1 else None

    def forward(
        self, inputs_embeds: torch.Tensor, position_ids: torch.Tensor, mask: torch.Tensor, *past: torch.Tensor
    ) -> tuple[torch.Tensor, ...]:
        new: list[torch.Tensor] = []

        def write(held: torch.Tensor, fresh: torch.Tensor) -> torch.Tensor:
            rows = fresh.transpose(1, 2)  # [1, T, kv heads, head dim]
            new.append(rows)
            return torch.cat([held, rows], dim=1).transpose(1, 2)

        given = self._run(inputs_embeds, position_ids, StaticCache(_pairs(past), write, mask))
        return (*given, torch.cat(new, dim=0))

    def _run(
        self, inputs_embeds: torch.Tensor, position_ids: torch.Tensor, cache: StaticCache
    ) -> tuple[torch.Tensor, ...]:
        """Logits, and the hidden state where it is asked for."""
        hidden = self.source.get_decoder()(
            **layered(self.source, inputs_embeds),
            position_ids=position_ids,
            use_cache=False,
            static_cache=cache,
        ).last_hidden_state
        last = hidden[:, -1:]
        given = (self.source.lm_head(last)[:, 0], last[:, 0])[: 2 if self.gives_hidden else 1]
        return tuple(one.to(torch.float32) for one in given)

    def _halves(self, position_ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Cosine and sine float32 [1, T, head dim / 2] of each token."""
        if self.by_rows is not None:
            return self.by_rows(position_ids)
        cosine, sine = torch.nn.functional.embedding(position_ids, self.cosine_sine).chunk(2, dim=-1)
        return cosine, sine

    @contextlib.contextmanager
    def rotation(self) -> Iterator[None]:
        """While it is traced: cosines and sines of a position come from the table."""

        def look_up(hidden: torch.Tensor, position_ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            halves = self._halves(position_ids)
            cosine, sine = (torch.cat([half, half], dim=-1).to(hidden.dtype) for half in halves)
            return cosine, sine  # [1, T, head dim]

        with mock.patch.object(self.source.get_decoder().rotary_emb, "forward", look_up):
            yield


class _UpdateDecoder(_AppendDecoder):
    def forward(
        self,
        inputs_embeds: torch.Tensor,
        position_ids: torch.Tensor,
        mask: torch.Tensor,
        write_index: torch.Tensor,
        *past: torch.Tensor,
    ) -> tuple[torch.Tensor, ...]:
        def write(held: torch.Tensor, fresh: torch.Tensor) -> torch.Tensor:
            return torch.onnx.ops.symbolic(
                "TensorScatter",
                (held, fresh, write_index),
                attrs={"axis": -2, "mode": "linear"},
                dtype=held.dtype,
                shape=held.shape,
            )

        cache = StaticCache(_pairs(past), write, mask)
        given = self._run(inputs_embeds, position_ids, cache)
        present = [cache.present[layer] for layer in range(len(cache.past))]
        return (*given, *(tensor for pair in present for tensor in pair))

    @contextlib.contextmanager
    def rotation(self) -> Iterator[None]:
        """While it is traced: ONNX's RotaryEmbedding on the table."""
        text = self.source.get_decoder()
        modeling = sys.modules[type(text.layers[0].self_attn).__module__]
        positions: list[torch.Tensor | None] = []

        def keep(hidden: torch.Tensor, position_ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            if self.by_rows is not None:
                positions[:] = [None]  # the tables hold a row per token
                return self.by_rows(position_ids)
            positions[:] = [position_ids.to(torch.int64)]
            half = self.cosine_sine.shape[1] // 2
            return self.cosine_sine[:, :half], self.cosine_sine[:, half:]

        def rotate(
            query: torch.Tensor, key: torch.Tensor, cosine: torch.Tensor, sine: torch.Tensor, **_: Any
        ) -> tuple[torch.Tensor, torch.Tensor]:
            def turn(heads: torch.Tensor) -> torch.Tensor:
                return torch.onnx.ops.rotary_embedding(heads.float(), cosine, sine, positions[0]).to(
                    heads.dtype
                )

            return turn(query), turn(key)

        with (
            mock.patch.object(text.rotary_emb, "forward", keep),
            mock.patch.object(modeling, "apply_rotary_pos_emb", rotate),
        ):
            yield


def cast(source: Any, dialect: Dialect) -> Any:
    """Parameters in the dialect's type. Not buffers: the rotary frequencies would lose their digits."""
    for parameter in source.parameters():
        parameter.data = parameter.data.to(dialect.dtype)
    return source


def _pairs(past: tuple[torch.Tensor, ...]) -> tuple[tuple[torch.Tensor, torch.Tensor], ...]:
    return tuple(zip(past[0::2], past[1::2], strict=True))


def trace(
    module: Any,
    arguments: tuple[Any, ...],
    axes: tuple[Any, ...],
    inputs: Any,
    outputs: Any,
    dialect: Dialect,
) -> ir.Model:
    opset = max(dialect.opset, LOWEST_TRACED_OPSET)
    model = onnx.trace(module, arguments, axes, list(inputs), list(outputs), opset)
    lower_opset.lower(model, dialect.opset)
    return model


@contextlib.contextmanager
def _norms(source: Any, dialect: Dialect) -> Iterator[None]:
    """Norms as one operator where the release has it, and spelled out where not."""
    with contextlib.ExitStack() as stack:
        rms_norm = type(source.get_decoder().norm)
        stack.enter_context(layer_norms(dialect))
        if dialect.standard:
            stack.enter_context(mock.patch.object(rms_norm, "forward", _rms_norm))
        if not dialect.layer_norm:
            stack.enter_context(mock.patch.object(rms_norm, "forward", _spelled_rms_norm))
        yield


@contextlib.contextmanager
def layer_norms(dialect: Dialect) -> Iterator[None]:
    """LayerNormalization where the release has it, spelled out where not."""
    if dialect.layer_norm:
        yield
    else:
        with mock.patch.object(torch.nn.LayerNorm, "forward", _spelled_layer_norm):
            yield


def _rms_norm(norm: Any, hidden: torch.Tensor) -> torch.Tensor:
    return torch.onnx.ops.symbolic(
        "RMSNormalization",
        (hidden, norm.weight),
        attrs={"axis": -1, "epsilon": float(norm.variance_epsilon), "stash_type": 1},
        dtype=hidden.dtype,
        shape=hidden.shape,
    )


def _spelled_rms_norm(norm: Any, hidden: torch.Tensor) -> torch.Tensor:
    """With a division: the releases without LayerNormalization have no Reciprocal either."""
    deviation = torch.sqrt((hidden * hidden).mean(-1, keepdim=True) + norm.variance_epsilon)
    return hidden / deviation * norm.weight


def _spelled_layer_norm(norm: torch.nn.LayerNorm, hidden: torch.Tensor) -> torch.Tensor:
    centred = hidden.contiguous() - hidden.mean(-1, keepdim=True)
    deviation = torch.sqrt((centred * centred).mean(-1, keepdim=True) + norm.eps)
    return centred / deviation * norm.weight + norm.bias
