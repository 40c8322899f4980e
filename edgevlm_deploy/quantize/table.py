"""The quantised truth: one table of integers and scales that every backend exports.

Torch fake-quantisation is built from it (the numeric reference), ONNX and TFLite graphs
carry its integers, and each exporter reads its own file back to prove that.
"""

from __future__ import annotations

import dataclasses
import json
import tempfile
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgevlm_deploy.errors import ExportError, QuantizationError


@dataclass(frozen=True)
class StaticActivation:
    """Per-tensor activation quantisation with a calibrated range: x ≈ (q − zero_point)·scale."""

    scale: float
    zero_point: int
    bits: int = 8


@dataclass(frozen=True)
class QuantizedLinear:
    """Integers of one weight matrix, W ≈ (q − zero_point) · scale per block of columns.

    q           int8    [N, K]          signed storage when symmetric; 0 … 2^bits − 1 stored as
                                        uint8 when `zero_point` is given
    scale       float32 [N, K / block]  exactly representable in fp16 and bf16
    zero_point  uint8 or float32 [N, K / block], multiples of 1/16 when float; None when symmetric
    block       K for per-channel, else the group size (the last group may be short)
    activation  None for weight-only schemes
    """

    q: NDArray[Any]
    scale: NDArray[np.float32]
    zero_point: NDArray[Any] | None
    bits: int
    block: int
    activation: StaticActivation | None = None

    def dequantize(self) -> NDArray[np.float32]:
        """float32 [N, K]: the weights that the fake-quantised model computes with."""
        columns = self.q.shape[1]
        group = np.arange(columns) // self.block
        values = self.q.astype(np.float32)
        if self.zero_point is not None:
            values = values - self.zero_point.astype(np.float32)[:, group]
        dequantized: NDArray[np.float32] = values * self.scale[:, group]
        return dequantized

    def rows(self, rows: Any) -> QuantizedLinear:
        """Some rows of it; `rows` is a slice or an array of row numbers."""
        zero_point = None if self.zero_point is None else self.zero_point[rows]
        return dataclasses.replace(self, q=self.q[rows], scale=self.scale[rows], zero_point=zero_point)

    @classmethod
    def stacked(cls, parts: Sequence[QuantizedLinear]) -> QuantizedLinear:
        """One matrix of parts that follow each other in rows."""
        if len(parts) == 1:
            return parts[0]
        zero_points = [part.zero_point for part in parts if part.zero_point is not None]
        return dataclasses.replace(
            parts[0],
            q=np.concatenate([part.q for part in parts]),
            scale=np.concatenate([part.scale for part in parts]),
            zero_point=np.concatenate(zero_points) if zero_points else None,
        )


@dataclass(frozen=True)
class QuantizedTable(Mapping[str, QuantizedLinear]):
    """module name in the source model → its integers."""

    modules: Mapping[str, QuantizedLinear]

    def __getitem__(self, name: str) -> QuantizedLinear:
        return self.modules[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.modules)

    def __len__(self) -> int:
        return len(self.modules)

    def require(self, written: Collection[str]) -> None:
        """Raises ExportError unless every module of the table is among those that a graph holds."""
        missing = sorted(set(self.modules) - set(written))
        if missing:
            raise ExportError(
                f"No matrix product was found in the graphs for {', '.join(missing)}; "
                "these modules would have stayed in floating point."
            )

    def save(self, directory: Path) -> None:
        """Write `table.safetensors` and `table.json` into `directory`."""
        from safetensors.numpy import save_file

        tensors: dict[str, NDArray[Any]] = {}
        rows: dict[str, dict[str, Any]] = {}
        for name, module in sorted(self.modules.items()):
            tensors[f"{name}.q"] = np.ascontiguousarray(module.q)
            tensors[f"{name}.scale"] = np.ascontiguousarray(module.scale)
            if module.zero_point is not None:
                tensors[f"{name}.zero_point"] = np.ascontiguousarray(module.zero_point)
            row: dict[str, Any] = {"bits": module.bits, "block": module.block}
            if module.activation is not None:
                row["activation"] = vars(module.activation)
            rows[name] = row
        directory.mkdir(parents=True, exist_ok=True)
        save_file(tensors, directory / "table.safetensors")
        (directory / "table.json").write_text(json.dumps(rows, indent=1, sort_keys=True) + "\n")

    @classmethod
    def load(cls, directory: Path) -> QuantizedTable:
        """Read what `save` wrote; arrays are pages of the file. Raises QuantizationError when the two files
        disagree."""
        tensors = mapped(directory / "table.safetensors")
        modules: dict[str, QuantizedLinear] = {}
        for name, row in json.loads((directory / "table.json").read_text()).items():
            if f"{name}.q" not in tensors:
                raise QuantizationError(f"{directory}: table.json names {name}, table.safetensors does not.")
            activation = row.get("activation")
            modules[name] = QuantizedLinear(
                q=tensors[f"{name}.q"],
                scale=tensors[f"{name}.scale"],
                zero_point=tensors.get(f"{name}.zero_point"),
                bits=row["bits"],
                block=row["block"],
                activation=StaticActivation(**activation) if activation else None,
            )
        return cls(modules)


def mapped(path: Path) -> dict[str, NDArray[Any]]:
    """Arrays of a safetensors file as pages of it: nothing is read before it is used."""
    from safetensors import safe_open

    # Through NumPy the library would copy them.
    with safe_open(path, framework="pt") as stored:
        return {name: stored.get_tensor(name).numpy() for name in stored.keys()}  # noqa: SIM118 - not a mapping


def spilled(linear: QuantizedLinear, directory: Path) -> QuantizedLinear:
    """The same with its integers in a nameless file on `directory`'s disk, which the kernel may write out."""
    import torch

    with tempfile.NamedTemporaryFile(dir=directory, prefix=".spilled-") as file:
        kind = {np.dtype(np.int8): torch.int8, np.dtype(np.uint8): torch.uint8}[linear.q.dtype]
        q = torch.from_file(file.name, shared=True, size=linear.q.size, dtype=kind).numpy()
    q = q.reshape(linear.q.shape)
    q[...] = linear.q
    return dataclasses.replace(linear, q=q)
