"""AWQ's search against its definition, brute force and Neural Compressor's own."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import inc_awq
import numpy as np
import pytest
import torch
from quantizing import decoder, logits, override, relative_error

from edgevlm_deploy.errors import DataError, QuantizationError
from edgevlm_deploy.quantize import awq, capture, fakequant, folding, layerwise, quantize, resolve, uniform
from edgevlm_deploy.recipe import Algorithm, Quantizer, Scheme

LAYERS = "model.text_model.layers"
INC = Quantizer.NEURAL_COMPRESSOR


def inputs_of(model: Any, name: str, batches: list[dict[str, Any]]) -> torch.Tensor:
    seen: list[torch.Tensor] = []
    capture.watch(model, name, batches, lambda found: seen.append(found["input"][0]))
    return torch.cat(seen)


@pytest.mark.parametrize("scheme", [Scheme.W4A16_G32, Scheme.W4A16_CHANNEL, Scheme.W3A16_CHANNEL])
def test_beats_rounding_and_the_library_with_loud_channels(
    correlated_model: Any, batches: Any, modules: Any, scheme: Scheme
) -> None:
    expected = logits(correlated_model, batches)
    errors = {}
    for algorithm in (Algorithm.RTN, Algorithm.AWQ):
        request = resolve(decoder(scheme, algorithm), (), modules, INC)
        quantized = quantize(lambda: copy.deepcopy(correlated_model), request, batches)
        fake = fakequant.apply(copy.deepcopy(correlated_model), quantized)
        errors[algorithm.value] = relative_error(logits(fake, batches), expected)
    assert errors["awq"] < 0.9 * errors["rtn"], errors
    if scheme is Scheme.W4A16_G32:  # it searches at 4 bits only
        theirs = inc_awq.fake_quantized(correlated_model, request, batches)
        errors["library"] = relative_error(logits(theirs, batches), expected)
        assert errors["awq"] < 1.05 * errors["library"] and errors["library"] < errors["rtn"], errors


def test_the_scale_is_the_best_of_the_grid(correlated_model: Any, batches: Any, modules: Any) -> None:
    """By hand for up_proj → down_proj, whose block is down_proj alone."""
    down = f"{LAYERS}.0.mlp.down_proj"
    request = resolve(decoder(Scheme.W4A16_G32, Algorithm.AWQ), (), modules, INC)
    model = copy.deepcopy(correlated_model)
    _, changed = awq.quantize(model, request, batches)
    x, weight = (
        inputs_of(correlated_model, down, batches),
        correlated_model.get_submodule(down).weight.detach(),
    )
    losses, scales = [], []
    for alpha in np.arange(20) / 20:
        scale = x.abs().mean(0).pow(alpha).clamp(min=1e-4)
        scale /= (scale.max() * scale.min()).sqrt()
        q, step = uniform.quantize_symmetric((weight * scale).numpy(), 4, 32)
        rounded = torch.from_numpy(q * np.repeat(step, 32, axis=1)) / scale
        losses.append(float((x @ (rounded - weight).T).pow(2).sum()))
        scales.append(scale)
    best = scales[int(np.argmin(losses))]
    assert min(losses) < losses[0], "a scale of one is as good; the test says nothing"
    torch.testing.assert_close(model.get_submodule(down).weight.detach(), weight * best, rtol=1e-4, atol=1e-6)
    assert f"{LAYERS}.0.mlp.up_proj.weight" in changed and f"{LAYERS}.0.input_layernorm.weight" in changed


def test_the_range_is_the_best_of_the_grid(float_model: Any, batches: Any, modules: Any) -> None:
    """o_proj has no fold, so only its ranges are searched: brute force on its outputs, per row and group."""
    name = f"{LAYERS}.0.self_attn.o_proj"
    request = resolve(decoder(Scheme.W4A16_G32, Algorithm.AWQ), (), modules, INC)
    found, _ = awq.quantize(copy.deepcopy(float_model), request, batches)
    x, weight = inputs_of(float_model, name, batches), float_model.get_submodule(name).weight.detach()
    narrowed = 0
    for group in (slice(0, 32), slice(32, 64)):
        errors, steps = [], []
        for share in 1 - np.arange(10) / 20:
            step = uniform.exact_scale(weight[:, group].abs().amax(1).double().numpy() * share / 7)[:, None]
            q = np.clip(np.rint(weight[:, group].numpy() / step), -7, 7)
            difference = torch.from_numpy(q * step) - weight[:, group]
            errors.append((x[:, group] @ difference.T).pow(2).sum(0))
            steps.append(torch.from_numpy(step[:, 0]))
        errors = torch.stack(errors)
        got = torch.from_numpy(found[name].scale[:, group.start // 32])
        chosen = (torch.stack(steps) - got).abs().argmin(0)
        best = errors.min(0).values
        torch.testing.assert_close(errors.gather(0, chosen[None])[0], best, rtol=1e-3, atol=1e-6)
        narrowed += int((chosen > 0).sum())
    assert narrowed > 10
    key = f"{LAYERS}.0.self_attn.k_proj"
    plain = np.abs(found[key].q).reshape(32, -1, 32).max(axis=2)
    assert np.all(plain == 7), "the range of keys was narrowed"


def test_folds_and_integers_belong_together(
    load_model: Callable[[], Any], batches: Any, modules: Any
) -> None:
    overrides = (
        override(f"{LAYERS}.0.mlp.up_proj", Scheme.FP16),
        override(f"{LAYERS}.1.self_attn.k_proj", Scheme.W8A16),
    )
    request = resolve(decoder(Scheme.W4A16_G32, Algorithm.AWQ), overrides, modules, INC)
    quantized = quantize(load_model, request, batches)
    norms = {
        f"{LAYERS}.{i}.{n}.weight" for i in (0, 1) for n in ("input_layernorm", "post_attention_layernorm")
    }
    # The float up_proj feeds down_proj and reads a folded norm, so it changed as well.
    assert set(quantized.float_parameters) == norms | {f"{LAYERS}.0.mlp.up_proj.weight"}
    assert quantized.table[f"{LAYERS}.1.self_attn.k_proj"].bits == 8
    # Every module is nearly exact, but only together with what was folded before it.
    source, folded = load_model(), load_model()
    for name, values in quantized.float_parameters.items():
        folded.get_parameter(name).data = torch.from_numpy(values)
    module, norm = f"{LAYERS}.1.self_attn.k_proj", f"{LAYERS}.1.input_layernorm"
    scale = source.get_submodule(norm).weight / folded.get_submodule(norm).weight
    got = torch.from_numpy(quantized.table[module].dequantize())
    assert relative_error(got, source.get_submodule(module).weight * scale) < 0.02
    assert relative_error(got, source.get_submodule(module).weight) > 0.05
    fake = fakequant.apply(load_model(), quantized)
    assert relative_error(logits(fake, batches), logits(source, batches)) < 0.3


def test_it_goes_with_gptq_in_one_decoder(correlated_model: Any, batches: Any, modules: Any) -> None:
    mixed = override(f"{LAYERS}.*.mlp.down_proj", Scheme.W4A16_G32, Algorithm.GPTQ)
    request = resolve(decoder(Scheme.W4A16_G32, Algorithm.AWQ), (mixed,), modules, INC)
    quantized = quantize(lambda: copy.deepcopy(correlated_model), request, batches)
    fake = fakequant.apply(copy.deepcopy(correlated_model), quantized)
    plain = resolve(decoder(Scheme.W4A16_G32, Algorithm.RTN), (), modules, INC)
    rounded = fakequant.apply(
        copy.deepcopy(correlated_model), quantize(lambda: copy.deepcopy(correlated_model), plain, [])
    )
    expected = logits(correlated_model, batches)
    assert relative_error(logits(fake, batches), expected) < 0.9 * relative_error(
        logits(rounded, batches), expected
    )


def test_the_search_takes_a_limited_number_of_tokens(batches: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    assert len(layerwise.chosen(batches)) == len(batches)
    monkeypatch.setattr(layerwise, "TOKENS", 20)
    assert len(layerwise.chosen(batches)) == layerwise.SAMPLES
    monkeypatch.setattr(layerwise, "SAMPLES", 1)
    lengths = [one["input_ids"].shape[1] for one in layerwise.chosen(batches)]
    assert lengths == sorted(lengths) and 20 <= sum(lengths) < 40
    with pytest.raises(DataError, match="calibration set is empty"):
        layerwise.chosen([])


def test_batches_of_equal_length_change_nothing(
    correlated_model: Any, batches: Any, modules: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = resolve(decoder(Scheme.W4A16_G32, Algorithm.AWQ), (), modules, INC)
    together, _ = awq.quantize(copy.deepcopy(correlated_model), request, batches)
    monkeypatch.setattr(layerwise, "together", lambda arguments: arguments)
    apart, _ = awq.quantize(copy.deepcopy(correlated_model), request, batches)
    for name in request:
        assert np.mean(together[name].q != apart[name].q) < 0.001, name


def test_layers_without_a_fold_are_refused(float_model: Any, batches: Any) -> None:
    names = {"decoder": [f"{LAYERS}.0.self_attn.o_proj"]}
    request = resolve(decoder(Scheme.W4A16_G32, Algorithm.AWQ), (), names, INC)
    with pytest.raises(QuantizationError, match="no norm is known whose output goes only there"):
        awq.quantize(copy.deepcopy(float_model), request, batches)


def test_judged_blocks(float_model: Any) -> None:
    names = [name for name, _ in float_model.named_modules()]
    blocks = {awq.judged(fold).rpartition("layers.0.")[2] for fold in folding.folds(names)}
    assert {"self_attn", "mlp", "mlp.down_proj", "mlp.fc1"} <= blocks
