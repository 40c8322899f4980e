"""Bytes that are predicted are the bytes that are written."""

from __future__ import annotations

import pytest

from edgevlm_deploy.errors import ExportError
from edgevlm_deploy.export import footprint, packing
from edgevlm_deploy.quantize.request import ModuleRequest
from edgevlm_deploy.quantize.rounding import round_to_nearest
from edgevlm_deploy.quantize.schemes import WeightFormat, formats
from edgevlm_deploy.recipe import Algorithm, Component, Scheme
from edgevlm_deploy.target import Backend


@pytest.mark.parametrize("columns", [96, 128, 200, 512])
@pytest.mark.parametrize(
    "scheme", [one for one in Scheme if one not in (Scheme.FP16, Scheme.W8A8)], ids=lambda one: one.value
)
def test_onnxruntime_packs_what_was_predicted(scheme: Scheme, columns: int) -> None:
    """Short groups and per-channel scales included; scales are halved when the file is written."""
    import numpy as np

    weight = np.random.default_rng(0).normal(size=(48, columns)).astype(np.float32)
    stored = formats(Backend.ONNXRUNTIME, "cpu")[scheme]
    wanted = ModuleRequest(Component.DECODER, scheme, Algorithm.RTN, stored)
    packed = packing.pack(round_to_nearest(weight, wanted), "module")
    expected = footprint.weight_bytes(48, columns, stored, Component.DECODER, Backend.ONNXRUNTIME)
    assert packed.weight.nbytes + packed.scale.nbytes // 2 == expected


def test_zero_points_are_packed_like_the_integers() -> None:
    stored = WeightFormat(4, 32, symmetric=False)
    plain = WeightFormat(4, 32)
    difference = [
        footprint.weight_bytes(48, 96, one, Component.DECODER, Backend.ONNXRUNTIME) for one in (plain, stored)
    ]
    assert difference[1] - difference[0] == 48 * 2, "three blocks of half a byte, padded to whole bytes"


@pytest.mark.parametrize(
    ("backend", "stored", "expected"),
    [
        (Backend.ONNXRUNTIME, None, 2 * 64 * 128),
        (Backend.ONNXRUNTIME, WeightFormat(8, None, static_activation=True), 64 * 128 + 2 * 64),
        (Backend.LITERT, WeightFormat(3, None), 64 * 128 // 2 + 4 * 64),
        (Backend.LITERT, WeightFormat(4, 32, whole_groups=True), 64 * 128 // 2 + 2 * 64 * 4),
        (Backend.TENSORRT, WeightFormat(8, None), 64 * 128 + 64 + 2 * 64),
        (Backend.TENSORRT, WeightFormat(4, 64, whole_groups=True), 64 * 128 // 2 + 64 * 2 // 2 + 2 * 64 * 2),
    ],
)
def test_what_lies_beside_the_integers(backend: Backend, stored: WeightFormat | None, expected: int) -> None:
    assert footprint.weight_bytes(64, 128, stored, Component.VISION_ENCODER, backend) == expected


def test_a_format_without_a_container_is_refused() -> None:
    with pytest.raises(ExportError, match="5 bits"):
        footprint.weight_bytes(64, 128, WeightFormat(5, None), Component.DECODER, Backend.ONNXRUNTIME)
