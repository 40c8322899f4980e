"""Embedding and decoder of a VLM as torch modules with fixed signatures; `vision` has the third.

Each keeps the whole model as its only child, so that a node's scope in the exported graph is the module
name in the source model behind one known prefix.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any
from unittest import mock

import torch

from edgevlm_deploy.errors import ExportError
from edgevlm_deploy.export.attention import KeyValues
from edgevlm_deploy.reduction import fastv

PREFIX = "source."
POSITION_ONLY_ROTARY = ("default", "linear", "llama3", "yarn")


class Embedding(torch.nn.Module):  # type: ignore[misc]
    """input_ids int64 [B, T] → inputs_embeds float32 [B, T, D]."""

    def __init__(self, source: Any) -> None:
        super().__init__()
        self.source = source

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        embeds = self.source.get_input_embeddings()(input_ids)
        added = deepstack(self.source) * embeds.shape[-1]
        return torch.nn.functional.pad(embeds, (0, added)) if added else embeds


class Decoder(torch.nn.Module):  # type: ignore[misc]
    """inputs_embeds [B, T, D], attention_mask [B, total], position_ids [B, T] (of M-RoPE [3, B, T]), key and
    value per layer
    → logits [B, V] of the last token, updated key and value per layer. With `gives_hidden`, the hidden state
    [B, D] that the logits are made of comes after them.

    Rows are padded on the right: the mask counts tokens, it does not say where they are.
    """

    def __init__(self, source: Any, gives_hidden: bool = False) -> None:
        super().__init__()
        self.source = source
        self.gives_hidden = gives_hidden

    def forward(
        self,
        inputs_embeds: torch.Tensor,
        attention_mask: torch.Tensor,
        position_ids: torch.Tensor,
        *past: torch.Tensor,
    ) -> tuple[torch.Tensor, ...]:
        key_values = _key_values(tuple(zip(past[0::2], past[1::2], strict=True)), attention_mask)
        hidden = self.source.get_decoder()(
            **layered(self.source, inputs_embeds),
            position_ids=position_ids,
            use_cache=False,
            key_values=key_values,
        ).last_hidden_state
        # The head sees one token: a prompt does not pay for logits that nobody reads.
        last = hidden[:, -1:]
        logits = self.source.lm_head(last)[:, 0]
        given = (logits, last[:, 0]) if self.gives_hidden else (logits,)
        present = [key_values.present[layer] for layer in range(len(key_values.past))]
        return (*given, *(tensor for pair in present for tensor in pair))


class PruningDecoder(torch.nn.Module):  # type: ignore[misc]
    """`Decoder` that drops image tokens in front of layer K (FastV); the caches from there on are shorter.

    Further inputs:  image_tokens int64 [B, T], 1 for an image token; kept_tokens int64 [B, N], read for its
    length alone, the tokens that go on; kept_mask [B, kept total], the attention_mask of the later layers.
    """

    def __init__(self, source: Any, layer: int, gives_hidden: bool = False) -> None:
        super().__init__()
        self.source = source
        self.layer = layer
        self.gives_hidden = gives_hidden

    def forward(
        self,
        inputs_embeds: torch.Tensor,
        attention_mask: torch.Tensor,
        position_ids: torch.Tensor,
        image_tokens: torch.Tensor,
        kept_tokens: torch.Tensor,
        kept_mask: torch.Tensor,
        *past: torch.Tensor,
    ) -> tuple[torch.Tensor, ...]:
        pairs = tuple(zip(past[0::2], past[1::2], strict=True))
        before, after = (_key_values(pairs, mask) for mask in (attention_mask, kept_mask))
        hidden = fastv.layers(
            self.source.get_decoder(),
            inputs_embeds,
            position_ids,
            image_tokens,
            kept_tokens.shape[1],
            self.layer,
            before={"key_values": before},
            after={"key_values": after},
        )
        last = hidden[:, -1:]
        logits = self.source.lm_head(last)[:, 0]
        given = (logits, last[:, 0]) if self.gives_hidden else (logits,)
        held = {**before.present, **after.present}
        present = [held[layer] for layer in range(len(pairs))]
        return (*given, *(tensor for pair in present for tensor in pair))


def _key_values(past: tuple[tuple[torch.Tensor, torch.Tensor], ...], mask: torch.Tensor) -> KeyValues:
    total = mask.shape[1]
    return KeyValues(
        past=past,
        last_position=(mask.sum(1) - 1).to(torch.int32),
        total=torch.scalar_tensor(total, dtype=torch.int32),
        total_length=total,
    )


def sees_whole_prompt(source: Any) -> bool:
    """Whether all tokens of a prompt see each other (`ModelSpec.prefix`)."""
    return bool(getattr(source.config.text_config, "use_bidirectional_attention", False))


def head_dim(source: Any) -> int:
    """Width of a decoder's head; not every configuration says it."""
    return int(source.get_decoder().layers[0].self_attn.head_dim)


def deepstack(source: Any) -> int:
    """First decoder layers behind which image tokens get features of their own (Qwen3-VL)."""
    return len(getattr(source.config.vision_config, "deepstack_visual_indexes", ()))


def layered(source: Any, embeds: torch.Tensor) -> dict[str, Any]:
    """The decoder's arguments for embeddings [B, T, (1 + layers) · D] with what each layer is given."""
    layers = deepstack(source)
    if not layers:
        return {"inputs_embeds": embeds}
    first, *added = embeds.chunk(1 + layers, dim=-1)
    return {"inputs_embeds": first, "deepstack_visual_embeds": added}


@contextlib.contextmanager
def adding(source: Any) -> Iterator[None]:
    """While it runs: features are added to all tokens, zeros to those that are no image tokens."""
    text = source.get_decoder()
    if not deepstack(source):
        yield
        return

    def add(hidden: torch.Tensor, _: Any, features: torch.Tensor) -> torch.Tensor:
        return hidden + features

    with mock.patch.object(text, "_deepstack_process", add):
        yield


def check_rotary(source: Any) -> None:
    """Raises ExportError for rotary embeddings that depend on more than the position."""
    kind = source.config.text_config.rope_parameters["rope_type"]
    if kind not in POSITION_ONLY_ROTARY:
        raise ExportError(
            f"Rotary embeddings of type {kind!r} change with the length of the context; "
            f"{', '.join(POSITION_ONLY_ROTARY)} can be exported."
        )
