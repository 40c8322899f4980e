"""What a candidate answers, for little more than one forward pass over prompts and reference answers.

Greedy decoding repeats the reference exactly as long as every token of the reference is the candidate's most
probable one after the tokens before it. One forward pass over prompt and reference answer (teacher forcing)
shows that for all positions at once, so only answers that part from the reference are generated. A dual
encoder gives no words: its one pass is its answer.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from edgevlm_runner import zero_shot
from edgevlm_runner.contract import CLEAN, Answer, DualEncoderSpec, Item, Model, ModelSpec
from edgevlm_runner.inputs import Inputs, from_item, load_tokenizer
from numpy.typing import NDArray

from edgevlm_deploy import reference
from edgevlm_deploy.reference import Question
from edgevlm_deploy.search import pruned
from edgevlm_deploy.search.cost import Shape

KEPT_BYTES = 2_000_000_000
"""Prepared questions up to this size stay in memory; further ones are prepared anew for each candidate."""
TOP = 32
"""Tokens per position whose reference probability is kept; the others count as one."""


@dataclass(frozen=True)
class Reply:
    """One item as a candidate answers it."""

    answer: Answer
    kl: float
    """Mean over the reference's tokens of KL(reference ‖ candidate), in nats, teacher forced."""
    shift: float
    """The same mean of the total variation distance: the probability that changed hands, 0 … 1."""


@dataclass(frozen=True)
class _Likely:
    """The reference's TOP tokens per position: ids int64 [T, TOP], log-probabilities float32 [T, TOP]."""

    ids: Any
    logprobs: Any


class Examination:
    """Items, the reference's answers to them, and what candidates answer instead."""

    def __init__(
        self, items: Sequence[Item], answers: Sequence[Answer], root: Path, seed: int, tokenizer: Path
    ) -> None:
        self.items = tuple(items)
        self.answers: Mapping[str, Answer] = {one.item_id: one for one in answers}
        self._root, self._seed = root, seed
        self._tokenizer = load_tokenizer(tokenizer)
        self._kept: dict[tuple[Any, ...], Inputs] = {}
        self._kept_bytes = 0
        self._likely: dict[str, _Likely] = {}

    def observe_reference(self, model: Any, spec: Model, advance: Callable[[int], None]) -> None:
        """Keep the reference's own probabilities; once, before any candidate.

        spec: what the reference is asked, which may have more image tokens than a candidate.
        """
        import torch

        if isinstance(spec, DualEncoderSpec):
            return  # its answers hold the scores of all classes
        assert isinstance(spec, ModelSpec), "refused before"
        for batch in self._batches(self.items, spec):
            for question, logprobs in zip(batch, self._forced(model, batch, spec), strict=True):
                top = torch.topk(logprobs, min(TOP, logprobs.shape[-1]), dim=-1)
                self._likely[question.item.id] = _Likely(top.indices, top.values)
            advance(len(batch))

    def replies(self, model: Any, spec: Model, items: Sequence[Item] | None = None) -> list[Reply]:
        """In the order of `items` (all by default). spec: what the candidate is asked."""
        asked = self.items if items is None else items
        replies = self._chosen if isinstance(spec, DualEncoderSpec) else self._said
        found = {one.answer.item_id: one for one in replies(model, spec, asked)}  # type: ignore[arg-type]
        return [found[item.id] for item in asked]

    def shapes(self, spec: Model) -> list[Shape]:
        """Of the clean questions; corruption changes no shape."""
        questions = [
            Question(item, self._inputs(item, spec)) for item in self.items if item.condition == CLEAN
        ]
        return [
            Shape(one.tiles, one.inputs.input_ids.shape[1], len(self.answers[one.item.id].token_ids))
            for one in questions
        ]

    def _said(self, model: Any, spec: ModelSpec, asked: Sequence[Item]) -> Iterator[Reply]:
        for batch in self._batches(asked, spec):
            parted = []
            found: dict[str, Reply] = {}
            for question, logprobs in zip(batch, self._forced(model, batch, spec), strict=True):
                name = question.item.id
                answer = _repeated(self.answers[name], logprobs)
                kl, shift = _distances(self._likely[name], logprobs)
                found[name] = Reply(answer or self.answers[name], kl, shift)
                if answer is None:
                    parted.append(question)
            if parted:
                generate = pruned.generate if spec.pruning else reference.generate
                for said in generate(model, parted, spec, self._tokenizer):
                    found[said.item_id] = dataclasses.replace(found[said.item_id], answer=said)
            yield from found.values()

    def _chosen(self, model: Any, spec: DualEncoderSpec, asked: Sequence[Item]) -> Iterator[Reply]:
        """What a dual encoder chooses: its classes are embedded anew, by the candidate's text encoder."""
        classes = reference.class_embeddings(model, spec, self._tokenizer)
        for batch in self._batches(asked, spec):
            for said in reference.classify(model, batch, spec, classes):
                p, q = (_probabilities(one, spec) for one in (self.answers[said.item_id], said))
                yield Reply(said, *_divergences(p, q))

    def _batches(self, items: Sequence[Item], spec: Model) -> Iterator[list[Question]]:
        asked = (Question(item, self._inputs(item, spec)) for item in items)
        if isinstance(spec, ModelSpec) and spec.pruning:
            return pruned.batches(asked, reference.BATCH)
        return reference.batches(asked, reference.BATCH)

    def _inputs(self, item: Item, spec: Model) -> Inputs:
        key = item.id, *((spec.image, spec.prompt) if isinstance(spec, ModelSpec) else ())
        if key in self._kept:
            return self._kept[key]
        made = from_item(item, self._root, self._seed, spec, self._tokenizer)
        size = made.input_ids.nbytes + (0 if made.pixel_values is None else made.pixel_values.nbytes)
        if self._kept_bytes + size <= KEPT_BYTES:
            self._kept[key] = made
            self._kept_bytes += size
        return made

    def _forced(self, model: Any, batch: Sequence[Question], spec: ModelSpec) -> list[Any]:
        """Log-probabilities float32 [T, V] at the T positions that predict each reference token."""
        import torch

        tokens = [list(self.answers[question.item.id].token_ids) for question in batch]
        longest, pad = max(map(len, tokens)), spec.eos_token_ids[0]
        said = torch.tensor([row + [pad] * (longest - len(row)) for row in tokens])
        inputs = reference.collate([question.inputs for question in batch], spec)
        # The last token predicts nothing that is asked for; padding on the right is seen by nobody before it.
        before, asked = said[:, :-1], inputs["input_ids"].shape[1]
        new = {"input_ids": before, "attention_mask": torch.ones_like(before)}
        # An answer is no part of the prompt, and shows no picture.
        new |= {"token_type_ids": torch.ones_like(before), "mm_token_type_ids": torch.zeros_like(before)}
        inputs |= {
            name: torch.cat([inputs[name], columns], 1) for name, columns in new.items() if name in inputs
        }
        with torch.inference_mode():
            if spec.pruning:
                logits = pruned.logits(model, inputs, spec, asked)[:, -longest:]
            else:
                logits = model(**inputs, use_cache=False, logits_to_keep=longest).logits
            logprobs = torch.log_softmax(logits.float(), -1)
        return [row[: len(own)] for row, own in zip(logprobs, tokens, strict=True)]


