"""Packing of integers for MatMulNBits and its inverse."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgevlm_deploy.errors import ExportError
from edgevlm_deploy.export.packing import pack, unpack
from edgevlm_deploy.quantize.table import QuantizedLinear


def random_linear(bits: int, columns: int, block: int, symmetric: bool, seed: int = 0) -> QuantizedLinear:
    rng = np.random.default_rng(seed)
    groups = -(-columns // block)
    scale = rng.uniform(0.1, 1, (3, groups)).astype(np.float32)
    if symmetric:
        q = rng.integers(-(2 ** (bits - 1)), 2 ** (bits - 1), (3, columns)).astype(np.int8)
        return QuantizedLinear(q, scale, None, bits, block)
    q = rng.integers(0, 2**bits, (3, columns)).astype(np.uint8)
    zero_point = rng.integers(0, 2**bits, (3, groups)).astype(np.uint8)
    return QuantizedLinear(q, scale, zero_point, bits, block)


@settings(max_examples=60)
@given(
    bits=st.sampled_from((3, 4, 8)),
    columns=st.integers(1, 200),
    block=st.sampled_from((16, 32, 48, 64, 128, 256, None)),
    symmetric=st.booleans(),
)
def test_unpack_returns_what_was_packed(bits: int, columns: int, block: int | None, symmetric: bool) -> None:
    linear = random_linear(bits, columns, block or columns, symmetric)
    packed = pack(linear, "m")
    q, zero_point = unpack(packed, columns)
    column = np.arange(columns)
    scale = packed.scale[:, column // packed.block]
    offset = 2 ** (packed.container - 1) if zero_point is None else zero_point[:, column // packed.block]
    np.testing.assert_array_equal((q.astype(np.float32) - offset) * scale, linear.dequantize())


def test_first_integer_is_in_the_low_half() -> None:
    q = np.zeros((1, 16), np.int8)
    q[0, :2] = (-8, 7)
    packed = pack(QuantizedLinear(q, np.ones((1, 1), np.float32), None, 4, 16), "m")
    assert packed.weight[0, 0, 0] == 0xF0  # 7 + 8 in the high half, −8 + 8 in the low one


def test_padding_is_the_zero_point() -> None:
    packed = pack(random_linear(4, 20, 32, symmetric=True), "m")
    assert set(packed.weight[:, 0, 10:].ravel()) == {0x88}


def test_three_bits_keep_their_values_in_four_bit_containers() -> None:
    packed = pack(random_linear(3, 16, 16, symmetric=True), "m")
    assert packed.container == 4
    q, _ = unpack(packed, 16)
    assert q.min() >= 4 and q.max() <= 11


def test_a_group_that_no_block_divides_is_an_error() -> None:
    with pytest.raises(ExportError, match="groups of 24 columns"):
        pack(random_linear(4, 48, 24, symmetric=True), "decoder.q")


def test_an_integer_beyond_its_bits_is_an_error() -> None:
    linear = random_linear(4, 32, 32, symmetric=True)
    linear.q[0, 0] = 8
    with pytest.raises(ExportError, match=r"integers span .* 8, 4 bits hold -8 … 7"):
        pack(linear, "m")
