"""Folds leave the float model as it is."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

from edgevlm_deploy.errors import QuantizationError
from edgevlm_deploy.quantize import folding


def test_folds_are_found_in_both_stacks(float_model: Any) -> None:
    found = folding.folds(name for name, _ in float_model.named_modules())
    assert len(found) == 2 * 3 + 2 * 2
    assert found[0].source == "model.vision_model.encoder.layers.0.layer_norm1"
    sources = {fold.source.rpartition("layers.")[2] for fold in found}
    assert "1.mlp.up_proj" in sources and "0.mlp.fc2" not in sources


def test_folding_every_place_changes_no_output(float_model: Any, batch_of: Any) -> None:
    folded, batch = copy.deepcopy(float_model), batch_of(5)
    generator = torch.Generator().manual_seed(0)
    changed = set()
    for fold in folding.folds(name for name, _ in folded.named_modules()):
        columns = folded.get_submodule(fold.targets[0]).weight.shape[1]
        changed |= set(folding.apply(folded, fold, torch.rand(columns, generator=generator) * 4 + 0.1))
    with torch.no_grad():
        expected, got = float_model(**batch).logits, folded(**batch).logits
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)
    for name, parameter in folded.named_parameters():
        is_same = torch.equal(parameter, float_model.get_parameter(name))
        assert is_same == (name not in changed), name


@pytest.mark.parametrize("bad", [0.0, -1.0, float("nan"), float("inf")])
def test_scales_that_cannot_be_folded(float_model: Any, bad: float) -> None:
    fold = folding.folds(name for name, _ in float_model.named_modules())[0]
    scale = torch.ones(64)
    scale[3] = bad
    with pytest.raises(QuantizationError, match="not positive and finite"):
        folding.apply(copy.deepcopy(float_model), fold, scale)


def test_the_vision_blocks_of_qwen_vl() -> None:
    gated = ["norm1", "attn.qkv", "norm2", "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"]
    found = folding.folds(f"model.visual.blocks.3.{name}" for name in gated)
    assert [one.source.removeprefix("model.visual.blocks.3.") for one in found] == [
        "mlp.up_proj",
        "norm1",
        "norm2",
    ]
    assert folding.layer_of("model.visual.blocks.3.attn.qkv") == "model.visual.blocks.3"
