"""Verification notices what a wrong export would do."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
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


def test_rounding_ties_are_given_to_torch_and_counted(
    reference: Any,
    load_source: Callable[[], Any],
    table: QuantizedTable,
    spec: ModelSpec,
    tmp_path: Path,
    compiled: Any,
) -> None:
    """Torch rounds one input of the first projection the other way; half a step off is no tie, 1e-7 is."""
    import torch

    module = "model.vision_model.encoder.layers.0.self_attn.q_proj"
    activation = table[module].activation
    assert activation is not None
    pixels = np.zeros((1, 3, 32, 32), np.float32)
    pixels[0, 0, 0, 0] = 1.0
    sample = Inputs(pixels, np.array([[5, *[spec.image_token_id] * 4, 6]], np.int64))
    nudge = {"by": 0.0}

    def towards_a_tie(_: Any, args: tuple[Any, ...]) -> tuple[Any, ...]:
        x = args[0].clone()
        step = activation.scale
        below = torch.floor(x[0, 0, 0] / step)
        x[0, 0, 0] = (below + 0.5) * step + nudge["by"]
        return (x,)

    hook = reference.get_submodule(module).register_forward_pre_hook(towards_a_tie, prepend=True)
    try:
        for by in (-1e-7, 1e-7):
            nudge["by"] = by
            found = verify(reference, table, spec, compiled.root, [sample])
            assert found.vision_difference <= 1e-5
            nudge.setdefault("ties", 0)
            nudge["ties"] += found.rounding_ties
        assert nudge["ties"] == 1  # one side rounds like the graph, the other does not
        nudge["by"] = 3 * activation.scale
        with pytest.raises(ExportError, match="not because of a rounding tie"):
            verify(reference, table, spec, compiled.root, [sample])
    finally:
        hook.remove()


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
