"""What export leaves behind, and what it refuses."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from edgevlm_deploy.errors import ExportError
from edgevlm_deploy.export import graph, onnx
from edgevlm_deploy.export.passes import rotary


@pytest.fixture(scope="module")
def source(load_source: Callable[[], Any]) -> Any:
    return load_source()


@pytest.fixture(scope="module")
def decoder(source: Any) -> Any:
    return onnx.export_decoder(source)


def test_the_source_keeps_its_own_attention(source: Any, decoder: Any) -> None:
    assert source.model.text_model.config._attn_implementation == "sdpa"
    assert source.model.vision_model.config._attn_implementation == "sdpa"


def test_signature_of_the_decoder(decoder: Any) -> None:
    shapes = {value.name: str(value.shape) for value in decoder.graph.inputs}
    assert shapes == {
        "inputs_embeds": "[batch,tokens,64]",
        "attention_mask": "[batch,total]",
        "position_ids": "[batch,tokens]",
        **dict.fromkeys(onnx.cache_names(2)[0], "[batch,2,past,16]"),
    }
    assert str(decoder.graph.outputs[0].shape) == "[batch,320]"


def test_every_linear_layer_is_found_by_its_module_name(source: Any, decoder: Any) -> None:
    import torch

    linear = {
        name
        for name, module in source.named_modules()
        if isinstance(module, torch.nn.Linear) and ("text_model" in name or name == "lm_head")
    }
    assert set(graph.matmuls(decoder)) == linear


def test_attention_reads_the_cache_without_a_copy(decoder: Any) -> None:
    for node in decoder.graph:
        if node.op_type == "GroupQueryAttention":
            assert node.inputs[3].is_graph_input()
            assert node.outputs[1].is_graph_output()


def test_rotary_table_is_that_of_the_source(source: Any) -> None:
    cosine, sine = onnx.rotary_table(source, 5)
    frequencies = 10000.0 ** (-np.arange(8) / 8)
    angles = np.arange(5)[:, None] * frequencies
    np.testing.assert_allclose(cosine, np.cos(angles), atol=1e-6)
    np.testing.assert_allclose(sine, np.sin(angles), atol=1e-6)


def test_rotary_embeddings_that_depend_on_the_length_are_refused(load_source: Callable[[], Any]) -> None:
    changed = load_source()
    changed.config.text_config.rope_parameters = {"rope_type": "dynamic", "rope_theta": 10000.0}
    with pytest.raises(ExportError, match="'dynamic' change with the length"):
        onnx.rotary_table(changed, 5)


def test_an_attention_that_is_rotated_already_is_refused(source: Any, decoder: Any) -> None:
    """Runs last: it edits the graph of the fixture."""
    table = onnx.rotary_table(source, 8)
    assert rotary.fuse_rotary(decoder, *table) == 2
    with pytest.raises(ExportError, match="expected a Reshape in front of the attention"):
        rotary.fuse_rotary(decoder, *table)
