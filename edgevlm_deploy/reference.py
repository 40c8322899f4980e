"""What the source model itself answers: the yardstick for everything that follows.

The stored FP16 or BF16 weights are used as they are; on a CPU the arithmetic runs in float32, which
changes no weight. Decoding is greedy and batched, and a killed run goes on where it stopped.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby, islice
from pathlib import Path
from typing import Any

import numpy as np
from edgevlm_runner import zero_shot
from edgevlm_runner.contract import (
    CLEAN,
    Answer,
    Answering,
    DualEncoderSpec,
    EncoderDecoderSpec,
    Item,
    Model,
    ModelSpec,
    read_jsonl,
    write_jsonl,
)
from edgevlm_runner.errors import BundleError
from edgevlm_runner.features import Features, gather, watched
from edgevlm_runner.inputs import Inputs, from_item, load_tokenizer
from numpy.typing import NDArray
from tokenizers import Tokenizer

from edgevlm_deploy.calibration.tensors import pictures

BATCH = 32
"""Questions, or picture tiles if they are more."""
NOISE_FLOOR_ITEMS = 256
"""Items answered a second time, one by one, to see what batching alone changes."""


@dataclass(frozen=True)
class Question:
    item: Item
    inputs: Inputs

    @property
    def tiles(self) -> int:
        return 0 if self.inputs.pixel_values is None else len(self.inputs.pixel_values)


def answer(
    model: Any,
    items: Sequence[Item],
    root: Path,
    seed: int,
    spec: Model,
    tokenizer_file: Path,
    directory: Path,
    progress: Callable[[int], None],
) -> None:
    """Write `answers.jsonl` (one Answer per item, in item order) and `again.jsonl` into `directory`.

    The second holds the first clean items once more, asked one at a time: how far that differs is the
    noise floor of every flip rate.

    `model` is the transformers model on the device where it is to run; `root` is where the items'
    pictures are. `progress` is called with the number of newly answered items.
    """
    tokenizer = load_tokenizer(tokenizer_file)
    respond = _respondent(model, spec, tokenizer)
    partial = directory / "partial.jsonl"
    done = {one.item_id: one for one in _finished(partial)}
    progress(len(done))

    def ask(missing: Sequence[Item]) -> Iterator[Question]:
        return (Question(item, from_item(item, root, seed, spec, tokenizer)) for item in missing)

    missing = [item for item in items if item.id not in done]
    with partial.open("a", encoding="utf-8") as out:
        for batch in batches(ask(missing), BATCH):
            for one in respond(batch):
                out.write(json.dumps(vars(one), ensure_ascii=False) + "\n")
                done[one.item_id] = one
            out.flush()
            progress(len(batch))
    clean = [item for item in items if item.condition == CLEAN][:NOISE_FLOOR_ITEMS]
    alone = (one for question in ask(clean) for one in respond([question]))
    write_jsonl(directory / "again.jsonl", alone)
    write_jsonl(directory / "answers.jsonl", (done[item.id] for item in items))
    partial.unlink()


def _finished(partial: Path) -> list[Answer]:
    """Answers of a run that was killed; the line that it was writing is dropped."""
    if not partial.exists():
        return []
    text = partial.read_text(encoding="utf-8")
    partial.write_text(text[: text.rfind("\n") + 1], encoding="utf-8")
    try:
        return read_jsonl(partial, Answer)
    except BundleError:
        partial.unlink()
        return []


def batches(questions: Iterator[Question], size: int) -> Iterator[list[Question]]:
    """Neighbours of similar length together, so that little is padded; at most `size` tiles a batch."""
    while window := list(islice(questions, 8 * size)):
        window.sort(key=lambda question: question.inputs.input_ids.shape[1])
        batch: list[Question] = []
        for question in window:
            if batch and (len(batch) + 1) * max(question.tiles, batch[-1].tiles, 1) > size:
                yield batch
                batch = []
            batch.append(question)
        yield batch


def _respondent(
    model: Any, spec: Model, tokenizer: Tokenizer
) -> Callable[[Sequence[Question]], list[Answer]]:
    """What answers one batch."""
    if isinstance(spec, DualEncoderSpec):
        classes = class_embeddings(model, spec, tokenizer)
        return lambda batch: classify(model, batch, spec, classes)
    if isinstance(spec, EncoderDecoderSpec):
        return lambda batch: answer_questions(model, batch, spec, tokenizer)
    return lambda batch: generate(model, batch, spec, tokenizer)


def class_embeddings(model: Any, spec: DualEncoderSpec, tokenizer: Tokenizer) -> NDArray[np.float32]:
    """float32 [classes, D] of length 1, by the transformers model."""
    return zero_shot.embed_classes(_text_encoder(model), spec.text.classes, spec.text, tokenizer)


def features(
    model: Any, items: Sequence[Item], root: Path, seed: int, spec: DualEncoderSpec, tokenizer_file: Path
) -> Features:
    """The transformers model's embeddings of the pictures that the artifact keeps, one by one."""
    tokenizer = load_tokenizer(tokenizer_file)

    def encode_item(item: Item) -> NDArray[np.float32]:
        embeds = _image_embeds(model, [Question(item, from_item(item, root, seed, spec, tokenizer))])
        return np.asarray(embeds[0], np.float32)

    return gather(watched(items, spec), encode_item, _text_encoder(model), spec, tokenizer)


