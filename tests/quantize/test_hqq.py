"""Half-quadratic quantisation against its definition, brute force and Neural Compressor's optimiser."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from edgevlm_deploy.errors import PlanError
from edgevlm_deploy.quantize import fakequant, hqq, quantize, resolve, uniform
from edgevlm_deploy.recipe import Algorithm, Component, ModuleOverride, Precision, Quantizer, Scheme
from edgevlm_deploy.target import Backend

LAYERS = "model.text_model.layers"
INC = Quantizer.NEURAL_COMPRESSOR
HQQ4 = Precision(scheme=Scheme.W4A16_G32, algorithm=Algorithm.HQQ)


def objective(
    weight: np.ndarray, q: np.ndarray, scale: np.ndarray, zero: np.ndarray, block: int
) -> np.ndarray:
    """Σ|w − s(q − z)|^0.7 per block, [N, blocks], in units of the scale."""
    group = np.arange(weight.shape[1]) // block
    error = np.abs(weight / scale[:, group] - (q - zero[:, group].astype(np.float32))) ** hqq.P
    starts = np.arange(0, weight.shape[1], block)
    return np.add.reduceat(error, starts, axis=1)


def laplace(rows: int, columns: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).laplace(0, 0.05, (rows, columns)).astype(np.float32)


@settings(max_examples=60)
@given(
    weight=arrays.arrays(
        np.float32,
        st.tuples(st.integers(1, 4), st.integers(1, 70)),
        elements=st.floats(-8, 8, width=32).map(lambda value: np.float32(0 if abs(value) < 1e-3 else value)),
    ),
    bits=st.integers(2, 4),
    block=st.sampled_from((16, 32, 70)),
)
def test_no_block_ends_worse_than_asymmetric_rounding(weight: np.ndarray, bits: int, block: int) -> None:
    plain = uniform.quantize_asymmetric(weight, bits, block)
    q, scale, zero_point = hqq.quantize(weight, bits, block)
    np.testing.assert_array_equal(scale, plain[1])
    assert q.shape == weight.shape and q.dtype == np.uint8 and q.max() < 2**bits
    assert zero_point.dtype == np.float32 and np.all(zero_point * 16 == np.rint(zero_point * 16))
    assert zero_point.min() >= 0 and zero_point.max() <= 2**bits - 1
    found, start = (objective(weight, *one, block) for one in ((q, scale, zero_point), plain))
    assert np.all(found <= start * (1 + 1e-4) + 1e-4)


@pytest.mark.parametrize(("bits", "block"), [(3, 64), (4, 32), (3, 50)])
def test_near_the_best_of_all_zero_points(bits: int, block: int) -> None:
    weight = laplace(24, 128)
    q, scale, zero_point = hqq.quantize(weight, bits, block)
    found = objective(weight, q, scale, zero_point, block)
    group = np.arange(weight.shape[1]) // block
    best = np.full_like(found, np.inf)
    for sixteenth in range(16 * (2**bits - 1) + 1):
        zero = np.full_like(scale, sixteenth / 16)
        every = np.clip(np.rint(weight / scale[:, group] + zero[:, group]), 0, 2**bits - 1)
        best = np.minimum(best, objective(weight, every, scale, zero, block))
    assert np.all(found >= best * (1 - 1e-5))
    assert found.sum() < 1.06 * best.sum()
    rounded = objective(weight, *uniform.quantize_asymmetric(weight, bits, block), block)
    assert best.sum() < 0.97 * rounded.sum() and found.sum() < rounded.sum()


def test_rows_are_independent(monkeypatch: pytest.MonkeyPatch) -> None:
    weight = laplace(7, 100)
    whole = hqq.quantize(weight, 4, 32)
    monkeypatch.setattr(hqq, "ELEMENTS", 200)
    for one, other in zip(whole, hqq.quantize(weight, 4, 32), strict=True):
        np.testing.assert_array_equal(one, other)


def test_as_good_as_the_library() -> None:
    """Neural Compressor keeps zero-points as floats and stops for the whole matrix at once."""
    from neural_compressor.torch.algorithms.weight_only.hqq.optimizer import optimize_weights_proximal

    weight, bits, block = laplace(64, 256), 3, 64
    q, scale, zero_point = hqq.quantize(weight, bits, block)
    groups = torch.from_numpy(weight.reshape(-1, block))
    inverse = (2**bits - 1) / (groups.amax(1, keepdim=True) - groups.amin(1, keepdim=True))
    zero = -groups.amin(1, keepdim=True) * inverse
    inverse, zero = optimize_weights_proximal(groups, inverse, zero, [0, 2**bits - 1], axis=1)
    theirs = ((groups * inverse + zero).round().clamp(0, 2**bits - 1) - zero) / inverse
    their_error = float(((groups - theirs).abs() ** hqq.P).sum())
    ours = (q - np.repeat(zero_point, block, axis=1)) * np.repeat(scale, block, axis=1)
    assert float((np.abs(weight - ours) ** hqq.P).sum()) < 1.01 * their_error


def test_parts_of_a_model(load_model: Callable[[], Any], modules: Any, batches: Any) -> None:
    """Without data, next to other algorithms, and closer to the source than symmetric rounding."""
    components = dict.fromkeys((Component.VISION_ENCODER, Component.DECODER, Component.HEAD), HQQ4)
    override = ModuleOverride(pattern=f"{LAYERS}.0.mlp.*", scheme=Scheme.W8A16)
    request = resolve(components, (override,), modules, INC)
    quantized = quantize(load_model, request, [])
    assert quantized.table["lm_head"].zero_point is not None
    assert quantized.table[f"{LAYERS}.0.mlp.up_proj"].zero_point is None
    plain = resolve(dict.fromkeys(components, Precision(scheme=Scheme.W4A16_G32)), (override,), modules, INC)
    source = load_model()
    errors = []
    for one in (quantized, quantize(load_model, plain, [])):
        fake = fakequant.apply(load_model(), one)
        with torch.no_grad():
            errors.append(sum(float((fake(**b).logits - source(**b).logits).norm()) for b in batches[:4]))
    assert errors[0] < 0.9 * errors[1], errors


def test_it_goes_with_a_searched_decoder(load_model: Callable[[], Any], modules: Any, batches: Any) -> None:
    components = {Component.DECODER: Precision(scheme=Scheme.W4A16_G32, algorithm=Algorithm.GPTQ)}
    override = ModuleOverride(pattern="*.o_proj", scheme=Scheme.W3A16_CHANNEL, algorithm=Algorithm.HQQ)
    table = quantize(load_model, resolve(components, (override,), modules, INC), batches[:2]).table
    kinds = {name.rpartition(".")[2]: linear.zero_point is None for name, linear in table.items()}
    assert kinds.pop("o_proj") is False and all(kinds.values())


@pytest.mark.parametrize("backend", [Backend.TENSORRT, Backend.LITERT])
def test_targets_without_zero_points_refuse(modules: Any, backend: Backend) -> None:
    wanted = Precision(scheme=Scheme.W4A16_G64, algorithm=Algorithm.HQQ)
    with pytest.raises(PlanError, match=f"hqq gives zero-points, {backend.value} takes symmetric weights"):
        resolve({Component.DECODER: wanted}, (), modules, INC, backend)


@pytest.mark.parametrize(
    ("component", "scheme", "quantizer", "reason"),
    [
        (Component.VISION_ENCODER, Scheme.W8A8, INC, "int8 products take symmetric weights"),
        (Component.DECODER, Scheme.W8A16, INC, "8-bit weights are rounded to nearest"),
        (Component.EMBEDDING, Scheme.W8A16, INC, "an embedding can be"),
        (
            Component.DECODER,
            Scheme.W4A16_G32,
            Quantizer.TENSORRT,
            "offered by `quantizer: neural-compressor`",
        ),
    ],
)
def test_what_hqq_is_not_for(
    modules: Any, component: Component, scheme: Scheme, quantizer: Quantizer, reason: str
) -> None:
    wanted = Precision(scheme=scheme, algorithm=Algorithm.HQQ)
    with pytest.raises(PlanError, match=reason):
        resolve({component: wanted}, (), modules, quantizer)
