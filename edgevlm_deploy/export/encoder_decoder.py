"""An encoder–decoder of the family BLIP as three torch modules with fixed signatures.

As in `components`, each keeps the whole model as its only child, so that a node's scope in the exported graph
is the module name in the source model behind one known prefix. Pictures and questions come one by one.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np
import torch
from edgevlm_runner.contract import EncoderDecoderSpec
from transformers import EncoderDecoderCache
from transformers.models.blip import modeling_blip_text

from edgevlm_deploy.export.encoders import HIDDEN


class PictureStates(torch.nn.Module):  # type: ignore[misc]
    """pixel_values float32 [1, 3, S, S] → image_states float32 [1, image tokens, D]."""

    def __init__(self, source: Any) -> None:
        super().__init__()
        self.source = source

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        vision = self.source.vision_model
        patches = vision.embeddings.patch_embedding(pixel_values)  # [1, D, S / patch, S / patch]
        states = torch.cat([vision.embeddings.class_embedding, patches.flatten(2).transpose(1, 2)], dim=1)
        states = vision.encoder(inputs_embeds=states + vision.embeddings.position_embedding)
        return vision.post_layernorm(states.last_hidden_state)


class QuestionEncoder(torch.nn.Module):  # type: ignore[misc]
    """input_ids int [1, T], image_states [1, image tokens, D], mask [1, 1, 1, T] or None → question_states
    [1, T, D], and per decoder layer what it attends to: key and value [1, heads, T, head dim].

    The mask is added to the scores of a padded question: 0 where there is a token, −1e4 where not.
    """

    def __init__(self, source: Any, spec: EncoderDecoderSpec) -> None:
        super().__init__()
        self.source = source
        self._heads, self._head_dim = spec.heads, spec.head_dim

    def forward(
        self, input_ids: torch.Tensor, image_states: torch.Tensor, mask: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, ...]:
        text = self.source.text_encoder
        states = text.encoder(
            text.embeddings(input_ids), attention_mask=mask, encoder_hidden_states=image_states
        ).last_hidden_state
        given = [states]
        for layer in self.source.text_decoder.bert.encoder.layer:
            attention = layer.crossattention.self
            given += [self._by_head(attention.key(states)), self._by_head(attention.value(states))]
        return tuple(given)

    def _by_head(self, states: torch.Tensor) -> torch.Tensor:
        return states.reshape(1, states.shape[1], self._heads, self._head_dim).transpose(1, 2)


class AnswerDecoder(torch.nn.Module):  # type: ignore[misc]
    """input_ids int [1, 1], position int [1], key and value per layer of the question [1, heads, T, head dim]
    and of the answer so far [1, heads, C, head dim], mask as the question encoder's
    → logits [1, V], and the cache with the token written at `position`.

    What lies behind `position` in the cache is not seen. Writing is a product with zeros and one, which every
    runtime has and which an answer's few columns make cheap.
    """

    def __init__(self, source: Any, spec: EncoderDecoderSpec) -> None:
        super().__init__()
        self.source = source
        self._layers = spec.layers
        columns = torch.arange(spec.max_new_tokens, dtype=torch.int32)
        self.register_buffer("columns", columns, persistent=False)

    def forward(
        self,
        input_ids: torch.Tensor,
        position: torch.Tensor,
        cross: tuple[torch.Tensor, ...],
        past: tuple[torch.Tensor, ...],
        mask: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, ...]:
        text = self.source.text_decoder.bert
        dtype = past[0].dtype
        place = position.to(torch.int32)
        here = (self.columns == place).to(dtype)[:, None]  # [C, 1]
        unseen = (self.columns > place).to(dtype) * HIDDEN  # [C]
        cache = _Cache(past, cross, here)
        with _masked_cross_attention():
            states = text.encoder(
                text.embeddings(input_ids, position_ids=position[None]),
                attention_mask=unseen[None, None, None],
                # Only its presence is looked at: keys and values come from the cache.
                encoder_hidden_states=cross[0],
                encoder_attention_mask=mask,
                past_key_values=cache,
                use_cache=False,
            ).last_hidden_state
        logits = self.source.text_decoder.cls(states)[:, 0]
        present = [cache.present[layer] for layer in range(self._layers)]
        return (logits, *(tensor for pair in present for tensor in pair))


@contextmanager
def _masked_cross_attention() -> Iterator[None]:
    """transformers' attention is given the mask of what it attends to, and does not pass it on."""

    def forward(
        attention: Any,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        encoder_hidden_states: torch.Tensor | None = None,
        past_key_values: Any = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        context, weights = attention.self(
            hidden_states,
            attention_mask=attention_mask,
            encoder_hidden_states=encoder_hidden_states,
            encoder_attention_mask=attention_mask,
            past_key_values=past_key_values,
        )
        return attention.output(context, hidden_states), weights

    with mock.patch.object(modeling_blip_text.BlipTextAttention, "forward", forward):
        yield


@contextmanager
def half_scores() -> Iterator[None]:
    """transformers' text attention divides scores by √(head dim): the root rounded to fp16, which is how
    fp16 graphs hold it."""

    def root(number: float) -> float:
        return float(np.float16(math.sqrt(number)))

    with mock.patch.object(modeling_blip_text, "math", SimpleNamespace(sqrt=root)):
        yield


class _Cache(EncoderDecoderCache):  # type: ignore[misc]
    """What transformers' attention asks for keys and values: the question's are given, the answer's grow.

    here: [C, 1], one at the column that is written.
    """

    def __init__(
        self, past: tuple[torch.Tensor, ...], cross: tuple[torch.Tensor, ...], here: torch.Tensor
    ) -> None:
        self._past, self._here = past, here
        self.present: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        self.self_attention_cache = self
        self.cross_attention_cache = SimpleNamespace(
            layers=[
                SimpleNamespace(keys=key, values=value)
                for key, value in zip(cross[0::2], cross[1::2], strict=True)
            ]
        )
        self.is_updated = dict.fromkeys(range(len(cross) // 2), True)

    def update(
        self, key: torch.Tensor, value: torch.Tensor, layer: int, *_: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """key, value [1, heads, 1, head dim] → [1, heads, C, head dim]"""
        pair = self._past[2 * layer], self._past[2 * layer + 1]
        kept = 1 - self._here
        self.present[layer] = (
            pair[0] * kept + key * self._here,
            pair[1] * kept + value * self._here,
        )
        return self.present[layer]
