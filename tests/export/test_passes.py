"""Graph passes on small graphs written as ONNX text, run before and after."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest

from edgevlm_deploy.errors import ExportError
from edgevlm_deploy.export import graph
from edgevlm_deploy.export.passes import (
    embedding_int8,
    half_initializers,
    matmul_integer,
    matmul_nbits,
    rms_norm,
    strip_traces,
)
from edgevlm_deploy.quantize import hqq, uniform
from edgevlm_deploy.quantize.table import QuantizedLinear, QuantizedTable, StaticActivation

RNG = np.random.default_rng(0)


def parse(text: str, scopes: dict[str, str], **initializers: np.ndarray) -> ir.Model:
    """`scopes`: output of a node → module that it comes from."""
    model = ir.from_onnx_text(f'<ir_version: 10, opset_import: ["" : 21]> {text}')
    for name, array in initializers.items():
        value = next(value for value in model.graph.inputs if value.name == name)
        model.graph.inputs.remove(value)
        value.const_value = ir.tensor(array, name=name)
        model.graph.register_initializer(value)
    for node in model.graph:
        module = scopes.get(node.outputs[0].name)
        if module is not None:
            node.metadata_props[graph.SCOPES] = repr(["", f"source.{module}", "linear"])
    return model


def run(model: ir.Model, **inputs: np.ndarray) -> np.ndarray:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(
        ir.to_proto(model).SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    output: np.ndarray = session.run(None, inputs)[0]
    return output


def linear_graph(weight: np.ndarray, bias: np.ndarray) -> ir.Model:
    rows, columns = weight.shape
    return parse(
        f"""g (float[n, {columns}] x, float[{columns}, {rows}] w, float[{rows}] b) => (float[n, {rows}] y) {{
            product = MatMul(x, w)
            y = Add(product, b)
        }}""",
        {"product": "layer", "y": "layer"},
        w=np.ascontiguousarray(weight.T),
        b=bias,
    )


def floats(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


def test_weight_only_product_equals_the_dequantised_one() -> None:
    weight, bias, x = floats(8, 64), floats(8), floats(3, 64)
    q, scale = uniform.quantize_symmetric(weight, 4, 32)
    linear = QuantizedLinear(q, scale, None, 4, 32)
    model = linear_graph(weight, bias)
    assert matmul_nbits.quantize_weights(model, QuantizedTable({"layer": linear}), 1) == {"layer"}
    np.testing.assert_allclose(run(model, x=x), x @ linear.dequantize().T + bias, rtol=1e-5, atol=1e-5)
    assert matmul_nbits.set_accuracy_level(model, 4) == 1


@pytest.mark.parametrize(("bits", "columns", "block"), [(4, 64, 32), (3, 96, 96), (4, 104, 32), (4, 96, 48)])
def test_fractions_of_zero_points_are_added(bits: int, columns: int, block: int) -> None:
    weight, bias, x = floats(8, columns), floats(8), floats(3, columns)
    linear = QuantizedLinear(*hqq.quantize(weight, bits, block), bits, block)
    model = linear_graph(weight, bias)
    assert matmul_nbits.quantize_weights(model, QuantizedTable({"layer": linear}), 1) == {"layer"}
    np.testing.assert_allclose(run(model, x=x), x @ linear.dequantize().T + bias, rtol=1e-5, atol=2e-5)
    rest = model.graph.initializers["layer.weight_remainder"].const_value.numpy()
    assert rest.any() and np.array_equal(rest.astype(np.float16), rest), "not exact in 16 bits"


def test_static_product_equals_integer_arithmetic() -> None:
    weight, bias, x = floats(8, 64), floats(8), floats(3, 64)
    q, scale = uniform.quantize_symmetric(weight, 8, 64)
    activation = StaticActivation(2.0**-6, 3)
    table = QuantizedTable({"layer": QuantizedLinear(q, scale, None, 8, 64, activation)})
    model = linear_graph(weight, bias)
    assert matmul_integer.quantize_static(model, table) == {"layer"}
    x_q = np.clip(np.rint(x / np.float32(2.0**-6)) + 3, -128, 127).astype(np.int64)
    expected = ((x_q - 3) @ q.T.astype(np.int64)) * (2.0**-6 * scale[:, 0].astype(np.float64)) + bias
    np.testing.assert_allclose(run(model, x=x), expected, rtol=1e-6, atol=1e-6)
    assert [node.op_type for node in model.graph] == ["QuantizeLinear", "MatMulIntegerToFloat"]


def test_quantising_rounds_half_to_even() -> None:
    weight = np.eye(4, dtype=np.float32)
    q, scale = uniform.quantize_symmetric(weight, 8, 4)
    table = QuantizedTable({"layer": QuantizedLinear(q, scale, None, 8, 4, StaticActivation(1.0, 0))})
    model = linear_graph(weight, np.zeros(4, np.float32))
    matmul_integer.quantize_static(model, table)
    x = np.array([[0.5, 1.5, 2.5, -0.5]], np.float32)
    np.testing.assert_allclose(run(model, x=x), np.array([[0, 2, 2, 0]]) * q[0, 0] * scale[0, 0])


def test_static_weights_in_groups_are_an_error() -> None:
    weight = floats(8, 64)
    q, scale = uniform.quantize_symmetric(weight, 8, 32)
    table = QuantizedTable({"layer": QuantizedLinear(q, scale, None, 8, 32, StaticActivation(1.0, 0))})
    with pytest.raises(ExportError, match="one scale per channel"):
        matmul_integer.quantize_static(linear_graph(weight, floats(8)), table)


def test_a_table_of_another_shape_is_an_error() -> None:
    q, scale = uniform.quantize_symmetric(floats(8, 32), 4, 32)
    table = QuantizedTable({"layer": QuantizedLinear(q, scale, None, 4, 32)})
    with pytest.raises(ExportError, match=r"layer: the graph multiplies by \(64, 8\)"):
        matmul_nbits.quantize_weights(linear_graph(floats(8, 64), floats(8)), table, 1)


def test_modules_outside_the_table_stay() -> None:
    model = linear_graph(floats(8, 64), floats(8))
    before = [node.op_type for node in model.graph]
    assert not matmul_nbits.quantize_weights(model, QuantizedTable({}), 1)
    assert not matmul_integer.quantize_static(model, QuantizedTable({}))
    assert not embedding_int8.quantize_embeddings(model, QuantizedTable({}))
    assert [node.op_type for node in model.graph] == before


def test_embedding_rows_equal_the_dequantised_ones() -> None:
    weight = floats(10, 6)
    q, scale = uniform.quantize_symmetric(weight, 8, 6)
    linear = QuantizedLinear(q, scale, None, 8, 6)
    model = parse(
        "g (int64[b, t] ids, float[10, 6] w) => (float[b, t, 6] y) { y = Gather(w, ids) }",
        {"y": "embed"},
        w=weight,
    )
    assert embedding_int8.quantize_embeddings(model, QuantizedTable({"embed": linear})) == {"embed"}
    ids = np.array([[3, 0, 9]])
    np.testing.assert_array_equal(run(model, ids=ids), linear.dequantize()[ids])


def rms_graph(exponent: float) -> ir.Model:
    return parse(
        """g (float[b, t, 8] x, float[8] w, float e, int64[1] a, float eps) => (float[b, t, 8] y) {
            square = Pow(x, e)
            mean = ReduceMean<keepdims=1>(square, a)
            sum = Add(mean, eps)
            root = Sqrt(sum)
            inverse = Reciprocal(root)
            scaled = Mul(x, inverse)
            y = Mul(w, scaled)
        }""",
        {"y": "norm"},
        w=floats(8),
        e=np.array(exponent, np.float32),
        a=np.array([-1]),
        eps=np.array(1e-5, np.float32),
    )


def test_rms_norm_is_fused_and_equal() -> None:
    model, x = rms_graph(2), floats(2, 3, 8)
    before = run(model, x=x)
    assert rms_norm.fuse_rms_norm(model) == 1
    assert [node.op_type for node in model.graph][-1] == "SimplifiedLayerNormalization"
    np.testing.assert_allclose(run(model, x=x), before, rtol=1e-6, atol=1e-7)


def test_another_power_is_no_rms_norm() -> None:
    assert rms_norm.fuse_rms_norm(rms_graph(4)) == 0


def half_graph(weight: np.ndarray) -> ir.Model:
    shape = ", ".join(str(size) for size in weight.shape)
    return parse(
        f"g (float[{shape}] x, float[{shape}] w) => (float[{shape}] y) {{ y = Add(x, w) }}", {}, w=weight
    )


def test_what_half_holds_exactly_is_stored_in_half() -> None:
    weight = floats(8, 16).astype(np.float16).astype(np.float32)
    model = half_graph(weight)
    assert half_initializers.store_half(model) == {"w"}
    assert {value.dtype for value in model.graph.initializers.values()} == {ir.DataType.FLOAT16}
    np.testing.assert_array_equal(run(model, x=np.zeros_like(weight)), weight)


@pytest.mark.parametrize("odd", [1 + 2.0**-12, 1e6, 1e-9], ids=str)
def test_what_half_would_change_stays(odd: float) -> None:
    weight = np.zeros((8, 16), np.float32)
    weight[3, 3] = odd
    assert not half_initializers.store_half(half_graph(weight))


def test_traces_are_dropped_and_scopes_kept() -> None:
    model = linear_graph(floats(8, 64), floats(8))
    node = model.graph[0]
    node.metadata_props["pkg.torch.onnx.stack_trace"] = "File /home/someone/site-packages/x.py"
    assert strip_traces.strip_traces(model) == 1
    assert graph.module_of(node) == "layer"
    assert list(node.metadata_props) == [graph.SCOPES]


def test_large_graphs_keep_their_weights_in_a_second_file(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(graph, "SINGLE_FILE_BYTES", 1000)
    model = linear_graph(floats(8, 64), floats(8))
    x = floats(2, 64)
    before = run(model, x=x)
    files = graph.save(model, tmp_path / "g.onnx")
    assert [path.name for path in files] == ["g.onnx", "g.onnx.data"]
    session = onnxruntime.InferenceSession(str(files[0]), providers=["CPUExecutionProvider"])
    np.testing.assert_array_equal(session.run(None, {"x": x})[0], before)
    external = onnx.load(files[0], load_external_data=False)
    assert external.ByteSize() < 1000


def test_an_edited_graph_links_to_the_weights_that_it_was_read_with(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(graph, "SINGLE_FILE_BYTES", 1000)
    x = floats(2, 64)
    first = graph.save(linear_graph(floats(8, 64), floats(8)), tmp_path / "g.onnx")
    (tmp_path / "copy").mkdir()
    for _ in range(2):
        files = graph.save(graph.load(first[0]), tmp_path / "copy" / "edited.onnx")
    assert [path.name for path in files] == ["edited.onnx", "g.onnx.data"]
    assert files[1].samefile(first[1])
    expected, got = (
        onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"]).run(None, {"x": x})[0]
        for path in (first[0], files[0])
    )
    np.testing.assert_array_equal(got, expected)