def _text_encoder(model: Any) -> zero_shot.Encode:
    import torch

    def encode(input_ids: NDArray[np.int64]) -> NDArray[np.float32]:
        # Without a mask: SigLIP was trained to read its padding, and CLIP cannot see it.
        with torch.inference_mode():
            features = model.get_text_features(input_ids=torch.from_numpy(input_ids)).pooler_output
        embeds: NDArray[np.float32] = features.float().numpy()
        return embeds

    return encode


def _image_embeds(model: Any, batch: Sequence[Question]) -> NDArray[np.float32]:
    """float32 [B, D]."""
    import torch

    pixels = [one.inputs.pixel_values for one in batch if one.inputs.pixel_values is not None]
    with torch.inference_mode():
        found = model.get_image_features(pixel_values=torch.from_numpy(np.concatenate(pixels)))
    embeds: NDArray[np.float32] = found.pooler_output.float().numpy()
    return embeds


def classify(
    model: Any, batch: Sequence[Question], spec: DualEncoderSpec, classes: NDArray[np.float32]
) -> list[Answer]:
    """The likeliest class of each picture by the transformers model."""
    choices = [zero_shot.choose(embed, classes, spec) for embed in _image_embeds(model, batch)]
    return [
        Answer(
            item_id=question.item.id,
            text=spec.text.classes[choice.place],
            token_ids=(choice.place,),
            token_logprobs=(choice.log_probability,),
            finished=True,
            scores=choice.scores,
        )
        for question, choice in zip(batch, choices, strict=True)
    ]


def generate(model: Any, batch: Sequence[Question], spec: ModelSpec, tokenizer: Any) -> list[Answer]:
    """Greedy answers of the transformers model to one batch."""
    import torch

    with torch.inference_mode():
        output = model.generate(
            **collate([question.inputs for question in batch], spec),
            **_greedy(spec),
            eos_token_id=list(spec.eos_token_ids),
            pad_token_id=spec.eos_token_ids[0],
        )
    return _answers(output, batch, spec, tokenizer)


def answer_questions(
    model: Any, batch: Sequence[Question], spec: EncoderDecoderSpec, tokenizer: Any
) -> list[Answer]:
    """The same for an encoder–decoder, questions of one length at a time: transformers' decoder would attend
    to the padding of shorter ones."""
    import torch

    found: list[Answer] = []
    for _, group in groupby(batch, key=lambda question: question.inputs.input_ids.shape[1]):
        same = list(group)
        pixels = [one.inputs.pixel_values for one in same if one.inputs.pixel_values is not None]
        with torch.inference_mode():
            output = model.generate(
                input_ids=torch.from_numpy(np.concatenate([one.inputs.input_ids for one in same])),
                pixel_values=torch.from_numpy(np.concatenate(pixels)),
                **_greedy(spec),
            )
        found += _answers(output, same, spec, tokenizer)
    return found


def _greedy(spec: Answering) -> dict[str, Any]:
    return {
        "max_new_tokens": spec.max_new_tokens,
        "do_sample": False,
        "num_beams": 1,
        "use_cache": True,
        "output_logits": True,
        "return_dict_in_generate": True,
    }


def _answers(output: Any, batch: Sequence[Question], spec: Answering, tokenizer: Any) -> list[Answer]:
    """What transformers generated, with the log-probabilities of raw logits."""
    import torch

    tokens = output.sequences[:, -len(output.logits) :]
    logprobs = torch.stack(
        [
            torch.log_softmax(step.double(), -1).gather(-1, tokens[:, i : i + 1])[:, 0]
            for i, step in enumerate(output.logits)
        ],
        1,
    )
    return [
        answer_of(question.item.id, row.tolist(), scores.tolist(), spec, tokenizer)
        for question, row, scores in zip(batch, tokens, logprobs, strict=True)
    ]


def answer_of(
    item_id: str, tokens: list[int], logprobs: list[float], spec: Answering, tokenizer: Any
) -> Answer:
    """Cut at the first end-of-sequence token, which stays in the token list and out of the text."""
    ends = [position for position, token in enumerate(tokens) if token in spec.eos_token_ids]
    length = ends[0] + 1 if ends else len(tokens)
    words = tokens[: length - 1] if ends else tokens
    return Answer(
        item_id=item_id,
        text=tokenizer.decode(words, skip_special_tokens=True).strip(),
        token_ids=tuple(tokens[:length]),
        token_logprobs=tuple(logprobs[:length]),
        finished=bool(ends),
    )


def collate(batch: Sequence[Inputs], spec: ModelSpec) -> dict[str, Any]:
    """Left-padded tensors for transformers' generate.

    input_ids, attention_mask int64 [B, T]; token_type_ids int64 [B, T], 0 in a prompt, where its tokens all
    see each other; and what `calibration.tensors.pictures` gives.
    """
    import torch

    length = max(one.input_ids.shape[1] for one in batch)
    ids = np.full((len(batch), length), spec.eos_token_ids[0], np.int64)
    mask = np.zeros((len(batch), length), np.int64)
    for row, one in enumerate(batch):
        own = one.input_ids.shape[1]
        ids[row, length - own :], mask[row, length - own :] = one.input_ids[0], 1
    tensors = {"input_ids": torch.from_numpy(ids), "attention_mask": torch.from_numpy(mask)}
    if spec.prefix:
        tensors["token_type_ids"] = torch.zeros_like(tensors["input_ids"])
    return {**tensors, **pictures(batch, spec)}
