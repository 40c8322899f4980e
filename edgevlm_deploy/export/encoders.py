"""A dual encoder of the families CLIP and SigLIP as two torch modules with fixed signatures.

As in `components`, each keeps the whole model as its only child, so that a node's scope in the exported
graph is the module name in the source model behind one known prefix. Projections are given [N, 1, D], so
that they become the same products as all other linear layers.
"""

from __future__ import annotations

from typing import Any

import torch
from edgevlm_runner.contract import TextSpec

HIDDEN = -1e4
"""Added to the score of a token that is not seen: e^−10⁴ is 0, and unlike −inf it never gives NaN."""


class PictureEncoder(torch.nn.Module):  # type: ignore[misc]
    """pixel_values float32 [N, 3, S, S] → image_embeds float32 [N, D], of any length."""

    def __init__(self, source: Any) -> None:
        super().__init__()
        self.source = source

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        vision = self.source.vision_model
        patches = vision.embeddings.patch_embedding(pixel_values)  # [N, D, S / patch, S / patch]
        hidden = patches.flatten(2).transpose(1, 2)  # [N, patches, D]
        positions = vision.embeddings.position_embedding.weight
        is_clip = hasattr(vision.embeddings, "class_embedding")
        if is_clip:
            first = vision.embeddings.class_embedding.expand(hidden.shape[0], 1, -1)
            hidden = vision.pre_layrnorm(torch.cat([first, hidden], dim=1) + positions)
        else:
            hidden = hidden + positions
        hidden = vision.encoder(inputs_embeds=hidden, attention_mask=None).last_hidden_state
        if is_clip:
            return self.source.visual_projection(vision.post_layernorm(hidden[:, :1]))[:, 0]
        return _attention_pooling(vision.head, vision.post_layernorm(hidden))


class TextEncoder(torch.nn.Module):  # type: ignore[misc]
    """input_ids int [N, T] → text_embeds float32 [N, D], of any length.

    with_mask: whether attention takes what hides later tokens from earlier ones as a tensor, for padded rows;
        otherwise the attention in place is causal by itself. Only CLIP's is causal at all.
    """

    def __init__(self, source: Any, text: TextSpec, with_mask: bool = False) -> None:
        super().__init__()
        self.source = source
        self._end_token_id = text.end_token_id
        is_masked = with_mask and text.end_token_id is not None
        hidden = torch.full((1, 1, text.length, text.length), HIDDEN).triu(1)
        self.register_buffer("mask", hidden if is_masked else None, persistent=False)

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        text = self.source.text_model
        tokens = input_ids.shape[1]
        hidden = text.embeddings.token_embedding(input_ids)  # [N, T, D]
        hidden = hidden + text.embeddings.position_embedding.weight[:tokens]
        mask = None if self.mask is None else self.mask.to(hidden.dtype)
        causal = {} if self._end_token_id is None else {"is_causal": True}
        hidden = text.encoder(inputs_embeds=hidden, attention_mask=mask, **causal).last_hidden_state
        hidden = text.final_layer_norm(hidden)
        if self._end_token_id is None:
            return text.head(hidden[:, -1:])[:, 0]
        return self.source.text_projection(_at_first(input_ids, self._end_token_id, hidden))[:, 0]


def _at_first(input_ids: torch.Tensor, token: int, hidden: torch.Tensor) -> torch.Tensor:
    """Hidden states [N, T, D] where `token` stands first → [N, 1, D].

    As a product with zeros and one, instead of ArgMax and a lookup: backends differ in which of equal
    values ArgMax takes, and in what a lookup by a computed place becomes.
    """
    tokens = input_ids.shape[1]
    order = torch.arange(tokens, 0, -1, device=hidden.device).to(hidden.dtype)  # T, T − 1 … 1
    rank = (input_ids == token).to(hidden.dtype) * order  # [N, T]; the first has the largest
    first = (rank == rank.amax(dim=1, keepdim=True)).to(hidden.dtype)
    return torch.matmul(first[:, None], hidden)


def _attention_pooling(head: Any, hidden: torch.Tensor) -> torch.Tensor:
    """SigLIP's pooling [N, T, D] → [N, D]: a learned query attends to all patches.

    torch's MultiheadAttention, spelled out: traced as it is, its fused path has no ONNX form.
    """
    attention = head.attention
    size, heads = attention.embed_dim, attention.num_heads
    weights, biases = attention.in_proj_weight.split(size), attention.in_proj_bias.split(size)
    probe = head.probe.expand(hidden.shape[0], 1, size)
    query, key, value = (
        torch.nn.functional.linear(given, weight, bias)
        .reshape(hidden.shape[0], given.shape[1], heads, size // heads)
        .transpose(1, 2)
        for given, weight, bias in zip((probe, hidden, hidden), weights, biases, strict=True)
    )
    # In float32 in fp16 graphs too, where the scaling would be a rounded constant.
    scores = torch.matmul(query, key.transpose(-1, -2)).float() * (size // heads) ** -0.5
    weights = torch.softmax(scores, dim=-1).to(hidden.dtype)
    mixed = torch.matmul(weights, value)  # [N, heads, 1, D / heads]
    mixed = mixed.transpose(1, 2).reshape(hidden.shape[0], 1, size)
    mixed = torch.nn.functional.linear(mixed, attention.out_proj.weight, attention.out_proj.bias)
    pooled = mixed + head.mlp(head.layernorm(mixed))
    return pooled[:, 0]
