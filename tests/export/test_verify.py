"""Verification notices what a wrong export would do."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from edgevlm_runner.contract import ModelSpec
from edgevlm_runner.inputs import Inputs

from edgevlm_deploy.backends import onnxruntime
from edgevlm_deploy.errors import ExportError
from edgevlm_deploy.export.verify import verify
from edgevlm_deploy.quantize import fakequant
from edgevlm_deploy.quantize.quantized_model import QuantizedModel
from edgevlm_deploy.quantize.table import QuantizedTable


@pytest.fixture
def reference(load_source: Callable[[], Any], table: QuantizedTable) -> Any:
    return fakequant.apply(onnxruntime.half_precision(load_source()), QuantizedModel(table))


def test_agrees_with_the_fake_quantised_model(
    reference: Any, compiled: Any, table: QuantizedTable, spec: ModelSpec, samples: list[Inputs]
) -> None:
    found = verify(reference, table, spec, compiled.root, samples[:1])
    assert found.logits_difference <= 1e-5
    assert found.tokens == 32


@pytest.mark.parametrize(
    ("parameter", "message"),
    [
        ("model.vision_model.post_layernorm.bias", "projection|proj: .* not because of a rounding tie"),
        ("model.connector.modality_projection.proj.weight", "image features differ"),
        ("model.text_model.embed_tokens.weight", "embeddings differ"),
        ("model.text_model.layers.1.mlp.down_proj.weight", "logits differ"),
    ],
)
def test_a_parameter_that_differs_is_noticed(
    reference: Any,
    compiled: Any,
    table: QuantizedTable,
    spec: ModelSpec,
    samples: list[Inputs],
    parameter: str,
    message: str,
) -> None:
    import torch

    with torch.no_grad():
        reference.get_parameter(parameter).mul_(1.01)
    with pytest.raises(ExportError, match=message):
        verify(reference, table, spec, compiled.root, samples[1:2])


def test_answers_are_shorter_where_the_context_ends(
    reference: Any, compiled: Any, table: QuantizedTable, spec: ModelSpec, samples: list[Inputs]
) -> None:
    length = samples[2].input_ids.shape[1]
    short = dataclasses.replace(spec, max_context=length + 3)
    assert verify(reference, table, short, compiled.root, samples[2:]).tokens == 3


@pytest.mark.parametrize(
    ("offset", "ties"),
    [(0.5 - 1e-6, 0), (0.5 + 1e-6, 3)],
    ids=["rounds as the graph does", "rounds the other way"],
)
def test_rounding_ties_are_given_to_torch_and_counted(
    reference: Any,
    compiled: Any,
    table: QuantizedTable,
    spec: ModelSpec,
    samples: list[Inputs],
    offset: float,
    ties: int,
) -> None:
    """One input of q, k and v is moved next to the midpoint above the integer that the graph has."""
    hook = _move_one_input(reference, table, offset)
    try:
        found = verify(reference, table, spec, compiled.root, samples[1:2])
    finally:
        hook.remove()
    assert found.rounding_ties == ties
    assert found.vision_difference <= 1e-5


@pytest.mark.parametrize("offset", [0.6, 1.0, -0.7])
def test_another_integer_without_a_tie_is_an_error(
    reference: Any,
    compiled: Any,
    table: QuantizedTable,
    spec: ModelSpec,
    samples: list[Inputs],
    offset: float,
) -> None:
    hook = _move_one_input(reference, table, offset)
    try:
        with pytest.raises(ExportError, match=r"1 of 1024 inputs .* not because of a rounding tie"):
            verify(reference, table, spec, compiled.root, samples[1:2])
    finally:
        hook.remove()


def _move_one_input(reference: Any, table: QuantizedTable, offset: float) -> Any:
    """Hook: the first unclipped input of layer 0's attention becomes (its integer + offset) · scale."""
    layer = "model.vision_model.encoder.layers.0"
    activation = table[f"{layer}.self_attn.q_proj"].activation
    assert activation is not None
    scale = activation.scale

    def move(_: Any, args: Any, output: Any) -> Any:
        moved = output.clone()
        flat = moved.view(-1)
        integers = (flat / scale).round()
        index = int((integers.abs() < 20).nonzero()[0])
        flat[index] = (integers[index] + offset) * scale
        return moved

    return reference.get_submodule(f"{layer}.layer_norm1").register_forward_hook(move)


def test_a_missing_graph_is_an_error(
    reference: Any,
    compiled: Any,
    table: QuantizedTable,
    spec: ModelSpec,
    samples: list[Inputs],
    tmp_path: Path,
) -> None:
    shutil.copytree(compiled.root, tmp_path / "copy")
    (tmp_path / "copy" / spec.graphs["decoder"]).unlink()
    with pytest.raises(ExportError, match="cannot be read back"):
        verify(reference, table, spec, tmp_path / "copy", samples[:1])


def test_no_samples_is_an_error(
    reference: Any, compiled: Any, table: QuantizedTable, spec: ModelSpec
) -> None:
    with pytest.raises(ExportError, match="at least one sample"):
        verify(reference, table, spec, compiled.root, [])
