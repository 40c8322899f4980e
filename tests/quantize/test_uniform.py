"""Integer arithmetic of `edgevlm_deploy.quantize.uniform`."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from edgevlm_deploy.errors import QuantizationError
from edgevlm_deploy.quantize.uniform import (
    ZERO_BLOCK_SCALE,
    blocks,
    exact_scale,
    is_exact,
    quantize_asymmetric,
    quantize_symmetric,
    round_to_scale,
)

BITS = st.sampled_from([3, 4, 8])
BLOCK = st.sampled_from([1, 5, 32, 40])
SHAPE = hnp.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=40)


def weights(smallest: float = 0.0) -> st.SearchStrategy[np.ndarray]:
    values = st.floats(-1e4, 1e4, width=32).map(lambda v: v if abs(v) >= smallest else 0.0)
    return hnp.arrays(np.float32, SHAPE, elements=values)


def per_column(scale: np.ndarray, columns: int, block: int) -> np.ndarray:
    return scale.astype(np.float64)[:, np.arange(columns) // block]


@given(st.floats(0, 6e4))
def test_exact_scale_is_held_by_fp16_and_bf16_and_close(value: float) -> None:
    rounded = exact_scale(np.array([value]))
    assert is_exact(rounded) and rounded[0] > 0
    if value >= 2.0**-17:
        assert abs(rounded[0] - value) <= value * 2.0**-8


@given(st.floats(1e-30, 6e4))
def test_exact_scale_rounded_up_is_never_smaller(value: float) -> None:
    rounded = exact_scale(np.array([value]), round_up=True)
    assert is_exact(rounded) and rounded[0] >= value


def test_exact_scale_keeps_values_that_are_exact_already() -> None:
    values = np.array([2.0**-24, 2.0**-17, 0.0078125, 1.0, 1.9921875, 65280.0])
    np.testing.assert_array_equal(exact_scale(values), values)


def test_is_exact_sees_each_format_alone() -> None:
    assert not is_exact(np.array([1 + 2.0**-9], np.float32))  # fp16 holds it, bf16 does not
    assert not is_exact(np.array([2.0**-30], np.float32))  # bf16 holds it, fp16 does not
    assert not is_exact(np.array([2.0**20], np.float32))


@given(weights(), BITS, BLOCK)
def test_symmetric_error_is_at_most_half_a_step(weight: np.ndarray, bits: int, block: int) -> None:
    q, scale = quantize_symmetric(weight, bits, block)
    limit = 2 ** (bits - 1) - 1
    step = per_column(scale, weight.shape[1], block)
    assert q.dtype == np.int8 and scale.shape == (weight.shape[0], blocks(weight.shape[1], block))
    assert np.abs(q.astype(int)).max() <= limit
    assert is_exact(scale) and np.all(scale > 0)
    error = np.abs(q * step - weight.astype(np.float64))
    assert np.all(error <= step * (0.5 + 1e-5))


@given(weights(), BITS, BLOCK)
def test_asymmetric_error_is_at_most_half_a_step(weight: np.ndarray, bits: int, block: int) -> None:
    q, scale, zero_point = quantize_asymmetric(weight, bits, block)
    step = per_column(scale, weight.shape[1], block)
    middle = per_column(zero_point, weight.shape[1], block)
    assert q.dtype == np.uint8 and q.max() <= 2**bits - 1 and zero_point.max() <= 2**bits - 1
    assert is_exact(scale) and np.all(scale > 0)
    error = np.abs((q - middle) * step - weight.astype(np.float64))
    assert np.all(error <= step * (0.5 + 1e-4))
    assert np.all(q[weight == 0] == middle[weight == 0]), "zero must be exact"


@given(weights(smallest=1e-2), BITS, BLOCK)
def test_symmetric_is_idempotent(weight: np.ndarray, bits: int, block: int) -> None:
    q, scale = quantize_symmetric(weight, bits, block)
    dequantized = (q * per_column(scale, weight.shape[1], block)).astype(np.float32)
    again, scale_again = quantize_symmetric(dequantized, bits, block)
    used = np.abs(np.maximum.reduceat(np.abs(q), np.arange(0, q.shape[1], block), axis=1)) > 0
    np.testing.assert_array_equal(again, q)
    np.testing.assert_array_equal(scale_again[used], scale[used])


@given(weights(smallest=1e-2), BITS, BLOCK)
def test_round_to_scale_gives_the_integers_back(weight: np.ndarray, bits: int, block: int) -> None:
    q, scale = quantize_symmetric(weight, bits, block)
    dequantized = (q * per_column(scale, weight.shape[1], block)).astype(np.float32)
    np.testing.assert_array_equal(round_to_scale(dequantized, scale, bits, block), q)


def test_known_values_symmetric() -> None:
    weight = np.array([[0.5, -1.75, 0.25, 0.125]], np.float32)
    q, scale = quantize_symmetric(weight, bits=4, block=4)
    assert scale[0, 0] == 0.25
    np.testing.assert_array_equal(q, [[2, -7, 1, 0]])  # 0.125 / 0.25 = 0.5 rounds to even


def test_known_values_asymmetric() -> None:
    weight = np.array([[-1.0, 0.0, 2.75]], np.float32)
    q, scale, zero_point = quantize_asymmetric(weight, bits=4, block=3)
    assert scale[0, 0] == 0.25 and zero_point[0, 0] == 4
    np.testing.assert_array_equal(q, [[0, 4, 15]])


def test_round_to_scale_uses_the_full_range() -> None:
    weight = np.array([[-20.0, -8.0, 20.0]], np.float32)
    np.testing.assert_array_equal(round_to_scale(weight, np.ones((1, 1), np.float32), 4, 3), [[-8, -8, 7]])


def test_rows_of_zeros_have_a_positive_scale() -> None:
    q, scale = quantize_symmetric(np.zeros((2, 70), np.float32), bits=4, block=32)
    assert scale.shape == (2, 3) and np.all(scale == ZERO_BLOCK_SCALE) and not q.any()
    q, scale, zero_point = quantize_asymmetric(np.zeros((2, 70), np.float32), bits=8, block=32)
    assert np.all(scale == ZERO_BLOCK_SCALE) and not q.any() and not zero_point.any()


def test_tiny_weights_are_not_clipped() -> None:
    weight = np.array([[1e-9, -3e-9], [1e-38, -1e-40]], np.float32)
    q, scale = quantize_symmetric(weight, bits=4, block=2)
    assert is_exact(scale) and np.all(scale > 0)
    assert np.all(np.abs(q * scale - weight) <= scale / 2)


@pytest.mark.parametrize(
    ("weight", "message"),
    [
        (np.full((1, 4), 1e9, np.float32), "does not fit fp16"),
        (np.array([[1.0, np.nan]], np.float32), "NaN or infinity"),
        (np.array([[1.0, np.inf]], np.float32), "NaN or infinity"),
        (np.ones((2, 2), np.float64), "float32 weight matrix"),
        (np.ones(4, np.float32), "float32 weight matrix"),
    ],
)
def test_weights_that_cannot_be_quantised(weight: np.ndarray, message: str) -> None:
    with pytest.raises(QuantizationError, match=message):
        quantize_symmetric(weight, bits=4, block=2)


@pytest.mark.parametrize(("bits", "block"), [(1, 4), (9, 4), (4, 0)])
def test_bits_and_blocks_out_of_range(bits: int, block: int) -> None:
    with pytest.raises(QuantizationError, match="2 to 8 bits"):
        quantize_symmetric(np.ones((1, 4), np.float32), bits, block)


def test_exact_scale_refuses_what_is_no_scale() -> None:
    with pytest.raises(QuantizationError, match="negative or not finite"):
        exact_scale(np.array([-1.0]))
