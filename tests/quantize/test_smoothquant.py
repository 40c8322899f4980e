"""SmoothQuant with α per layer, against its definition."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

from edgevlm_deploy.errors import QuantizationError
from edgevlm_deploy.quantize import capture, fakequant, folding, quantize, resolve, smoothquant
from edgevlm_deploy.quantize.rounding import round_to_nearest
from edgevlm_deploy.recipe import Algorithm, Component, ModuleOverride, Precision, Quantizer, Scheme

VISION = "model.vision_model.encoder.layers"
INC = Quantizer.NEURAL_COMPRESSOR


def vision(algorithm: Algorithm) -> dict[Component, Precision]:
    return {Component.VISION_ENCODER: Precision(scheme=Scheme.W8A8, algorithm=algorithm)}


@pytest.fixture(scope="module")
def loud_model(float_model: Any) -> Any:
    """A few channels of every norm are loud, as in trained transformers."""
    model = copy.deepcopy(float_model)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "vision" in name and "layer_norm" in name:
                parameter[:3] *= 25
    return model


def features(model: Any, batches: Any) -> torch.Tensor:
    with torch.no_grad():
        return torch.cat([model.model.vision_model(b["pixel_values"][0])[0] for b in batches])


def test_golden_scales() -> None:
    x, w = torch.tensor([4.0, 1.0, 9.0]), torch.tensor([1.0, 4.0, 1.0])
    assert smoothquant.smoothing(x, w, 0.5).tolist() == pytest.approx([2.0, 0.5, 3.0])
    assert smoothquant.smoothing(x, w, 1.0).tolist() == [4.0, 1.0, 9.0]
    assert smoothquant.smoothing(x, w, 0.0).tolist() == [1.0, 0.25, 1.0]
    assert float(smoothquant.smoothing(torch.zeros(1), torch.zeros(1), 0.5)) > 0


def test_beats_rounding_and_a_fixed_alpha(
    loud_model: Any, batches: Any, modules: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = features(loud_model, batches)
    errors = {}
    for name, algorithm in (("rtn", Algorithm.RTN), ("searched", Algorithm.SMOOTHQUANT), ("half", None)):
        if algorithm is None:
            monkeypatch.setattr(smoothquant, "ALPHAS", (0.5,))
        request = resolve(vision(algorithm or Algorithm.SMOOTHQUANT), (), modules, INC)
        quantized = quantize(lambda: copy.deepcopy(loud_model), request, batches)
        fake = fakequant.apply(copy.deepcopy(loud_model), quantized)
        errors[name] = float((features(fake, batches) - expected).norm() / expected.norm())
    assert errors["searched"] < 0.6 * errors["rtn"], errors
    assert errors["searched"] < 1.02 * errors["half"], errors


def test_the_scale_is_the_best_of_the_grid(loud_model: Any, batches: Any, modules: Any) -> None:
    fold = next(
        one
        for one in folding.folds(name for name, _ in loud_model.named_modules())
        if one.targets == (f"{VISION}.1.mlp.fc1",)
    )
    request = resolve(vision(Algorithm.SMOOTHQUANT), (), modules, INC)
    seen: list[torch.Tensor] = []
    capture.watch(
        loud_model, fold.targets[0], batches, lambda found: seen.append(found["input"].flatten(0, 1))
    )
    x, weight = torch.cat(seen), loud_model.get_submodule(fold.targets[0]).weight.detach()
    losses: list[tuple[float, Any]] = []
    for alpha in (*smoothquant.ALPHAS, None):
        scale = torch.ones(x.shape[1])
        if alpha is not None:
            scale = x.abs().amax(0) ** alpha / weight.abs().amax(0) ** (1 - alpha)
        step = float((x / scale).abs().max()) / 127.5
        rounded = (x / scale / step).round().clamp(-128, 127) * step
        linear = round_to_nearest((weight * scale).numpy(), request[fold.targets[0]])
        error = (rounded @ torch.from_numpy(linear.dequantize()).T - x @ weight.T).pow(2).sum()
        losses.append((float(error), scale))
    best = min(losses, key=lambda pair: pair[0])[1]
    model = copy.deepcopy(loud_model)
    changed = smoothquant.fold(model, request, batches)
    torch.testing.assert_close(model.get_submodule(fold.targets[0]).weight.detach(), weight * best)
    assert f"{fold.source}.weight" in changed and f"{fold.source}.bias" in changed
    # The float model computes what it did.
    torch.testing.assert_close(features(model, batches), features(loud_model, batches), rtol=1e-3, atol=1e-4)


def test_nothing_is_folded_where_nothing_helps(
    float_model: Any, batches: Any, modules: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(smoothquant, "ALPHAS", ())
    request = resolve(vision(Algorithm.SMOOTHQUANT), (), modules, INC)
    quantized = quantize(lambda: copy.deepcopy(float_model), request, batches[:2])
    plain = quantize(
        lambda: copy.deepcopy(float_model), resolve(vision(Algorithm.RTN), (), modules, INC), batches[:2]
    )
    assert quantized.float_parameters == {}
    assert all((quantized.table[name].q == plain.table[name].q).all() for name in request)


def test_ranges_are_those_of_the_folded_model(loud_model: Any, batches: Any, modules: Any) -> None:
    """Next to a searched decoder, whose own folds change nothing here."""
    components = {
        **vision(Algorithm.SMOOTHQUANT),
        Component.DECODER: Precision(scheme=Scheme.W4A16_G32, algorithm=Algorithm.AWQ),
    }
    override = ModuleOverride(pattern=f"{VISION}.0.self_attn.k_proj", scheme=Scheme.FP16)
    request = resolve(components, (override,), modules, INC)
    quantized = quantize(lambda: copy.deepcopy(loud_model), request, batches)
    assert f"{VISION}.0.self_attn.k_proj.weight" in quantized.float_parameters
    assert any("input_layernorm" in name for name in quantized.float_parameters)
    folded = copy.deepcopy(loud_model)
    for name, values in quantized.float_parameters.items():
        folded.get_parameter(name).data = torch.from_numpy(values)
    name = f"{VISION}.0.self_attn.q_proj"
    largest: list[float] = []
    capture.watch(folded, name, batches, lambda seen: largest.append(float(seen["input"].abs().max())))
    activation = quantized.table[name].activation
    assert activation is not None
    assert 1 <= activation.scale / (max(largest) / 127.5) * (1 + 1e-5) <= 1.01


def test_layers_without_a_norm_in_front(float_model: Any, batches: Any) -> None:
    names = {"vision_encoder": [f"{VISION}.0.mlp.fc2"]}
    request = resolve(vision(Algorithm.SMOOTHQUANT), (), names, INC)
    with pytest.raises(QuantizationError, match="no norm is known"):
        smoothquant.fold(copy.deepcopy(float_model), request, batches)
