"""Inputs of a part, seen while the whole model runs."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from edgevlm_deploy.errors import DataError
from edgevlm_deploy.quantize import capture


def test_padded_batches_become_samples_without_padding(batch_of: Any, float_model: Any) -> None:
    short, long = batch_of(1, text_tokens=5), batch_of(2, text_tokens=9)
    padding = long["input_ids"].shape[1] - short["input_ids"].shape[1]
    padded = {key: torch.cat([short[key], long[key]]) for key in ("pixel_values", "pixel_attention_mask")}
    for one in (short, long):
        one["labels"] = torch.where(one["input_ids"] % 2 == 0, one["input_ids"], -100)
    for key in ("input_ids", "attention_mask", "labels"):
        left = torch.cat([torch.zeros(1, padding, dtype=torch.long), short[key]], dim=1)
        padded[key] = torch.cat([left, long[key]])
    first, second = capture.samples([padded])
    for sample, original in ((first, short), (second, long)):
        assert sorted(sample) == sorted(original)
        assert all(torch.equal(sample[key], original[key]) for key in original)
    assert capture.run(float_model, [padded]) == 2
    (call,) = capture.calls(float_model, "model.text_model", [short])
    assert call["use_cache"] is False and call["inputs_embeds"].shape[1] == short["input_ids"].shape[1]


def test_watch_names_arguments_and_leaves_no_hook(float_model: Any, batches: Any) -> None:
    seen: list[dict[str, Any]] = []
    capture.watch(float_model, "model.text_model", batches[:2], seen.append)
    assert len(seen) == 2 and seen[0]["inputs_embeds"].shape[-1] == 64
    assert not float_model.get_submodule("model.text_model")._forward_pre_hooks


def test_missing_calibration_data(float_model: Any, batches: Any) -> None:
    with pytest.raises(DataError, match="empty"):
        capture.run(float_model, [])
    with pytest.raises(DataError, match="needs input_ids and attention_mask"):
        capture.run(float_model, [{"input_ids": batches[0]["input_ids"]}])
    text_only = {
        "input_ids": torch.arange(3, 9)[None],
        "attention_mask": torch.ones(1, 6, dtype=torch.long),
    }
    with pytest.raises(DataError, match="lack a picture"):
        capture.first_inputs(float_model, "model.vision_model.encoder", [text_only])
