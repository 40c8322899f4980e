"""FastV against transformers' own attention and against a decoder that is cut in two."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from tiny_litert import tiny_vlm

from edgevlm_deploy.reduction import fastv

TOKENS, IMAGE = 12, slice(2, 10)


@pytest.fixture(scope="module")
def source() -> Any:
    return tiny_vlm().random_smolvlm()


@pytest.fixture(scope="module")
def prompt() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(embeddings [1, T, D], positions, places of image tokens)"""
    hidden = torch.randn(1, TOKENS, 64, generator=torch.Generator().manual_seed(0))
    places = torch.zeros(1, TOKENS, dtype=torch.int64)
    places[:, IMAGE] = 1
    return hidden, torch.arange(TOKENS)[None], places


def eager(text: Any, hidden: torch.Tensor) -> Any:
    own = copy.deepcopy(text)
    own.set_attn_implementation("eager")
    with torch.no_grad():
        return own(inputs_embeds=hidden, output_attentions=True, output_hidden_states=True, use_cache=False)


@pytest.mark.parametrize("asked", [None, 10])
def test_ranking_is_by_the_last_tokens_attention(source: Any, prompt: Any, asked: int | None) -> None:
    hidden, positions, _ = prompt
    text = source.model.text_model
    seen: dict[str, torch.Tensor] = {}
    attention = text.layers[0].self_attn
    handles = [
        attention.q_proj.register_forward_hook(lambda _, args, output: seen.update(query=output)),
        attention.k_proj.register_forward_hook(lambda _, args, output: seen.update(key=output)),
    ]
    weights = eager(text, hidden).attentions[0]  # [1, heads, T, T]
    with torch.no_grad():
        text(inputs_embeds=hidden, use_cache=False)
        paid = fastv.attention_paid(seen["query"], seen["key"], text.rotary_emb(hidden, positions), asked)
    for handle in handles:
        handle.remove()
    expected = weights.mean(1)[0, (asked or TOKENS) - 1]
    assert torch.allclose(paid[0], expected, atol=1e-6)


def test_text_stays_and_the_best_image_tokens_with_it() -> None:
    paid = torch.tensor([[0.1, 0.5, 0.0, 0.3, 0.4]])
    places = torch.tensor([[0, 1, 1, 1, 0]])
    assert fastv.going_on(paid, places, 4).tolist() == [[0, 1, 3, 4]]
    assert fastv.going_on(paid, places, 3).tolist() == [[0, 1, 4]]


def test_keeping_all_changes_nothing(source: Any, prompt: Any) -> None:
    hidden, positions, places = prompt
    text = source.model.text_model
    with torch.no_grad():
        made = fastv.layers(text, hidden, positions, places, TOKENS, 1)
        assert torch.allclose(made, text(inputs_embeds=hidden, use_cache=False).last_hidden_state, atol=1e-5)


def test_later_layers_see_the_kept_tokens_at_their_own_positions(source: Any, prompt: Any) -> None:
    """The second layer alone, on the rows that a sort of the attention keeps."""
    hidden, positions, places = prompt
    text = source.model.text_model
    whole = eager(text, hidden)
    paid = whole.attentions[0].mean(1)[0, -1]
    best = sorted(range(TOKENS)[IMAGE], key=lambda one: -float(paid[one]))[:3]
    rows = torch.tensor(sorted({*range(TOKENS)} - set(range(TOKENS)[IMAGE]) | set(best)))
    second = copy.deepcopy(text)
    second.set_attn_implementation("eager")
    second.layers = second.layers[1:]
    with torch.no_grad():
        expected = second(
            inputs_embeds=whole.hidden_states[1][:, rows],
            position_ids=rows[None],
            attention_mask=torch.ones(1, len(rows), dtype=torch.int64),
            use_cache=False,
        ).last_hidden_state
        made = fastv.layers(text, hidden, positions, places, len(rows), 1)
    assert torch.allclose(made, expected, atol=1e-5)


def test_nothing_stays_hooked(source: Any, prompt: Any) -> None:
    with torch.no_grad():
        fastv.layers(source.model.text_model, *prompt, 8, 1)
    assert not source.model.text_model.layers[0].self_attn.q_proj._forward_hooks
