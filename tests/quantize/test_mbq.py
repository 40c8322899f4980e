"""Modality-balanced quantisation against its definition."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch

from edgevlm_deploy.errors import DataError, QuantizationError
from edgevlm_deploy.quantize import capture, fakequant, layerwise, mbq, quantize, resolve, uniform
from edgevlm_deploy.recipe import Algorithm, Component, Precision, Quantizer, Scheme

LAYERS = "model.text_model.layers"
BLOCKS = [f"{LAYERS}.{layer}.{block}" for layer in (0, 1) for block in ("self_attn", "mlp", "mlp.down_proj")]
IMAGE_TOKEN, ANSWER = 300, 3


@pytest.fixture(scope="module")
def answered(batch_of: Any) -> list[dict[str, Any]]:
    """Twelve samples whose last tokens are the answer; one has no picture."""
    samples = [batch_of(seed, text_tokens=6 + seed % 4) for seed in range(12)]
    for sample in samples:
        labels = torch.full_like(sample["input_ids"], -100)
        labels[:, -ANSWER:] = sample["input_ids"][:, -ANSWER:]
        sample["labels"] = labels
    del samples[5]["pixel_values"], samples[5]["pixel_attention_mask"]
    samples[5]["input_ids"] = samples[5]["input_ids"].clone()
    samples[5]["input_ids"][samples[5]["input_ids"] == IMAGE_TOKEN] = 7
    return samples


@pytest.fixture(scope="module")
def request_of(modules: Any) -> Any:
    precision = Precision(scheme=Scheme.W4A16_G32, algorithm=Algorithm.MBQ)
    return resolve({Component.DECODER: precision}, (), modules, Quantizer.NEURAL_COMPRESSOR)


def test_ratios_are_those_of_autograd(float_model: Any, answered: Any) -> None:
    """With gradients kept on every block's output and the loss of transformers itself."""
    model = copy.deepcopy(float_model).requires_grad_(True)
    kept: dict[str, torch.Tensor] = {}

    def keep(name: str) -> Any:
        def hook(_: Any, __: Any, output: Any) -> None:
            kept[name] = output[0] if isinstance(output, tuple) else output
            kept[name].retain_grad()

        return hook

    for name in BLOCKS:
        model.get_submodule(name).register_forward_hook(keep(name))
    means: dict[str, list[tuple[float, float]]] = {name: [] for name in BLOCKS}
    for number, sample in enumerate(answered):
        if number == 5:
            continue
        model(**sample).loss.backward()
        for name in BLOCKS:
            gradient = kept[name].grad[0].abs()
            picture = gradient[sample["input_ids"][0] == IMAGE_TOKEN].mean()
            means[name].append((float(picture), float(gradient[-ANSWER:].mean())))
    found = mbq.gradient_ratios(copy.deepcopy(float_model), BLOCKS, answered)
    for name in BLOCKS:
        picture, answer = np.mean(means[name], axis=0)
        assert found[name] == pytest.approx(picture / answer, rel=1e-4), name
    assert found[BLOCKS[1]] == found[BLOCKS[2]], "the MLP's output is that of its last layer"


def test_a_ratio_is_at_least_the_median_of_its_kind() -> None:
    ratios = {f"{LAYERS}.{n}.self_attn": r for n, r in enumerate((0.1, 0.2, 0.6))}
    ratios |= {f"{LAYERS}.{n}.mlp": r for n, r in enumerate((3.0, 1.0, 2.0))}
    expected = {f"{LAYERS}.{n}.self_attn": r for n, r in enumerate((0.2, 0.2, 0.6))}
    expected |= {f"{LAYERS}.{n}.mlp": r for n, r in enumerate((3.0, 2.0, 2.0))}
    assert mbq.balanced(ratios) == expected


def test_the_scale_is_the_best_of_the_grid(correlated_model: Any, answered: Any, request_of: Any) -> None:
    """By hand for up_proj → down_proj: (Σ_answer |Δ| + ρ Σ_picture |Δ|) over all samples."""
    down = f"{LAYERS}.0.mlp.down_proj"
    rho = mbq.balanced(mbq.gradient_ratios(copy.deepcopy(correlated_model), BLOCKS, answered))[down]
    seen: list[torch.Tensor] = []
    capture.watch(correlated_model, down, answered, lambda found: seen.append(found["input"][0]))
    x = torch.cat(seen)
    ids = torch.cat([sample["input_ids"][0] for sample in answered])
    is_answer = torch.cat([sample["labels"][0] for sample in answered]) != -100
    weights = is_answer.float() + rho * (ids == IMAGE_TOKEN).float()
    weight = correlated_model.get_submodule(down).weight.detach()
    losses, scales = [], []
    for alpha in np.arange(20) / 20:
        scale = x.abs().mean(0).pow(alpha).clamp(min=1e-4)
        scale /= (scale.max() * scale.min()).sqrt()
        q, step = uniform.quantize_symmetric((weight * scale).numpy(), 4, 32)
        rounded = torch.from_numpy(q * np.repeat(step, 32, axis=1)) / scale
        losses.append(float(((x @ (rounded - weight).T).abs().sum(1) * weights).sum()))
        scales.append(scale)
    model = copy.deepcopy(correlated_model)
    mbq.quantize(model, request_of, answered)
    got = model.get_submodule(down).weight.detach()
    best = scales[int(np.argmin(losses))]
    torch.testing.assert_close(got, weight * best, rtol=1e-4, atol=1e-6)


def test_weights_of_tokens_change_the_scales(
    correlated_model: Any, answered: Any, request_of: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    norms = []
    for rho in (0.0, 1000.0):
        monkeypatch.setattr(mbq, "balanced", lambda ratios, value=rho: dict.fromkeys(ratios, value))
        model = copy.deepcopy(correlated_model)
        mbq.quantize(model, request_of, answered)
        norms.append(torch.cat([value for name, value in model.named_parameters() if "layernorm" in name]))
    assert not torch.equal(*norms)


def test_a_whole_model(correlated_model: Any, answered: Any, request_of: Any) -> None:
    quantized = quantize(lambda: copy.deepcopy(correlated_model), request_of, answered)
    precision = {Component.DECODER: Precision(scheme=Scheme.W4A16_G32)}
    plain = resolve(precision, (), {"decoder": list(request_of)}, Quantizer.NEURAL_COMPRESSOR)
    rounded = quantize(lambda: copy.deepcopy(correlated_model), plain, [])
    errors = []
    for one in (quantized, rounded):
        fake = fakequant.apply(copy.deepcopy(correlated_model), one)
        with torch.no_grad():
            errors.append(
                sum(float((fake(**b).logits - correlated_model(**b).logits).norm()) for b in answered)
            )
    assert errors[0] < 0.9 * errors[1], errors


def test_data_without_answers(float_model: Any, batches: Any, request_of: Any) -> None:
    with pytest.raises(DataError, match=r"no calibration sample .* has a picture and an answer"):
        mbq.quantize(copy.deepcopy(float_model), request_of, batches)


def test_a_model_without_image_tokens(float_model: Any, answered: Any, request_of: Any) -> None:
    model = copy.deepcopy(float_model)
    model.config = model.config.text_config
    with pytest.raises(QuantizationError, match="no image_token_id"):
        mbq.quantize(model, request_of, answered)


def test_samples_are_those_of_awq(answered: Any) -> None:
    lengths = [sample["labels"].shape[1] for sample in layerwise.chosen(answered)]
    assert lengths == sorted(lengths)
