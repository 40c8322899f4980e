"""A calibration set as the model's own inputs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, overload

import numpy as np
from edgevlm_runner.contract import DualEncoderSpec, EncoderDecoderSpec, Model, ModelSpec
from edgevlm_runner.inputs import Inputs, from_class, from_picture, load_tokenizer
from edgevlm_runner.preprocess import load_image
from numpy.typing import NDArray

from edgevlm_deploy.calibration import tensors
from edgevlm_deploy.calibration.rows import CalibrationSet, Row
from edgevlm_deploy.errors import DataError

if TYPE_CHECKING:
    import torch
    from tokenizers import Tokenizer

Batch = dict[str, "torch.Tensor"]

NO_LABEL = -100
"""What transformers takes for "no label here"."""


@dataclass(frozen=True)
class Batches(Sequence[Batch]):
    """One batch per row, made when it is asked for: all tiles at once would not fit into memory.

        input_ids              int64    [1, T]             question, then the answer and end of utterance
        attention_mask         int64    [1, T]
        labels                 int64    [1, T]             ids of the answer and end of utterance, else −100
        token_type_ids         int64    [1, T]             1 in the answer, where a prompt sees all of itself

    and the picture as `tensors.pictures` gives it, where there is one.

    The pixels are those of the device's preprocessing. The answer is there because its tokens run
    through the decoder too, and their activations have to be in range.

    For a dual encoder a row is a picture [1, 3, S, S] and a sentence about its class [1, T]. T is always the
    text encoder's length; the mask leaves out what a causal text encoder never looks at, the padding behind
    the end.

    For an encoder–decoder a row is a picture [1, 3, S, S], a question [1, T], and what the decoder is given
    while it writes the answer, `decoder_input_ids` [1, N]: its first token, then the answer.
    """

    calibration: CalibrationSet
    spec: Model
    tokenizer: Tokenizer

    def __len__(self) -> int:
        return len(self.calibration.rows)

    @overload
    def __getitem__(self, index: int) -> Batch: ...
    @overload
    def __getitem__(self, index: slice) -> list[Batch]: ...
    def __getitem__(self, index: int | slice) -> Batch | list[Batch]:
        if isinstance(index, slice):
            return [self[n] for n in range(*index.indices(len(self)))]
        return self._batch(self.calibration.rows[index])

    def inputs(self, row: Row) -> Inputs:
        """As a device sees the row; the answer follows the question."""
        picture = load_image(self.calibration.directory / row.image) if row.image else None
        if isinstance(self.spec, DualEncoderSpec):
            whole = replace(self.spec, text=replace(self.spec.text, padded=True))
            return from_class(picture, row.answer, whole, self.tokenizer)
        asked = from_picture(picture, row.prompt, self.spec, self.tokenizer)
        if isinstance(self.spec, EncoderDecoderSpec):
            return asked
        return replace(asked, input_ids=self._with_answer(asked.input_ids, row, self.spec))

    def _batch(self, row: Row) -> Batch:
        import torch

        inputs = self.inputs(row)
        ids = torch.from_numpy(inputs.input_ids)
        if isinstance(self.spec, DualEncoderSpec):
            pixels = inputs.pixel_values
            if pixels is None:  # transformers computes both sides or none
                pixels = np.zeros((1, 3, self.spec.image.side, self.spec.image.side), np.float32)
            mask = _read(ids, self.spec.text.end_token_id)
            return {"input_ids": ids, "attention_mask": mask, "pixel_values": torch.from_numpy(pixels)}
        batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        if isinstance(self.spec, EncoderDecoderSpec):
            answer = self.tokenizer.encode(row.answer, add_special_tokens=False).ids
            fed = [self.spec.start_token_id, *answer][: self.spec.max_new_tokens]
            pixels = torch.from_numpy(inputs.pixel_values)
            return {**batch, "pixel_values": pixels, "decoder_input_ids": torch.tensor([fed])}
        batch["labels"] = ids.clone()
        batch["labels"][:, : ids.shape[1] - self._answer(row, self.spec).size] = NO_LABEL
        if self.spec.prefix:
            batch["token_type_ids"] = (batch["labels"] != NO_LABEL).long()
        return {**batch, **tensors.pictures([inputs], self.spec)}

    def _with_answer(self, asked: NDArray[np.int64], row: Row, spec: ModelSpec) -> NDArray[np.int64]:
        """int64 [1, T]; the answer follows the prompt after a space, as in training."""
        ids = np.concatenate([asked.reshape(-1), self._answer(row, spec)])
        if len(ids) > spec.max_context:
            raise DataError(
                f"calibration sample {row.sample_id}: {len(ids)} tokens, the context holds "
                f"{spec.max_context}. Shorten the question, lower image.max_tiles or raise "
                "generation.max_context."
            )
        return ids[None]

    def _answer(self, row: Row, spec: ModelSpec) -> NDArray[np.int64]:
        """int64 [T]: the answer's tokens and the end of the utterance; none where there is no answer."""
        if not row.answer:
            return np.zeros(0, np.int64)
        template = spec.prompt.with_image if row.image else spec.prompt.text_only
        space = "" if template[-1:].isspace() else " "
        ids = self.tokenizer.encode(space + row.answer, add_special_tokens=False).ids
        return np.array([*ids, spec.eos_token_ids[0]], np.int64)


def _read(texts: torch.Tensor, end_token_id: int | None) -> torch.Tensor:
    """int64 [1, T]: 1 where a text encoder's result depends on the place; without an end everywhere."""
    import torch

    if end_token_id is None:
        return torch.ones_like(texts)
    ends = (texts == end_token_id).long()
    return (ends.cumsum(dim=1) - ends == 0).long()


def inputs(calibration: CalibrationSet, spec: Model, tokenizer: Path) -> Iterator[Inputs]:
    """The same rows as a device sees them; the answer follows the question."""
    made = batches(calibration, spec, tokenizer)
    return (made.inputs(row) for row in calibration.rows)


def batches(calibration: CalibrationSet, spec: Model, tokenizer: Path) -> Batches:
    """A sequence that can be walked any number of times; each walk makes the tensors anew.

    `tokenizer` is a tokenizer.json.
    """
    return Batches(calibration, spec, load_tokenizer(tokenizer))
