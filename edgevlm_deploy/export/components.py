"""A VLM of the Idefics3 / SmolVLM family as three torch modules with fixed signatures.

Each keeps the whole model as its only child, so that a node's scope in the exported graph is the module
name in the source model behind one known prefix.
"""

from __future__ import annotations

from typing import Any

import torch

from edgevlm_deploy.errors import ExportError
from edgevlm_deploy.export.attention import KeyValues
from edgevlm_deploy.reduction import fastv

PREFIX = "source."
POSITION_ONLY_ROTARY = ("default", "linear", "llama3", "yarn")


class VisionEncoder(torch.nn.Module):  # type: ignore[misc]
    """pixel_values float32 [tiles, 3, S, S] → image_features float32 [tiles, tokens per tile, D].

    Tiles are always full, so the patch mask is all true and the position ids are constants.
    """

    def __init__(self, source: Any) -> None:
        super().__init__()
        self.source = source
        self.register_buffer("position_ids", _position_ids(source.model.vision_model), persistent=False)

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        vision = self.source.model.vision_model
        patches = vision.embeddings.patch_embedding(pixel_values)  # [tiles, D, S / patch, S / patch]
        hidden = patches.flatten(2).transpose(1, 2)  # [tiles, patches, D]
        hidden = hidden + vision.embeddings.position_embedding(self.position_ids)
        hidden = vision.encoder(inputs_embeds=hidden, attention_mask=None).last_hidden_state
        return self.source.model.connector(vision.post_layernorm(hidden))


class Embedding(torch.nn.Module):  # type: ignore[misc]
    """input_ids int64 [B, T] → inputs_embeds float32 [B, T, D]."""

    def __init__(self, source: Any) -> None:
        super().__init__()
        self.source = source

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        return self.source.model.text_model.embed_tokens(input_ids)


class Decoder(torch.nn.Module):  # type: ignore[misc]
    """inputs_embeds [B, T, D], attention_mask [B, total], position_ids [B, T], key and value per layer
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
        hidden = self.source.model.text_model(
            inputs_embeds=inputs_embeds,
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
            self.source.model.text_model,
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


def check_rotary(source: Any) -> None:
    """Raises ExportError for rotary embeddings that depend on more than the position."""
    kind = source.config.text_config.rope_parameters["rope_type"]
    if kind not in POSITION_ONLY_ROTARY:
        raise ExportError(
            f"Rotary embeddings of type {kind!r} change with the length of the context; "
            f"{', '.join(POSITION_ONLY_ROTARY)} can be exported."
        )


def _position_ids(vision_model: Any) -> torch.Tensor:
    """int64 [1, patches]: what the source computes for a full tile, seen at its position embedding.

    It divides and compares floats to get them, so they are observed instead of derived.
    """
    embeddings = vision_model.embeddings
    seen: list[torch.Tensor] = []
    hook = embeddings.position_embedding.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    side = embeddings.num_patches_per_side
    tile = (1, 3, embeddings.image_size, embeddings.image_size)
    try:
        with torch.no_grad():
            embeddings(
                pixel_values=torch.zeros(tile, dtype=embeddings.patch_embedding.weight.dtype),
                patch_attention_mask=torch.ones(1, side, side, dtype=torch.bool),
            )
    finally:
        hook.remove()
    return seen[0].reshape(1, -1)