def _repeated(said: Answer, logprobs: Any) -> Answer | None:
    """The reference's answer with the candidate's log-probabilities; None when it parts from it."""
    import torch

    tokens = torch.tensor(said.token_ids)
    if not bool((logprobs.argmax(-1) == tokens).all()):
        return None
    own = logprobs.gather(-1, tokens[:, None])[:, 0]
    return dataclasses.replace(said, token_logprobs=tuple(own.tolist()))


def _distances(likely: _Likely, logprobs: Any) -> tuple[float, float]:
    """(KL, total variation) over the kept tokens and the rest as one more; never above those over all."""
    import torch

    p, q = (
        torch.cat([kept, (1 - kept.sum(-1, keepdim=True)).clamp(min=1e-9)], -1)
        for kept in (likely.logprobs.double().exp(), logprobs.gather(-1, likely.ids).double().exp())
    )
    return _divergences(p.numpy(), q.numpy())


def _probabilities(said: Answer, spec: DualEncoderSpec) -> NDArray[np.float64]:
    """float64 [classes]; of a sigmoid, whose classes are judged alone, they are scaled to sum to 1."""
    likely = np.exp(zero_shot.log_probabilities(np.array(said.scores), spec))
    whole: NDArray[np.float64] = likely / likely.sum()
    return whole


def _divergences(p: NDArray[np.float64], q: NDArray[np.float64]) -> tuple[float, float]:
    """(KL in nats, total variation) between the last axes, averaged over the others."""
    shift = float(np.abs(p - q).sum(-1).mean()) / 2
    p, q = np.maximum(p, 1e-12), np.maximum(q, 1e-12)
    return max(0.0, float((p * np.log(p / q)).sum(-1).mean())), shift
