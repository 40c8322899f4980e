"""The ONNX Runtime executor on graphs small enough to be written by hand."""

from __future__ import annotations

import builtins
import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from edgevlm_runner.contract import ImageSpec, ModelSpec, PromptSpec
from edgevlm_runner.errors import BundleError, ExecutionError, RuntimeUnavailable
from edgevlm_runner.generate import generate
from edgevlm_runner.runtimes import load
from edgevlm_runner.runtimes.onnxruntime import OnnxRuntime

HEAD, KV, D, V = 8, 1, 16, 6

SPEC = ModelSpec(
    family="smolvlm",
    runtime="onnxruntime",
    graphs={name: f"{name}.onnx" for name in ("vision_encoder", "embedding", "decoder")},
    image=ImageSpec(4, 4, False, None, 1, 1 / 255, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    prompt=PromptSpec("{image}{question}", "{question}", "<image>", "<fake>", "<global>", 3),
    image_token_id=5,
    eos_token_ids=(),
    max_new_tokens=6,
    max_context=24,
    layers=1,
    kv_heads=KV,
    head_dim=HEAD,
    hidden_size=D,
    vocab_size=V,
)

VISION = f"""<ir_version: 10, opset_import: ["" : 21]>
g (float[tiles, 3, 4, 4] pixel_values) => (float[tiles, 3, {D}] image_features)
<int64[3] shape = {{0, 3, {D}}}> {{ image_features = Reshape(pixel_values, shape) }}"""

EMBEDDING = f"""<ir_version: 10, opset_import: ["" : 21]>
g (int64[batch, tokens] input_ids, float[{V}, {D}] table) => (float[batch, tokens, {D}] inputs_embeds)
{{ inputs_embeds = Gather(table, input_ids) }}"""

DECODER = f"""<ir_version: 10, opset_import: ["" : 21, "com.microsoft" : 1]>
g (float[batch, tokens, {D}] inputs_embeds, int64[batch, total] attention_mask,
   int64[batch, tokens] position_ids,
   float[batch, {KV}, past, {HEAD}] past_key_values__0__key,
   float[batch, {KV}, past, {HEAD}] past_key_values__0__value,
   float[{D}, {HEAD}] k, float[{D}, {HEAD}] v, float[{D}, {V}] head)
=> (float[batch, {V}] logits, float[batch, {KV}, total, {HEAD}] present__0__key,
    float[batch, {KV}, total, {HEAD}] present__0__value)
<int64[1] one = {{1}}, int64 last = {{-1}}> {{
  key = MatMul(inputs_embeds, k)
  value = MatMul(inputs_embeds, v)
  summed = ReduceSum<keepdims=0>(attention_mask, one)
  before = Sub(summed, one)
  seqlens = Cast<to=6>(before)
  shape = Shape<start=1, end=2>(attention_mask)
  total64 = Squeeze(shape)
  total32 = Cast<to=6>(total64)
  mixed, present__0__key, present__0__value = com.microsoft.GroupQueryAttention
    <num_heads=2, kv_num_heads={KV}>
    (inputs_embeds, key, value, past_key_values__0__key, past_key_values__0__value, seqlens, total32)
  final = Gather<axis=1>(mixed, last)
  logits = MatMul(final, head)
}}"""


def write(path: Path, text: str, **weights: np.ndarray) -> None:
    """Parse, name (the text form has no dots in names: "__" stands for one), add weights."""
    model = onnx.parser.parse_model(text)
    for value in (*model.graph.input, *model.graph.output):
        value.name = value.name.replace("__", ".")
    for node in model.graph.node:
        node.input[:] = [name.replace("__", ".") for name in node.input]
        node.output[:] = [name.replace("__", ".") for name in node.output]
    for name, array in weights.items():
        value = next(value for value in model.graph.input if value.name == name)
        model.graph.input.remove(value)
        model.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    path.write_bytes(model.SerializeToString())


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder: Path = tmp_path_factory.mktemp("graphs")
    rng = np.random.default_rng(3)

    def floats(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape).astype(np.float32)

    write(folder / "vision_encoder.onnx", VISION)
    write(folder / "embedding.onnx", EMBEDDING, table=floats(V, D))
    write(folder / "decoder.onnx", DECODER, k=floats(D, HEAD), v=floats(D, HEAD), head=floats(D, V))
    return folder


@pytest.fixture
def runtime(root: Path) -> Iterator[OnnxRuntime]:
    with OnnxRuntime(root, SPEC) as opened:
        opened.start(SPEC.max_context)
        yield opened


def embeds(tokens: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((1, tokens, D)).astype(np.float32)


def test_decoding_after_prefill_equals_one_prefill(runtime: OnnxRuntime) -> None:
    x = embeds(9)
    whole = runtime.step(x)
    runtime.reset()
    runtime.step(x[:, :5])
    runtime.step(x[:, 5:6])
    in_pieces = runtime.step(x[:, 6:])
    np.testing.assert_allclose(in_pieces, whole, rtol=1e-5, atol=1e-6)


def test_the_cache_is_written_in_place(runtime: OnnxRuntime) -> None:
    buffers = [buffer.data_ptr() for buffer in runtime._cache]
    runtime.step(embeds(4))
    keys = runtime._cache[0].numpy()
    assert [buffer.data_ptr() for buffer in runtime._cache] == buffers
    assert np.abs(keys[0, 0, :4]).min(axis=-1).all()
    assert not keys[0, 0, 4:].any()


def test_reset_forgets(runtime: OnnxRuntime) -> None:
    first = runtime.step(embeds(4))
    runtime.step(embeds(7, seed=1))
    runtime.reset()
    np.testing.assert_array_equal(runtime.step(embeds(4)), first)


def test_logits_are_the_callers_own(runtime: OnnxRuntime) -> None:
    first = runtime.step(embeds(4))
    kept = first.copy()
    runtime.step(embeds(1, seed=1))
    np.testing.assert_array_equal(first, kept)


def test_tiles_are_encoded_in_order(runtime: OnnxRuntime) -> None:
    pixels = np.arange(2 * 48, dtype=np.float32).reshape(2, 3, 4, 4)
    np.testing.assert_array_equal(runtime.encode_image(pixels), pixels.reshape(2, 3, D))


def test_answers_a_question_about_a_picture(root: Path) -> None:
    with load(root, SPEC, threads=2) as runtime:
        pixels = embeds(3).reshape(1, 3, 4, 4)
        made = generate(runtime, SPEC, pixels, np.array([[1, 5, 5, 5, 2]]))
        again = generate(runtime, SPEC, pixels, np.array([[1, 5, 5, 5, 2]]))
    assert len(made.token_ids) == 6
    assert made.token_ids == again.token_ids
    assert made.timings.vision_seconds > 0


def test_optimised_and_plain_graphs_agree(root: Path) -> None:
    logits = []
    for optimize in (True, False):
        with OnnxRuntime(root, SPEC, optimize=optimize) as runtime:
            runtime.start(SPEC.max_context)
            logits.append(runtime.step(embeds(6)))
    np.testing.assert_allclose(logits[0], logits[1], rtol=1e-5, atol=1e-6)


def test_more_tokens_than_the_cache_holds_is_an_error(runtime: OnnxRuntime) -> None:
    runtime.step(embeds(24))
    with pytest.raises(ExecutionError, match="25 tokens do not fit the cache of 24"):
        runtime.step(embeds(1))


def test_a_truncated_graph_is_an_error(root: Path, tmp_path: Path) -> None:
    for path in root.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    whole = (root / "decoder.onnx").read_bytes()
    (tmp_path / "decoder.onnx").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ExecutionError, match=r"decoder\.onnx: ONNX Runtime .* refuses this graph"):
        OnnxRuntime(tmp_path, SPEC)


def test_a_missing_graph_is_an_error(root: Path) -> None:
    with pytest.raises(ExecutionError, match=r"decoder \(elsewhere.onnx\) is missing"):
        OnnxRuntime(root, dataclasses.replace(SPEC, graphs={**SPEC.graphs, "decoder": "elsewhere.onnx"}))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"head_dim": 4}, r"decoder.onnx: input past_key_values.0.key"),
        ({"layers": 2}, r"decoder.onnx: input past_key_values.1.key is None"),
        ({"hidden_size": 8}, r"decoder.onnx: input inputs_embeds"),
    ],
)
def test_graphs_of_another_model_are_an_error(root: Path, change: dict[str, Any], message: str) -> None:
    with pytest.raises(ExecutionError, match=message):
        OnnxRuntime(root, dataclasses.replace(SPEC, **change))


def test_input_of_another_shape_is_an_error(runtime: OnnxRuntime) -> None:
    with pytest.raises(ExecutionError, match=r"pixel_values \[1, 3, 5, 5\]"):
        runtime.encode_image(np.zeros((1, 3, 5, 5), np.float32))


def test_a_missing_package_is_an_error(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = builtins.__import__

    def without_onnxruntime(name: str, *args: Any, **kwargs: Any) -> Any:
        if name == "onnxruntime":
            raise ImportError("No module named 'onnxruntime'")
        return original(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without_onnxruntime)
    with pytest.raises(RuntimeUnavailable, match="pip install"):
        OnnxRuntime(root, SPEC)


def test_an_unknown_runtime_is_an_error(root: Path) -> None:
    with pytest.raises(BundleError, match="openvino"):
        load(root, dataclasses.replace(SPEC, runtime="openvino"), threads=1)


def test_versions_name_the_package(runtime: OnnxRuntime) -> None:
    import onnxruntime

    assert runtime.versions()["onnxruntime"] == onnxruntime.__version__
