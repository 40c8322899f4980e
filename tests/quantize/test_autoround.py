"""Learnt rounding: legal integers, a smaller error than rounding to nearest, nothing worse."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch

from edgevlm_deploy.errors import DataError, QuantizationError
from edgevlm_deploy.quantize import autoround, fakequant, quantize, resolve, uniform
from edgevlm_deploy.quantize.request import Request
from edgevlm_deploy.recipe import Algorithm, Component, ModuleOverride, Precision, Quantizer, Scheme

LAYERS = "model.text_model.layers"


@pytest.fixture(autouse=True)
def few_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(autoround, "STEPS", 40)


def request_of(modules: Any, scheme: Scheme, algorithm: Algorithm = Algorithm.AUTOROUND) -> Request:
    overrides = (
        ModuleOverride(pattern=f"{LAYERS}.0.self_attn.v_proj", scheme=Scheme.W8A16),
        ModuleOverride(pattern=f"{LAYERS}.1.mlp.up_proj", scheme=Scheme.FP16),
    )
    components = {Component.DECODER: Precision(scheme=scheme, algorithm=algorithm)}
    return resolve(components, overrides, modules, Quantizer.NEURAL_COMPRESSOR)


def error(model: Any, quantized: Any, batches: Any) -> float:
    fake = fakequant.apply(copy.deepcopy(model), quantized)
    with torch.no_grad():
        return sum(float((fake(**b).logits - model(**b).logits).norm()) for b in batches)


@pytest.mark.parametrize("scheme", [Scheme.W4A16_G32, Scheme.W3A16_CHANNEL])
def test_beats_rounding_to_nearest(correlated_model: Any, batches: Any, modules: Any, scheme: Scheme) -> None:
    source = copy.deepcopy(correlated_model)
    errors = {}
    for algorithm in (Algorithm.RTN, Algorithm.AUTOROUND):
        request = request_of(modules, scheme, algorithm)
        quantized = quantize(lambda: copy.deepcopy(correlated_model), request, batches)
        errors[algorithm.value] = error(correlated_model, quantized, batches)
        assert quantized.float_parameters == {} and set(quantized.table) == set(request)
    assert errors["autoround"] < 0.8 * errors["rtn"], errors
    for name, value in source.named_parameters():
        assert torch.equal(value, correlated_model.get_parameter(name)), name


def test_integers_are_neighbours_of_their_ratio(float_model: Any, batches: Any, modules: Any) -> None:
    request = {
        name: wanted
        for name, wanted in request_of(modules, Scheme.W4A16_G32).items()
        if wanted.algorithm is Algorithm.AUTOROUND
    }
    made = autoround.quantize(float_model, request, batches)
    again = autoround.quantize(float_model, request, batches)
    moved = 0
    for name, linear in made.items():
        weight = float_model.get_submodule(name).weight.detach().numpy()
        ratio = weight / np.repeat(linear.scale, 32, axis=1)
        legal = np.clip(ratio, -7, 7)
        assert uniform.is_exact(linear.scale) and np.abs(linear.q).max() <= 7
        assert np.all(np.abs(linear.q - legal) <= 1 + 1e-4), name
        moved += int((linear.q != np.rint(legal)).sum())
        np.testing.assert_array_equal(linear.q, again[name].q)
    assert moved > 100, "every weight was rounded to nearest"


def test_what_does_not_help_is_not_kept(
    float_model: Any, batches: Any, modules: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Steps against a gradient of the wrong sign make every layer worse."""
    step = autoround._Rounding.step
    monkeypatch.setattr(autoround._Rounding, "step", lambda self, size: step(self, -20 * size))
    request = request_of(modules, Scheme.W4A16_G32)
    learnt = quantize(lambda: copy.deepcopy(float_model), request, batches)
    plain = quantize(
        lambda: copy.deepcopy(float_model), request_of(modules, Scheme.W4A16_G32, Algorithm.RTN), []
    )
    for name in request:
        np.testing.assert_array_equal(learnt.table[name].q, plain.table[name].q)
        np.testing.assert_array_equal(learnt.table[name].scale, plain.table[name].scale)


def test_what_it_cannot_do(float_model: Any, batches: Any, modules: Any) -> None:
    request = request_of(modules, Scheme.W4A16_G32)
    wanted = request[f"{LAYERS}.0.self_attn.q_proj"]
    with pytest.raises(QuantizationError, match="modules outside of layers"):
        autoround.quantize(float_model, {"lm_head": wanted}, batches)
    with pytest.raises(DataError, match="calibration set is empty"):
        autoround.quantize(float_model, {f"{LAYERS}.0.self_attn.q_proj": wanted}, [])
