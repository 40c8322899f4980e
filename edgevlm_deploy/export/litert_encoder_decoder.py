"""An encoder–decoder as one .tflite file; for its signatures see
`edgevlm_runner.runtimes.litert_encoder_decoder`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any
from unittest import mock

import torch
from edgevlm_runner.contract import EncoderDecoderSpec
from edgevlm_runner.runtimes.litert_encoder_decoder import (
    ENCODE_IMAGE,
    decode_signature,
    layer_names,
    question_signature,
)

from edgevlm_deploy.export import litert
from edgevlm_deploy.export.encoder_decoder import AnswerDecoder, PictureStates, QuestionEncoder


class _EncodeImage(torch.nn.Module):  # type: ignore[misc]
    def __init__(self, source: Any) -> None:
        super().__init__()
        self.encoder = PictureStates(source)

    def forward(self, pixel_values: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"image_states": self.encoder(pixel_values)}


class _EncodeQuestion(torch.nn.Module):  # type: ignore[misc]
    def __init__(self, source: Any, spec: EncoderDecoderSpec) -> None:
        super().__init__()
        self.encoder = QuestionEncoder(source, spec)
        self._names = ["question_states", *layer_names("cross", spec.layers)]

    def forward(
        self, token_ids: torch.Tensor, image_states: torch.Tensor, mask: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        return dict(zip(self._names, self.encoder(token_ids, image_states, mask), strict=True))


class _Decode(torch.nn.Module):  # type: ignore[misc]
    def __init__(self, source: Any, spec: EncoderDecoderSpec) -> None:
        super().__init__()
        self.decoder = AnswerDecoder(source, spec)
        self._cross, self._past = (layer_names(one, spec.layers) for one in ("cross", "past"))
        self._names = ["logits", *layer_names("present", spec.layers)]

    def forward(
        self, token_ids: torch.Tensor, position: torch.Tensor, mask: torch.Tensor, **held: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        cross, past = (tuple(held[name] for name in names) for names in (self._cross, self._past))
        return dict(zip(self._names, self.decoder(token_ids, position, cross, past, mask), strict=True))


def export(source: Any, spec: EncoderDecoderSpec, path: Path) -> None:
    """Write the float graphs of `source` (float32, in evaluation mode) to `path`.

    Raises what `litert.export` raises.
    """
    side = spec.image.side
    with litert.library() as toolkit, torch.no_grad():
        converter = toolkit.signature(
            ENCODE_IMAGE,
            _EncodeImage(source).eval(),
            sample_kwargs={"pixel_values": torch.zeros(1, 3, side, side)},
        )
        expected = {ENCODE_IMAGE}
        for tokens in spec.question_lengths:
            question, decode = question_signature(tokens), decode_signature(tokens)
            converter.signature(
                question, _EncodeQuestion(source, spec).eval(), sample_kwargs=_question(spec, tokens)
            )
            converter.signature(decode, _Decode(source, spec).eval(), sample_kwargs=_answer(spec, tokens))
            expected |= {question, decode}
        with mock.patch.object(torch.nn.LayerNorm, "forward", litert.layer_norm):
            made = converter.convert(strict_export=False)
        litert.save(made, expected, path)


def _question(spec: EncoderDecoderSpec, tokens: int) -> dict[str, torch.Tensor]:
    return {
        "token_ids": torch.ones(1, tokens, dtype=torch.int32),
        "image_states": torch.zeros(1, spec.image_tokens, spec.hidden_size),
        "mask": torch.zeros(1, 1, 1, tokens),
    }


def _answer(spec: EncoderDecoderSpec, tokens: int) -> dict[str, torch.Tensor]:
    cross = torch.zeros(1, spec.heads, tokens, spec.head_dim)
    past = torch.zeros(1, spec.heads, spec.max_new_tokens, spec.head_dim)
    return {
        "token_ids": torch.ones(1, 1, dtype=torch.int32),
        "position": torch.zeros(1, dtype=torch.int32),
        "mask": torch.zeros(1, 1, 1, tokens),
        **{name: cross.clone() for name in layer_names("cross", spec.layers)},
        **{name: past.clone() for name in layer_names("past", spec.layers)},
    }
