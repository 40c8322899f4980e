"""Intel Neural Compressor on a tiny vision-language model."""

from __future__ import annotations

import copy
import logging
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from quantizing import decoder, logits, override, relative_error

from edgevlm_deploy.errors import DataError, MissingExtraError, QuantizationError
from edgevlm_deploy.quantize import QuantizedModel, capture, fakequant, inc, quantize, resolve, uniform
from edgevlm_deploy.recipe import Algorithm, Component, Precision, Quantizer, Scheme

LAYERS = "model.text_model.layers"
VISION = "model.vision_model.encoder"
INC = Quantizer.NEURAL_COMPRESSOR


@pytest.mark.parametrize("scheme", [Scheme.W4A16_G32, Scheme.W3A16_CHANNEL])
def test_gptq_beats_rounding_after_scales_were_rounded(
    correlated_model: Any, batches: Any, modules: Any, scheme: Scheme
) -> None:
    errors = {}
    for algorithm in (Algorithm.RTN, Algorithm.GPTQ):
        request = resolve(decoder(scheme, algorithm), (), modules, INC)
        table = quantize(lambda: copy.deepcopy(correlated_model), request, batches).table
        seen: list[dict[str, Any]] = []
        errors[algorithm] = []
        # The input of layer 0 does not depend on how anything was rounded.
        for name in ("q_proj", "k_proj", "v_proj"):
            module = f"{LAYERS}.0.self_attn.{name}"
            seen.clear()
            capture.watch(correlated_model, module, batches, seen.append)
            x = torch.cat([inputs["input"][0] for inputs in seen])
            weight = correlated_model.get_submodule(module).weight.detach()
            difference = torch.from_numpy(table[module].dequantize()) - weight
            errors[algorithm].append(relative_error(x @ (weight + difference).T, x @ weight.T))
    assert all(g < 0.7 * r for g, r in zip(errors[Algorithm.GPTQ], errors[Algorithm.RTN], strict=True)), (
        errors
    )


@pytest.mark.parametrize("algorithm", [Algorithm.GPTQ, Algorithm.AWQ])
def test_modules_that_were_not_asked_for_stay_float(
    load_model: Callable[[], Any], batches: Any, modules: Any, algorithm: Algorithm
) -> None:
    overrides = (
        override(f"{LAYERS}.0.*", Scheme.FP16),
        override(f"{LAYERS}.1.mlp.down_proj", Scheme.W4A16_G64, algorithm),
    )
    request = resolve(decoder(Scheme.W4A16_G32, algorithm), overrides, modules, INC)
    quantized = quantize(load_model, request, batches)
    assert set(quantized.table) == {name for name in modules["decoder"] if name.startswith(f"{LAYERS}.1.")}
    assert quantized.table[f"{LAYERS}.1.mlp.down_proj"].block == 64
    assert quantized.table[f"{LAYERS}.1.mlp.up_proj"].block == 32
    source, fake = load_model(), fakequant.apply(load_model(), quantized)
    assert relative_error(logits(fake, batches), logits(source, batches)) < 0.3


def test_gptq_handles_groups_without_a_negative_weight(float_model: Any, batches: Any, modules: Any) -> None:
    model, name = copy.deepcopy(float_model), f"{LAYERS}.0.self_attn.q_proj"
    with torch.no_grad():
        model.get_submodule(name).weight[:8].abs_()
        model.get_submodule(name).weight[8] = 0
    request = resolve(decoder(Scheme.W4A16_G32, Algorithm.GPTQ), (), modules, INC)
    linear = quantize(lambda: copy.deepcopy(model), request, batches).table[name]
    weight = model.get_submodule(name).weight.detach().numpy()
    top = np.maximum.reduceat(np.abs(weight[:8]), [0, 32], axis=1)
    assert np.all(linear.scale[:8] * 7.6 > top), "half of the range is missing"
    assert not linear.q[8].any() and np.all(linear.scale[8] > 0)


@pytest.mark.parametrize("algorithm", [Algorithm.GPTQ, Algorithm.AWQ])
def test_groups_too_small_for_the_scales_of_the_library(
    float_model: Any, batches: Any, modules: Any, algorithm: Algorithm
) -> None:
    model, name = copy.deepcopy(float_model), f"{LAYERS}.1.self_attn.o_proj"
    with torch.no_grad():
        model.get_submodule(name).weight[:4] *= 1e-6
        model.get_submodule(name).weight[4] *= 1e-12
    request = resolve(decoder(Scheme.W4A16_G32, algorithm), (), modules, INC)
    linear = quantize(lambda: copy.deepcopy(model), request, batches).table[name]
    weight = model.get_submodule(name).weight.detach().numpy()
    error = np.abs(linear.dequantize() - weight)[:5]
    assert np.all(error <= np.repeat(linear.scale[:5], 32, axis=1) / 2)
    assert np.all(linear.scale[:5] < 1e-6)


def test_gptq_ends_with_a_short_group(load_model: Callable[[], Any], batches: Any, modules: Any) -> None:
    def load() -> Any:
        from transformers import SmolVLMForConditionalGeneration

        config = copy.deepcopy(load_model().config)
        config.text_config.intermediate_size = 144
        torch.manual_seed(0)
        return SmolVLMForConditionalGeneration(config).eval()

    request = resolve(decoder(Scheme.W4A16_G64, Algorithm.GPTQ), (), modules, INC)
    linear = quantize(load, request, batches).table[f"{LAYERS}.1.mlp.down_proj"]
    assert linear.q.shape == (64, 144) and linear.scale.shape == (64, 3)


