"""NVIDIA Model Optimizer on a tiny vision-language model."""

from __future__ import annotations

import copy
import importlib.util
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from edgevlm_deploy.errors import DataError, MissingExtraError
from edgevlm_deploy.quantize import capture, fakequant, quantize, resolve
from edgevlm_deploy.recipe import Algorithm, Component, ModuleOverride, Precision, Quantizer, Scheme

LAYERS = "model.text_model.layers"
TENSORRT = Quantizer.TENSORRT

needs_modelopt = pytest.mark.skipif(
    importlib.util.find_spec("modelopt") is None, reason="nvidia-modelopt is not installed"
)


def everything(scheme: Scheme, algorithm: Algorithm) -> dict[Component, Precision]:
    precision = Precision(scheme=scheme, algorithm=algorithm)
    components = (Component.VISION_ENCODER, Component.PROJECTOR, Component.DECODER)
    return dict.fromkeys(components, precision)


def error(model: Any, source: Any, batches: list[dict[str, Any]]) -> float:
    with torch.no_grad():
        got = torch.cat([model(**batch).logits[0] for batch in batches])
        expected = torch.cat([source(**batch).logits[0] for batch in batches])
    return float((got - expected).norm() / expected.norm())


@pytest.fixture(scope="module")
def loud_model(float_model: Any) -> Any:
    """A few channels of every norm are loud, as in trained transformers."""
    model = copy.deepcopy(float_model)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "layer_norm" in name or "layernorm" in name:
                parameter[:3] *= 25
    return model


@needs_modelopt
def test_int8_default_ranges(load_model: Callable[[], Any], batches: Any, modules: Any) -> None:
    request = resolve(everything(Scheme.W8A8, Algorithm.RTN), (), modules, TENSORRT)
    quantized = quantize(load_model, request, batches, TENSORRT)
    assert quantized.float_parameters == {} and set(quantized.table) == set(request)
    source = load_model()
    for name, linear in quantized.table.items():
        largest: list[float] = []
        capture.watch(
            source, name, batches, lambda seen, top=largest: top.append(float(seen["input"].abs().max()))
        )
        assert linear.activation is not None
        ratio = linear.activation.scale / (max(largest) / 127)
        assert 1 - 1e-6 <= ratio <= 1 + 2**-7, name
    assert error(fakequant.apply(load_model(), quantized), source, batches) < 0.1


@needs_modelopt
def test_smoothquant_beats_default_with_loud_channels(loud_model: Any, batches: Any, modules: Any) -> None:
    errors = {}
    for algorithm in (Algorithm.RTN, Algorithm.SMOOTHQUANT):
        request = resolve(everything(Scheme.W8A8, algorithm), (), modules, TENSORRT)
        quantized = quantize(lambda: copy.deepcopy(loud_model), request, batches, TENSORRT)
        fake = fakequant.apply(copy.deepcopy(loud_model), quantized)
        errors[algorithm] = error(fake, loud_model, batches)
    assert errors[Algorithm.SMOOTHQUANT] < 0.8 * errors[Algorithm.RTN], errors


@needs_modelopt
@pytest.mark.parametrize("scheme", [Scheme.W4A16_G32, Scheme.W4A16_G64])
def test_awq_beats_rounding_with_loud_channels(
    loud_model: Any, batches: Any, modules: Any, scheme: Scheme
) -> None:
    errors = {}
    for algorithm in (Algorithm.RTN, Algorithm.AWQ):
        components = {Component.DECODER: Precision(scheme=scheme, algorithm=algorithm)}
        request = resolve(components, (), modules, TENSORRT)
        quantized = quantize(lambda: copy.deepcopy(loud_model), request, batches, TENSORRT)
        fake = fakequant.apply(copy.deepcopy(loud_model), quantized)
        errors[algorithm] = error(fake, loud_model, batches)
    assert errors[Algorithm.AWQ] < 0.9 * errors[Algorithm.RTN], errors


@needs_modelopt
def test_smoothed_ranges_and_weights_belong_together(loud_model: Any, batches: Any, modules: Any) -> None:
    """A folded norm changes its other readers too, and the ranges are those of the folded model."""
    overrides = (
        ModuleOverride(pattern="*text_model.layers.0.self_attn.k_proj", scheme=Scheme.FP16),
        ModuleOverride(pattern="*text_model.layers.0.self_attn.v_proj", scheme=Scheme.W8A8),
        ModuleOverride(pattern="*text_model.layers.1.mlp.down_proj", scheme=Scheme.W8A16),
    )
    request = resolve(everything(Scheme.W8A8, Algorithm.SMOOTHQUANT), overrides, modules, TENSORRT)
    quantized = quantize(lambda: copy.deepcopy(loud_model), request, batches, TENSORRT)
    assert f"{LAYERS}.0.self_attn.k_proj.weight" in quantized.float_parameters
    assert "model.vision_model.encoder.layers.0.layer_norm1.bias" in quantized.float_parameters
    floats_and_weights = copy.deepcopy(loud_model)
    for name, values in quantized.float_parameters.items():
        floats_and_weights.get_parameter(name).data = torch.from_numpy(values)
    for name, linear in quantized.table.items():
        floats_and_weights.get_submodule(name).weight.data = torch.from_numpy(linear.dequantize())
    assert error(floats_and_weights, loud_model, batches) < 0.1
    for name, linear in quantized.table.items():
        if linear.activation is None:
            continue
        largest: list[float] = []
        capture.watch(
            floats_and_weights,
            name,
            batches,
            lambda seen, top=largest: top.append(float(seen["input"].abs().max())),
        )
        assert linear.activation.scale * 127 == pytest.approx(max(largest), rel=0.1), name


@needs_modelopt
def test_weight_only_parts_next_to_static_ones(
    load_model: Callable[[], Any], batches: Any, modules: Any
) -> None:
    components = {
        Component.VISION_ENCODER: Precision(scheme=Scheme.W8A8, algorithm=Algorithm.SMOOTHQUANT),
        Component.DECODER: Precision(scheme=Scheme.W4A16_G32, algorithm=Algorithm.AWQ),
        Component.HEAD: Precision(scheme=Scheme.W8A16),
        Component.EMBEDDING: Precision(scheme=Scheme.W8A16),
    }
    request = resolve(components, (), modules, TENSORRT)
    first, second = (quantize(load_model, request, batches, TENSORRT) for _ in range(2))
    assert list(first.table) == list(request)
    for name in request:
        np.testing.assert_array_equal(first.table[name].q, second.table[name].q)
    assert error(fakequant.apply(load_model(), first), load_model(), batches) < 0.4


def test_no_calibration_data(load_model: Callable[[], Any], modules: Any) -> None:
    request = resolve(everything(Scheme.W8A8, Algorithm.RTN), (), modules, TENSORRT)
    with pytest.raises(DataError, match="calibration set is empty"):
        quantize(load_model, request, [], TENSORRT)


def test_a_missing_extra_is_a_sentence(
    load_model: Callable[[], Any], batches: Any, modules: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "modelopt"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "modelopt", None)
    request = resolve(everything(Scheme.W8A8, Algorithm.RTN), (), modules, TENSORRT)
    with pytest.raises(MissingExtraError, match=r"pip install 'edgevlm\[tensorrt\]'"):
        quantize(load_model, request, batches, TENSORRT)
