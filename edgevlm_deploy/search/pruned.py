"""A decoder that FastV prunes, in torch: without padding, because what the last token of a prompt attends
to decides, and without a cache, because later layers have fewer rows.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby, islice
from typing import Any

from edgevlm_runner.contract import Answer, ModelSpec, kept_tokens

from edgevlm_deploy import reference
from edgevlm_deploy.reference import Question


def batches(questions: Iterator[Question], size: int) -> Iterator[list[Question]]:
    """Questions with as many tokens and as many tiles; at most `size` tiles a batch."""

    def shape(question: Question) -> tuple[int, int]:
        return question.inputs.input_ids.shape[1], question.tiles

    while window := list(islice(questions, 8 * size)):
        for (_, tiles), alike in groupby(sorted(window, key=shape), key=shape):
            while batch := list(islice(alike, max(1, size // max(tiles, 1)))):
                yield batch


def logits(model: Any, inputs: dict[str, Any], spec: ModelSpec, asked: int) -> Any:
    """float32 [B, left, V]: in one pass over prompts of `asked` tokens and what follows them.

    inputs: as `reference.collate` makes them of questions of one shape, with tokens behind the prompts.
    The last positions are those of `input_ids`; dropped image tokens have none.
    """
    prompts = inputs | {"input_ids": inputs["input_ids"][:, :asked]}
    embeds, is_image = _embedded(model, prompts, spec)
    return _decoded(model, embeds, inputs["input_ids"][:, asked:], is_image, spec)


def _embedded(model: Any, inputs: dict[str, Any], spec: ModelSpec) -> tuple[Any, Any]:
    """Prompts with their pictures float32 [B, T, D], and where the pictures are, bool [B, T]."""
    import torch

    ids = inputs["input_ids"]
    embeds, is_image = model.get_decoder().embed_tokens(ids), ids == spec.image_token_id
    if bool(is_image.any()):
        features = model.model.get_image_features(inputs["pixel_values"]).pooler_output
        embeds[is_image] = torch.cat([one.reshape(-1, embeds.shape[-1]) for one in features])
    return embeds, is_image


def _decoded(model: Any, embeds: Any, said: Any, is_image: Any, spec: ModelSpec) -> Any:
    """float32 [B, left, V] of embedded prompts [B, asked, D] and tokens int64 [B, n] that follow."""
    import torch

    from edgevlm_deploy.reduction import fastv

    assert spec.pruning is not None
    text, asked = model.get_decoder(), embeds.shape[1]
    total, images = asked + said.shape[1], int(is_image[0].sum())
    left = total - images + kept_tokens(images, spec.pruning.keep) if images else total
    hidden = fastv.layers(
        text,
        torch.cat([embeds, text.embed_tokens(said)], 1),
        torch.arange(total).expand(len(embeds), total),
        torch.nn.functional.pad(is_image.long(), (0, said.shape[1])),
        left,
        spec.pruning.layer,
        asked,
    )
    return model.lm_head(hidden)


def generate(model: Any, batch: Sequence[Question], spec: ModelSpec, tokenizer: Any) -> list[Answer]:
    """Greedy answers to questions of one shape; each token is computed from the beginning."""
    import torch

    ends = torch.tensor(spec.eos_token_ids)
    said = torch.zeros((len(batch), 0), dtype=torch.int64)
    sure = torch.zeros((len(batch), 0), dtype=torch.float64)
    with torch.inference_mode():
        prompts = reference.collate([one.inputs for one in batch], spec)
        embeds, is_image = _embedded(model, prompts, spec)
        for _ in range(spec.max_new_tokens):
            scores = torch.log_softmax(_decoded(model, embeds, said, is_image, spec)[:, -1].double(), -1)
            token = scores.argmax(-1, keepdim=True)
            said, sure = torch.cat([said, token], 1), torch.cat([sure, scores.gather(-1, token)], 1)
            if bool(torch.isin(said, ends).any(1).all()):
                break
    return [
        reference.answer_of(one.item.id, row, scores, spec, tokenizer)
        for one, row, scores in zip(batch, said.tolist(), sure.tolist(), strict=True)
    ]