def test_rounding_equals_the_library_up_to_the_rounded_scale(float_model: Any) -> None:
    name = f"{LAYERS}.0.mlp.up_proj"
    weight = float_model.get_submodule(name).weight.detach()
    with inc._library() as library:
        config = library.RTNConfig(bits=4, group_size=32, use_sym=True, use_layer_wise=False)
        stack = copy.deepcopy(float_model.get_submodule(f"{LAYERS}.0.mlp"))
        converted = library.convert(library.prepare(stack, config))
        unpacked = converted.up_proj.unpack()
    q, scale = uniform.quantize_symmetric(weight.numpy(), 4, 32)
    np.testing.assert_allclose(scale, unpacked["scales"].float().numpy(), rtol=2**-8 + 2**-10)
    difference = np.abs(q.astype(int) - (unpacked["int_weight"].numpy().astype(int) - 8))
    assert difference.max() <= 1 and difference.mean() < 0.02


def test_vision_w8a8_with_everything_else(load_model: Callable[[], Any], batches: Any, modules: Any) -> None:
    static, rounded = Precision(scheme=Scheme.W8A8), Precision(scheme=Scheme.W8A16)
    components = {
        Component.VISION_ENCODER: static,
        Component.PROJECTOR: static,
        Component.EMBEDDING: rounded,
        Component.HEAD: rounded,
        **decoder(Scheme.W4A16_G32, Algorithm.GPTQ),
    }
    request = resolve(components, (override("*.1.mlp.down_proj", Scheme.W8A16),), modules, INC)
    first, second = (quantize(load_model, request, batches) for _ in range(2))
    assert list(first.table) == list(request)
    for name in request:
        np.testing.assert_array_equal(first.table[name].q, second.table[name].q)
        assert first.table[name].activation == second.table[name].activation
    embedding = first.table["model.text_model.embed_tokens"]
    assert embedding.scale.shape == (320, 1) and first.table["lm_head"].block == 32
    assert not any("patch_embedding" in name for name in first.table)
    fake, source = fakequant.apply(load_model(), first), load_model()
    assert relative_error(logits(fake, batches), logits(source, batches)) < 0.4


def test_rounding_needs_no_calibration(load_model: Callable[[], Any], modules: Any) -> None:
    request = resolve(decoder(Scheme.W4A16_G32, Algorithm.RTN), (), modules, INC)
    assert isinstance(quantize(load_model, request, []), QuantizedModel)
    searched = resolve(decoder(Scheme.W4A16_G32, Algorithm.GPTQ), (), modules, INC)
    with pytest.raises(DataError, match="calibration set is empty"):
        quantize(load_model, searched, [])


def test_a_model_that_does_not_fit_the_request(load_model: Callable[[], Any], modules: Any) -> None:
    request = resolve(decoder(Scheme.W4A16_G32, Algorithm.RTN), (), modules, INC)
    with pytest.raises(QuantizationError, match="load the source model in float32"):
        quantize(lambda: load_model().half(), request, [])
    request["model.other"] = next(iter(request.values()))
    with pytest.raises(QuantizationError, match=r"has no model\.other\.weight"):
        quantize(load_model, request, [])


def test_integers_of_another_weight_are_noticed(float_model: Any) -> None:
    name = f"{LAYERS}.0.mlp.up_proj"
    wanted = resolve(decoder(Scheme.W4A16_G32, Algorithm.GPTQ), (), {"decoder": [name]}, INC)[name]
    weight = float_model.get_submodule(name).weight.detach().numpy()
    _, scale = uniform.quantize_symmetric(weight, 4, 32)
    inc._with_exact_scale(name, weight, scale, wanted, weight)
    with pytest.raises(QuantizationError, match="do not resemble its weights"):
        inc._with_exact_scale(name, weight[::-1].copy(), scale[::-1].copy(), wanted, weight)


def test_the_library_is_quiet(
    load_model: Callable[[], Any], batches: Any, modules: Any, capfd: pytest.CaptureFixture[str]
) -> None:
    request = resolve(decoder(Scheme.W4A16_G32, Algorithm.AWQ), (), modules, INC)
    quantize(load_model, request, batches[:2])
    output = capfd.readouterr()
    assert output.out == "" and output.err == ""
    assert logging.root.manager.disable == logging.NOTSET


def test_the_library_leaves_nothing_in_the_working_directory(tmp_path: Path) -> None:
    code = "from edgevlm_deploy.quantize import inc\nwith inc._library(): pass"
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], cwd=tmp_path, capture_output=True, text=True
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert list(tmp_path.iterdir()) == []


def test_a_missing_extra_is_a_sentence(
    load_model: Callable[[], Any], batches: Any, modules: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "neural_compressor"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "neural_compressor", None)
    request = resolve(decoder(Scheme.W4A16_G32, Algorithm.GPTQ), (), modules, INC)
    with pytest.raises(MissingExtraError, match=r"pip install 'edgevlm\[compile\]'"):
        quantize(load_model, request, batches)
