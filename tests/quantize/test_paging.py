"""A model on the pages of its checkpoint: the same numbers, a fraction of the memory."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from quantizing import logits

from edgevlm_deploy import paging
from edgevlm_deploy.backends.half import half_precision
from edgevlm_deploy.errors import QuantizationError
from edgevlm_deploy.quantize import QuantizedModel, fakequant, quantize, resolve
from edgevlm_deploy.recipe import Algorithm, Component, Precision, Quantizer, Scheme

HEAD = {Component.HEAD: Precision(scheme=Scheme.W8A16), Component.EMBEDDING: Precision(scheme=Scheme.W8A16)}


@pytest.fixture
def stored(float_model: Any) -> Any:
    """The model as a bf16 checkpoint has it."""
    return copy.deepcopy(float_model).bfloat16()


@pytest.fixture
def load_paged(stored: Any, monkeypatch: pytest.MonkeyPatch) -> Callable[[], Any]:
    """Several chunks per matrix."""
    monkeypatch.setattr(paging, "LARGE", 1)
    monkeypatch.setattr(paging, "CHUNK", 1000)

    def load() -> Any:
        model = copy.deepcopy(stored)
        paging.keep(model)
        return model

    return load


@pytest.fixture
def load_resident(stored: Any) -> Callable[[], Any]:
    return lambda: copy.deepcopy(stored).float()


def test_answers_are_those_of_the_float_model(
    load_paged: Callable[[], Any], load_resident: Callable[[], Any], batches: Any
) -> None:
    paged = load_paged()
    assert len(paging.pages(paged)) > 20
    assert all(paged.get_parameter(name).dtype == torch.bfloat16 for name in paging.pages(paged))
    torch.testing.assert_close(logits(paged, batches), logits(load_resident(), batches))


def test_half_precision_rounds_pages_too(
    load_paged: Callable[[], Any], load_resident: Callable[[], Any], batches: Any, stored: Any
) -> None:
    with torch.no_grad():
        stored.lm_head.weight[0] = 1e-7  # fp16 has fewer digits there
    paged, resident = half_precision(load_paged()), half_precision(load_resident())
    torch.testing.assert_close(logits(paged, batches), logits(resident, batches))
    assert not torch.equal(resident.lm_head.weight, stored.lm_head.weight.float())


@pytest.mark.parametrize(
    "algorithm",
    [Algorithm.RTN, Algorithm.HQQ, Algorithm.GPTQ, Algorithm.AWQ, Algorithm.AUTOROUND],
)
def test_integers_are_those_of_the_float_model(
    load_paged: Callable[[], Any],
    load_resident: Callable[[], Any],
    batches: Any,
    modules: Any,
    algorithm: Algorithm,
    tmp_path: Path,
) -> None:
    scheme = Scheme.W4A16_G64
    asked = {Component.DECODER: Precision(scheme=scheme, algorithm=algorithm), **HEAD}
    request = resolve(asked, (), modules, Quantizer.NEURAL_COMPRESSOR)
    expected = quantize(load_resident, request, batches)
    got = quantize(load_paged, request, batches, scratch=tmp_path)
    assert list(got.table) == list(expected.table)
    for name, linear in expected.table.items():
        # AWQ and GPTQ decide by sums whose last bits depend on the order of adding.
        same = np.mean(got.table[name].q == linear.q)
        assert same == 1 if algorithm in (Algorithm.RTN, Algorithm.HQQ) else same > 0.97, (name, same)
    assert not list(tmp_path.iterdir()), "integers wait in files without a name"
    got.save(tmp_path)
    quantized = QuantizedModel.load(tmp_path)
    paged, resident = (fakequant.apply(load(), quantized) for load in (load_paged, load_resident))
    torch.testing.assert_close(logits(paged, batches), logits(resident, batches))


def test_smoothquant_folds_into_pages(
    load_paged: Callable[[], Any], load_resident: Callable[[], Any], batches: Any, modules: Any
) -> None:
    asked = {Component.VISION_ENCODER: Precision(scheme=Scheme.W8A8, algorithm=Algorithm.SMOOTHQUANT)}
    request = resolve(asked, (), modules, Quantizer.NEURAL_COMPRESSOR)
    got, expected = (quantize(load, request, batches) for load in (load_paged, load_resident))
    for name, linear in expected.table.items():
        assert np.mean(got.table[name].q == linear.q) > 0.99
    for name, values in expected.float_parameters.items():
        np.testing.assert_allclose(got.float_parameters[name], values, rtol=1e-5, atol=1e-6)


def test_integers_make_room_for_the_weight_again(load_paged: Callable[[], Any], batches: Any) -> None:
    model = load_paged()
    before = logits(model, batches)
    request = resolve(
        {Component.HEAD: Precision(scheme=Scheme.W8A16)}, (), _modules(model), Quantizer.NEURAL_COMPRESSOR
    )
    quantized = quantize(load_paged, request, [])
    with fakequant.applied(model, quantized):
        assert not torch.equal(logits(model, batches), before)
    assert torch.equal(logits(model, batches), before)


def _modules(model: Any) -> dict[str, tuple[str, ...]]:
    return {"head": ("lm_head",)}


def test_what_needs_the_whole_model_says_so(
    load_paged: Callable[[], Any], batches: Any, modules: Any, tmp_path: Path
) -> None:
    asked = {Component.DECODER: Precision(scheme=Scheme.W4A16_G64, algorithm=Algorithm.MBQ)}
    request = resolve(asked, (), modules, Quantizer.NEURAL_COMPRESSOR)
    with pytest.raises(QuantizationError, match=r"mbq needs gradients .* Use awq, gptq"):
        quantize(load_paged, request, batches, scratch=tmp_path)


def test_a_layer_in_memory_is_an_ordinary_one_for_a_while(load_paged: Callable[[], Any]) -> None:
    model = load_paged()
    name = "model.text_model.layers.0"
    before = paging.pages(model)
    with paging.resident(model, name) as layer:
        weight = layer.mlp.up_proj.weight
        assert type(layer.mlp.up_proj) is torch.nn.Linear and weight.dtype == torch.float32
        assert not any(page.startswith(name) for page in paging.pages(model))
        with torch.no_grad():
            weight.zero_()
    assert paging.pages(model) == before
    assert model.get_submodule(name).mlp.up_proj.weight.float().abs().sum() > 0
