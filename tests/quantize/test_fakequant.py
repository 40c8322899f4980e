"""The fake-quantised torch model is the table, nothing else."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from precision import wanted

from edgevlm_deploy.errors import QuantizationError
from edgevlm_deploy.quantize import QuantizedModel, QuantizedTable, fakequant
from edgevlm_deploy.quantize.rounding import round_to_nearest, weight_of
from edgevlm_deploy.recipe import Algorithm, Component, Scheme

EMBEDDING, FC1 = "model.text_model.embed_tokens", "model.vision_model.encoder.layers.0.mlp.fc1"
NORM = "model.text_model.norm.weight"


@pytest.fixture
def quantized(float_model: Any) -> QuantizedModel:
    row = wanted(Component.EMBEDDING, Scheme.W8A16, Algorithm.RTN)
    static = wanted(Component.VISION_ENCODER, Scheme.W8A8, Algorithm.RTN)
    modules = {
        EMBEDDING: round_to_nearest(weight_of(float_model, EMBEDDING), row),
        FC1: round_to_nearest(weight_of(float_model, FC1), static, activation_scale=0.02),
    }
    return QuantizedModel(QuantizedTable(modules), {NORM: np.full(64, 0.5, np.float32)})


def test_weights_and_float_parameters_are_replaced(float_model: Any, quantized: QuantizedModel) -> None:
    model = fakequant.apply(copy.deepcopy(float_model), quantized)
    for name, linear in quantized.table.items():
        np.testing.assert_array_equal(weight_of(model, name), linear.dequantize())
    assert torch.all(model.get_parameter(NORM) == 0.5)
    untouched = "model.text_model.layers.0.mlp.up_proj.weight"
    assert torch.equal(model.get_parameter(untouched), float_model.get_parameter(untouched))


def test_static_activation_is_the_quantise_dequantise_of_onnx(
    float_model: Any, quantized: QuantizedModel
) -> None:
    model = fakequant.apply(copy.deepcopy(float_model), quantized)
    module, linear = model.get_submodule(FC1), quantized.table[FC1]
    assert linear.activation is not None
    step = np.float32(linear.activation.scale)
    x = (np.random.default_rng(0).normal(size=(3, 64)) * 2).astype(np.float32)
    x[0, :2] = step * np.float32(0.5), step * np.float32(1e4)  # a tie and a clipped value
    seen = np.clip(np.rint(x / step), -128, 127) * step
    expected = seen @ linear.dequantize().T + module.bias.detach().numpy()
    with torch.no_grad():
        got = module(torch.from_numpy(x)).numpy()
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5)


def test_a_tied_embedding_and_head_become_two_weights(tied_model: Any) -> None:
    assert tied_model.lm_head.weight is tied_model.model.text_model.embed_tokens.weight
    row = wanted(Component.EMBEDDING, Scheme.W8A16, Algorithm.RTN)
    group = wanted(Component.HEAD, Scheme.W4A16_G32, Algorithm.RTN)
    weight = weight_of(tied_model, "lm_head")
    table = QuantizedTable(
        {EMBEDDING: round_to_nearest(weight, row), "lm_head": round_to_nearest(weight, group)}
    )
    model = fakequant.apply(copy.deepcopy(tied_model), QuantizedModel(table))
    for name in table:
        np.testing.assert_array_equal(weight_of(model, name), table[name].dequantize())


def test_a_table_of_another_model(float_model: Any, quantized: QuantizedModel) -> None:
    linear = quantized.table[FC1]
    with pytest.raises(QuantizationError, match="not in this model"):
        fakequant.apply(copy.deepcopy(float_model), QuantizedModel(QuantizedTable({"model.none": linear})))
    with pytest.raises(QuantizationError, match="the model has shape"):
        fakequant.apply(copy.deepcopy(float_model), QuantizedModel(QuantizedTable({"lm_head": linear})))
