"""safetensors headers: names, shapes and dtypes of the weights, checked before any weight is read.

Format: 8 bytes of little-endian header length, the header as JSON, then the tensors without gaps
(https://huggingface.co/docs/safetensors).
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

from edgevlm_deploy.errors import CheckpointError

MAX_HEADER_BYTES = 100_000_000
"""The limit that the safetensors library has too."""
BYTES_PER_VALUE = {"F32": 4, "F16": 2, "BF16": 2}
SMALLEST_FILE = 8


@dataclass(frozen=True)
class StoredTensor:
    dtype: str
    """safetensors' name: F32, F16 or BF16."""
    shape: tuple[int, ...]
    file: str

    @property
    def values(self) -> int:
        return math.prod(self.shape)


def read_header(path: Path) -> dict[str, StoredTensor]:
    """Name → tensor of one file.

    Raises CheckpointError when the file is truncated, offsets do not fit or a dtype is no float.
    """
    size = path.stat().st_size
    with path.open("rb") as stream:
        length = int.from_bytes(stream.read(SMALLEST_FILE), "little")
        if size < SMALLEST_FILE or length > min(MAX_HEADER_BYTES, size - SMALLEST_FILE):
            raise CheckpointError(_damaged(path, f"{size:,} bytes are too few for its header"))
        try:
            header = json.loads(stream.read(length))
        except (ValueError, RecursionError) as error:
            raise CheckpointError(_damaged(path, f"its header is not JSON ({error})")) from error
    if not isinstance(header, dict):
        raise CheckpointError(_damaged(path, "its header is not a JSON object"))
    header.pop("__metadata__", None)
    data_bytes = size - SMALLEST_FILE - length
    tensors: dict[str, StoredTensor] = {}
    ends: list[tuple[int, int]] = []
    for name, entry in header.items():
        tensor, span = _entry(path, name, entry)
        ends.append(span)
        if not is_position_buffer(name):
            tensors[name] = tensor
    _check_layout(path, sorted(ends), data_bytes)
    return tensors


def is_position_buffer(name: str) -> bool:
    """0, 1, 2 …, which older versions of transformers stored and newer ones leave out."""
    return name.endswith(".position_ids")


def _entry(path: Path, name: str, entry: Any) -> tuple[StoredTensor, tuple[int, int]]:
    """One tensor and its (begin, end) in the data."""
    if not isinstance(entry, dict):
        raise CheckpointError(_damaged(path, f"the entry of {name!r} is no object"))
    dtype, shape, span = entry.get("dtype"), entry.get("shape"), entry.get("data_offsets")
    if not _sizes(shape) or not _sizes(span) or len(span) != 2:
        raise CheckpointError(_damaged(path, f"shape or offsets of {name!r} are no sizes"))
    bytes_per_value = 8 if is_position_buffer(name) and dtype == "I64" else BYTES_PER_VALUE.get(str(dtype))
    if bytes_per_value is None:
        raise CheckpointError(
            f"{path}: {name} is stored as {dtype}; expected one of {', '.join(BYTES_PER_VALUE)}. "
            "Give the original checkpoint, not one that is already quantised."
        )
    tensor = StoredTensor(str(dtype), tuple(shape), path.name)
    if span[1] - span[0] != tensor.values * bytes_per_value:
        raise CheckpointError(_damaged(path, f"{name!r} has {span[1] - span[0]:,} bytes for shape {shape}"))
    return tensor, (span[0], span[1])


def _sizes(value: Any) -> TypeGuard[list[int]]:
    return isinstance(value, list) and all(type(one) is int and one >= 0 for one in value)


def _check_layout(path: Path, spans: list[tuple[int, int]], data_bytes: int) -> None:
    """The tensors follow each other without gap or overlap, up to the end of the file."""
    position = 0
    for begin, end in spans:
        if begin != position:
            raise CheckpointError(_damaged(path, f"tensors overlap or leave a gap at byte {begin:,}"))
        position = end
    if position != data_bytes:
        raise CheckpointError(
            _damaged(path, f"the header describes {position:,} bytes of weights, {data_bytes:,} are there")
        )


def _damaged(path: Path, what: str) -> str:
    return f"{path}: truncated or damaged: {what}. Download or save the checkpoint again."


def stored_dtype(tensors: Mapping[str, StoredTensor]) -> str:
    """ "fp16", "bf16" or "fp32": what most values are stored as."""
    values = {"F16": 0, "BF16": 0, "F32": 0}
    for tensor in tensors.values():
        values[tensor.dtype] += tensor.values
    most = max(values, key=lambda dtype: values[dtype])
    return {"F16": "fp16", "BF16": "bf16", "F32": "fp32"}[most]
