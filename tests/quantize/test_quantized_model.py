"""Saving, loading and verifying what quantisation yields."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from precision import wanted

from edgevlm_deploy.errors import QuantizationError
from edgevlm_deploy.quantize import QuantizedLinear, QuantizedModel, QuantizedTable
from edgevlm_deploy.quantize.rounding import round_to_nearest
from edgevlm_deploy.quantize.table import StaticActivation
from edgevlm_deploy.quantize.verification import verify
from edgevlm_deploy.recipe import Algorithm, Component, Scheme

W8A8 = wanted(Component.VISION_ENCODER, Scheme.W8A8, Algorithm.RTN)
W4 = wanted(Component.DECODER, Scheme.W4A16_G32, Algorithm.RTN)
REQUEST = {"v.fc1": W8A8, "t.q": W4}
SHAPES = {"v.fc1.weight": (6, 40), "t.q.weight": (5, 70), "t.norm.weight": (70,)}


@pytest.fixture
def quantized() -> QuantizedModel:
    random = np.random.default_rng(0)
    weights = {name: random.normal(size=SHAPES[f"{name}.weight"]).astype(np.float32) for name in REQUEST}
    modules = {
        "v.fc1": round_to_nearest(weights["v.fc1"], W8A8, activation_scale=0.0301),
        "t.q": round_to_nearest(weights["t.q"], W4),
    }
    return QuantizedModel(QuantizedTable(modules), {"t.norm.weight": np.ones(70, np.float32)})


def test_save_and_load(quantized: QuantizedModel, tmp_path: Path) -> None:
    quantized.save(tmp_path / "q")
    loaded = QuantizedModel.load(tmp_path / "q")
    assert list(loaded.table) == sorted(quantized.table)
    for name, linear in quantized.table.items():
        got = loaded.table[name]
        np.testing.assert_array_equal(got.q, linear.q)
        np.testing.assert_array_equal(got.scale, linear.scale)
        assert (got.bits, got.block, got.activation) == (linear.bits, linear.block, linear.activation)
    np.testing.assert_array_equal(loaded.float_parameters["t.norm.weight"], np.ones(70))
    verify(loaded, REQUEST, SHAPES)


def test_a_model_without_float_parameters_round_trips(quantized: QuantizedModel, tmp_path: Path) -> None:
    QuantizedModel(quantized.table).save(tmp_path)
    assert QuantizedModel.load(tmp_path).float_parameters == {}


@pytest.mark.parametrize("damage", ["missing", "truncated", "json"])
def test_a_damaged_folder_is_a_sentence(quantized: QuantizedModel, tmp_path: Path, damage: str) -> None:
    quantized.save(tmp_path)
    if damage == "missing":
        (tmp_path / "float_parameters.safetensors").unlink()
    elif damage == "truncated":
        data = (tmp_path / "table.safetensors").read_bytes()
        (tmp_path / "table.safetensors").write_bytes(data[: len(data) // 2])
    else:
        (tmp_path / "table.json").write_text("{")
    with pytest.raises(QuantizationError, match="Quantise again"):
        QuantizedModel.load(tmp_path)


def altered(quantized: QuantizedModel, name: str, **changes: object) -> QuantizedModel:
    modules = dict(quantized.table.modules)
    modules[name] = replace(modules[name], **changes)  # type: ignore[arg-type]
    return QuantizedModel(QuantizedTable(modules), quantized.float_parameters)


def test_verify_accepts_what_was_asked_for(quantized: QuantizedModel) -> None:
    verify(quantized, REQUEST, SHAPES)


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("t.q", {"bits": 8}, "expected 4 bits in blocks of 32"),
        ("t.q", {"block": 70}, "got 4 in 70"),
        ("t.q", {"q": np.zeros((5, 64), np.int8)}, "expected int8 integers"),
        ("t.q", {"q": np.full((5, 70), 8, np.int8)}, "do not fit 4 bits"),
        ("t.q", {"q": np.zeros((5, 70), np.int32)}, "expected int8 integers"),
        ("t.q", {"scale": np.ones((5, 2), np.float32)}, "scales are float32"),
        ("t.q", {"scale": np.zeros((5, 3), np.float32)}, "scales are not positive"),
        ("t.q", {"scale": np.full((5, 3), 0.1, np.float32)}, "hold exactly"),
        ("t.q", {"zero_point": np.zeros((5, 3), np.uint8)}, "zero-point"),
        ("t.q", {"activation": StaticActivation(0.5, 0)}, "static activation"),
        ("v.fc1", {"activation": None}, "static activation is None"),
        ("v.fc1", {"activation": StaticActivation(0.1, 0)}, "exact positive scale"),
        ("v.fc1", {"activation": StaticActivation(0.5, 3)}, "symmetric int8"),
    ],
)
def test_verify_refuses(
    quantized: QuantizedModel, name: str, changes: dict[str, object], message: str
) -> None:
    with pytest.raises(QuantizationError, match=message):
        verify(altered(quantized, name, **changes), REQUEST, SHAPES)


def test_verify_refuses_missing_and_extra_modules(quantized: QuantizedModel) -> None:
    modules: dict[str, QuantizedLinear] = {"v.fc1": quantized.table["v.fc1"], "x": quantized.table["t.q"]}
    with pytest.raises(QuantizationError, match=r"t.q: asked for, not quantised\n  x: quantised, not asked"):
        verify(QuantizedModel(QuantizedTable(modules)), REQUEST, SHAPES)


@pytest.mark.parametrize("values", [np.ones(3, np.float32), np.full(70, np.nan, np.float32), np.ones(70)])
def test_verify_refuses_float_parameters(quantized: QuantizedModel, values: np.ndarray) -> None:
    with pytest.raises(QuantizationError, match=r"t.norm.weight: changed to"):
        verify(QuantizedModel(quantized.table, {"t.norm.weight": values}), REQUEST, SHAPES)
