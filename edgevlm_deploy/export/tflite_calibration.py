"""Real inputs of every signature of a float .tflite file, for ranges of activations."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from edgevlm_runner import anyres, native, positions
from edgevlm_runner.contract import EncoderDecoderSpec, ModelSpec
from edgevlm_runner.generate import splice
from edgevlm_runner.inputs import Inputs
from edgevlm_runner.runtimes.litert import LiteRt
from edgevlm_runner.runtimes.litert_encoder_decoder import LiteRtEncoderDecoder

DECODED = 4
"""Last tokens of a sample that are decoded one by one; those before are prefilled."""

Call = Mapping[str, Any]
"""Input name → array."""


def calls(root: Path, spec: ModelSpec, signature: str, samples: Iterable[Inputs]) -> Iterator[Call]:
    """What `signature` of the file below `root` is given while the samples run; one sample in memory.

    Prompts that are longer than the signature's cache are cut.
    """
    with _Recorder(root, spec, signature) as recorder:
        for sample in samples:
            recorder.calls = []
            recorder.run(sample)
            yield from recorder.calls


def answering_calls(
    root: Path, spec: EncoderDecoderSpec, signature: str, samples: Iterable[Inputs]
) -> Iterator[Call]:
    """The same of an encoder–decoder, with the first tokens of its own answers.

    Every question runs on the signature's own length, padded, or is left out where it is longer.
    """
    length = int(signature.rpartition("_")[2]) if signature.rpartition("_")[2].isdigit() else None
    lengths = (length,) if length else spec.question_lengths
    with _AnsweringRecorder(root, spec, signature, lengths) as recorder:
        for sample in samples:
            if sample.pixel_values is not None and sample.input_ids.shape[1] <= lengths[-1]:
                recorder.calls = []
                recorder.run(sample)
                yield from recorder.calls


class _AnsweringRecorder(LiteRtEncoderDecoder):
    def __init__(
        self, root: Path, spec: EncoderDecoderSpec, signature: str, lengths: tuple[int, ...]
    ) -> None:
        super().__init__(root, spec)
        self._spec = dataclasses.replace(spec, question_lengths=lengths)
        self._watched = signature
        self.calls: list[Call] = []

    def run(self, sample: Inputs) -> None:
        spec = self._spec
        assert sample.pixel_values is not None
        self.read_question(self.encode_image(sample.pixel_values), sample.input_ids)
        token = spec.start_token_id
        for _ in range(min(DECODED, spec.max_new_tokens)):
            token = int(self.step(token).argmax())

    def _run(self, signature: str, inputs: Mapping[str, Any]) -> Any:
        if signature == self._watched:
            self.calls.append(dict(inputs))
        return super()._run(signature, inputs)


class _Recorder(LiteRt):
    """Runs on the lengths of one signature alone, and copies its cache, so that earlier states are kept."""

    def __init__(self, root: Path, spec: ModelSpec, signature: str) -> None:
        super().__init__(root, spec, in_place=False)
        self._watched = signature
        self.calls: list[Call] = []
        wanted = [key for key, name in self._steps.items() if name == signature]
        for cache, tokens in wanted:
            pair = {(cache, tokens), (cache, 1)}
            self._steps = {key: name for key, name in self._steps.items() if key in pair}

    def run(self, sample: Inputs) -> None:
        features = None
        if sample.pixel_values is not None:
            features = anyres.packed(self.encode_image(sample.pixel_values), sample.size, self._spec.image)
        embeds = splice(self.embed(sample.input_ids), features, sample.input_ids, self._spec)
        embeds = embeds[:, : min(length for length, _ in self._steps)]
        self.reset()
        places = None
        if self._spec.position_rows > 1:
            grid = native.grid(sample.pixel_values, self._spec.image)
            places = positions.of_prompt(sample.input_ids == self._spec.image_token_id, grid)
        first = max(1, embeds.shape[1] - DECODED)
        for begin, end in [(0, first), *((at, at + 1) for at in range(first, embeds.shape[1]))]:
            self.step(embeds[:, begin:end], None if places is None else places[..., begin:end])

    def _run(self, signature: str, inputs: dict[str, Any], cache: Any = None) -> Any:
        if signature == self._watched:
            self.calls.append({**inputs, **(cache or {})})
        return super()._run(signature, inputs, cache)
