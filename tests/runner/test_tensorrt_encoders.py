"""A dual encoder's TensorRT executor against the stand-in; not run on hardware."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from edgevlm_runner.contract import DualEncoderSpec, FrameSpec, TextSpec
from edgevlm_runner.errors import BundleError, ExecutionError
from edgevlm_runner.runtimes import OnAccelerator, load_encoders
from onnx import TensorProto, helper, numpy_helper

SIDE, TOKENS, D, V = 4, 5, 3, 11
GRAPHS = {"vision_encoder": "vision.onnx", "text_encoder": "text.onnx"}
SPEC = DualEncoderSpec(
    family="clip",
    runtime="tensorrt",
    graphs=GRAPHS,
    image=FrameSpec(SIDE, None, 3, 1 / 255, (0.5,) * 3, (0.5,) * 3),
    text=TextSpec(("a", "b"), ("{}",), TOKENS, True, 0, None),
    projection_size=D,
    vocab_size=V,
    logit_scale=1.0,
    logit_bias=0.0,
    activation="softmax",
    profiles={
        "vision_encoder": [{"pixel_values": [[1, 3, SIDE, SIDE]] * 3}],
        "text_encoder": [{"input_ids": [[1, TOKENS]] * 3}],
    },
)


def arrays() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    project, table = rng.standard_normal((3 * SIDE * SIDE, D)), rng.standard_normal((V, D))
    return project.astype(np.float16), table.astype(np.float16)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures times a matrix; texts as the mean of their rows in a table. fp16."""
    folder = tmp_path_factory.mktemp("encoders")
    project, table = arrays()
    pixels = helper.make_tensor_value_info("pixel_values", TensorProto.FLOAT16, ["pictures", 3, SIDE, SIDE])
    image = helper.make_tensor_value_info("image_embeds", TensorProto.FLOAT16, ["pictures", D])
    vision = [
        helper.make_node("Flatten", ["pixel_values"], ["flat"]),
        helper.make_node("MatMul", ["flat", "project"], ["image_embeds"]),
    ]
    ids = helper.make_tensor_value_info("input_ids", TensorProto.INT32, ["texts", TOKENS])
    words = helper.make_tensor_value_info("text_embeds", TensorProto.FLOAT16, ["texts", D])
    text = [
        helper.make_node("Gather", ["table", "input_ids"], ["rows"]),
        helper.make_node("ReduceMean", ["rows", "axis"], ["text_embeds"], keepdims=0),
    ]
    for name, nodes, given, made, held in (
        ("vision.onnx", vision, pixels, image, [numpy_helper.from_array(project, "project")]),
        (
            "text.onnx",
            text,
            ids,
            words,
            [numpy_helper.from_array(table, "table"), numpy_helper.from_array(np.array([1]), "axis")],
        ),
    ):
        graph = helper.make_graph(nodes, "encoder", [given], [made], held)
        opset = [helper.make_opsetid("", 20)]
        onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=9), folder / name)
    return folder


@pytest.mark.parametrize("release", ["10.3", "10.16"])
def test_embeddings_are_those_of_the_graphs(install: Callable[..., Any], root: Path, release: str) -> None:
    device = install(release)
    project, table = arrays()
    rng = np.random.default_rng(1)
    pixels = rng.standard_normal((3, 3, SIDE, SIDE)).astype(np.float16).astype(np.float32)
    ids = rng.integers(0, V, (2, TOKENS))
    with load_encoders(root, SPEC, 1) as runtime:
        images, texts = runtime.encode_image(pixels), runtime.encode_text(ids)
        assert isinstance(runtime, OnAccelerator) and runtime.device_bytes() > 0
        assert runtime.versions()["gpu"] == "Orin (SM 8.7)"
    np.testing.assert_allclose(images, pixels.reshape(3, -1) @ project.astype(np.float32), atol=0.05)
    np.testing.assert_allclose(texts, table.astype(np.float32)[ids].mean(axis=1), atol=0.01)
    assert not device.blocks, "memory is left allocated"
    with load_encoders(root, SPEC, 1, emulate=True) as emulated:
        np.testing.assert_allclose(emulated.encode_image(pixels), images, atol=0.05)
        np.testing.assert_allclose(emulated.encode_text(ids), texts, atol=0.01)


def test_graphs_of_another_model_and_missing_profiles_are_refused(
    install: Callable[..., Any], root: Path
) -> None:
    device = install("10.3")
    with pytest.raises(ExecutionError, match="image_embeds of the vision_encoder"):
        load_encoders(root, dataclasses.replace(SPEC, projection_size=D + 1), 1)
    with pytest.raises(BundleError, match="no optimisation profile for the vision_encoder"):
        load_encoders(root, dataclasses.replace(SPEC, profiles={}), 1)
    assert not device.blocks
