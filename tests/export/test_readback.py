"""A graph that differs from the table in anything is refused."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from edgevlm_runner.contract import ModelSpec

from edgevlm_deploy.errors import ExportError
from edgevlm_deploy.export import readback
from edgevlm_deploy.quantize.table import QuantizedLinear, QuantizedTable, StaticActivation

LAYER = "model.text_model.layers.0"
SYMMETRIC = f"{LAYER}.self_attn.o_proj"
ASYMMETRIC = f"{LAYER}.self_attn.q_proj"
FRACTIONS = f"{LAYER}.mlp.down_proj"
THREE_BITS = f"{LAYER}.mlp.gate_proj"
STATIC = "model.vision_model.encoder.layers.0.self_attn.k_proj"
EMBEDDING = "model.text_model.embed_tokens"


def component(name: str) -> str:
    if "vision" in name:
        return "vision_encoder"
    return "embedding" if "embed" in name else "decoder"


def differ(linear: QuantizedLinear, **changes: Any) -> QuantizedLinear:
    return dataclasses.replace(linear, **changes)


def one_more(array: np.ndarray, dtype: type) -> np.ndarray:
    """The last entry differs: the end of the last, short block."""
    changed = array.astype(np.float64)
    changed.flat[-1] += -1 if changed.flat[-1] > 0 else 1
    return changed.astype(dtype)


@pytest.mark.parametrize("module", [SYMMETRIC, ASYMMETRIC, FRACTIONS, THREE_BITS, STATIC, EMBEDDING])
def test_accepts_what_was_written_and_refuses_other_numbers(
    compiled: Any, table: QuantizedTable, spec: ModelSpec, module: str
) -> None:
    path = compiled.root / spec.graphs[component(module)]
    linear = table[module]
    readback.check(path, table, [module])
    integers = differ(linear, q=one_more(linear.q, linear.q.dtype.type))
    with pytest.raises(ExportError, match=f"{module} differs .* in its integers"):
        readback.check(path, QuantizedTable({module: integers}), [module])
    scales = differ(linear, scale=np.nextafter(linear.scale, np.float32(1)))
    with pytest.raises(ExportError, match=f"{module} differs .* in its scales"):
        readback.check(path, QuantizedTable({module: scales}), [module])


def test_zero_points_are_compared(compiled: Any, table: QuantizedTable, spec: ModelSpec) -> None:
    linear = table[ASYMMETRIC]
    assert linear.zero_point is not None
    changed = differ(linear, zero_point=one_more(linear.zero_point, np.uint8))
    with pytest.raises(ExportError, match="zero points"):
        readback.check(
            compiled.root / spec.graphs["decoder"], QuantizedTable({ASYMMETRIC: changed}), [ASYMMETRIC]
        )


def test_fractions_of_zero_points_are_compared(compiled: Any, table: QuantizedTable, spec: ModelSpec) -> None:
    linear, path = table[FRACTIONS], compiled.root / spec.graphs["decoder"]
    assert linear.zero_point is not None and np.any(linear.zero_point != np.rint(linear.zero_point))
    nudged = linear.zero_point.copy()
    nudged[0, 0] += 1 / 16 if np.rint(nudged[0, 0] + 1 / 16) == np.rint(nudged[0, 0]) else -1 / 16
    for changed in (nudged, np.rint(linear.zero_point).astype(np.uint8)):
        other = QuantizedTable({FRACTIONS: differ(linear, zero_point=changed)})
        with pytest.raises(ExportError, match="fractions of zero points"):
            readback.check(path, other, [FRACTIONS])


@pytest.mark.parametrize("activation", [None, StaticActivation(2.0**-5, 0), StaticActivation(2.0**-6, 1)])
def test_activation_ranges_are_compared(
    compiled: Any, table: QuantizedTable, spec: ModelSpec, activation: StaticActivation | None
) -> None:
    changed = differ(table[STATIC], activation=activation)
    with pytest.raises(ExportError, match="activation"):
        readback.check(
            compiled.root / spec.graphs["vision_encoder"], QuantizedTable({STATIC: changed}), [STATIC]
        )


def test_a_module_that_is_not_in_the_file_is_an_error(
    compiled: Any, table: QuantizedTable, spec: ModelSpec
) -> None:
    with pytest.raises(ExportError, match="no quantised operator for lm_head"):
        readback.check(compiled.root / spec.graphs["embedding"], table, ["lm_head"])


def test_a_truncated_file_is_an_error(
    compiled: Any, table: QuantizedTable, spec: ModelSpec, tmp_path: Path
) -> None:
    path = tmp_path / "cut.onnx"
    path.write_bytes((compiled.root / spec.graphs["decoder"]).read_bytes()[:-1000])
    with pytest.raises(ExportError, match="cannot be read back"):
        readback.check(path, table, ["lm_head"])
