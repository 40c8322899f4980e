"""safetensors headers that lie are found before anything is loaded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

from edgevlm_deploy.errors import CheckpointError
from edgevlm_deploy.source.header import StoredTensor, read_header, stored_dtype


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "model.safetensors"
    save_file({"a": np.ones((2, 3), np.float32), "b": np.ones(5, np.float16)}, path, {"format": "pt"})
    return path


def write(path: Path, header: Any, data: bytes) -> None:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)


def test_shapes_and_dtypes(file: Path) -> None:
    assert read_header(file) == {
        "a": StoredTensor("F32", (2, 3), "model.safetensors"),
        "b": StoredTensor("F16", (5,), "model.safetensors"),
    }


def test_every_truncation_is_found(file: Path) -> None:
    whole = file.read_bytes()
    for length in range(len(whole)):
        file.write_bytes(whole[:length])
        with pytest.raises(CheckpointError, match="truncated or damaged"):
            read_header(file)


def test_bytes_after_the_end_are_found(file: Path) -> None:
    file.write_bytes(file.read_bytes() + b"x")
    with pytest.raises(CheckpointError, match="35 are there"):
        read_header(file)


@pytest.mark.parametrize(
    ("header", "message"),
    [
        (b"[", "not JSON"),
        (b"[" * 5000, "not JSON"),
        (b"[]", "not a JSON object"),
        ({"a": 1}, "no object"),
        ({"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 9]}}, "9 bytes for shape"),
        ({"a": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}}, "no sizes"),
        ({"a": {"dtype": "F32", "shape": [True], "data_offsets": [0, 4]}}, "no sizes"),
        ({"a": {"dtype": "F32", "shape": [1], "data_offsets": [0]}}, "no sizes"),
        ({"a": {"dtype": "F32", "shape": [1]}}, "no sizes"),
        ({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}, "8 bytes of weights, 4 are there"),
        ({"a": {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]}}, "gap"),
        ({"a": {"dtype": "I8", "shape": [4], "data_offsets": [0, 4]}}, "already quantised"),
        (
            {name: {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]} for name in "ab"},
            "overlap",
        ),
    ],
)
def test_headers_that_lie(tmp_path: Path, header: Any, message: str) -> None:
    path = tmp_path / "model.safetensors"
    write(path, header, b"\0\0\0\0")
    with pytest.raises(CheckpointError, match=message) as caught:
        read_header(path)
    assert str(path) in str(caught.value)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.binary(max_size=200))
def test_arbitrary_bytes_give_a_sentence(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(data)
    with pytest.raises(CheckpointError):
        read_header(path)


def test_dtype_of_most_values() -> None:
    tensors = {
        "norm": StoredTensor("F32", (8,), "a"),
        "weight": StoredTensor("BF16", (8, 8), "a"),
    }
    assert stored_dtype(tensors) == "bf16"
