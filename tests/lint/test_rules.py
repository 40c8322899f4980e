"""Every rule on a small graph in ONNX text that breaks it, and graphs that break none."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import onnx_ir as ir
import pytest

from edgevlm_deploy import resources
from edgevlm_deploy.lint import tensorrt
from edgevlm_deploy.lint.subject import Finding, Profile, Severity
from edgevlm_deploy.target import Target

Lint = Callable[..., tensorrt.Report]


def board(release: str, name: str = "orin", **changes: object) -> Target:
    """A shipped target with another TensorRT."""
    shipped = resources.target(name)
    return shipped.model_copy(update={"software": {**shipped.software, "tensorrt": release}, **changes})


@pytest.fixture
def lint(tmp_path: Path) -> Lint:
    def run(
        text: str,
        target: Target | None = None,
        opset: int = 20,
        domains: str = "",
        profiles: Mapping[str, Profile] | None = None,
    ) -> tensorrt.Report:
        model = ir.from_onnx_text(f'<ir_version: 10, opset_import: ["" : {opset}{domains}]> {text}')
        path = tmp_path / "graph.onnx"
        ir.save(model, path)
        return tensorrt.lint(path, target or board("10.3"), profiles or {})

    return run


def only(report: tensorrt.Report) -> Finding:
    assert len(report.findings) == 1, report.findings
    return report.findings[0]


CLEAN_INT8 = """
    g (float[2, 4] x) => (float[2, 3] y)
      <float xs = {0.5}, int8 xz = {0},
       int8[4, 3] w = {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12},
       float[3] ws = {0.5, 0.25, 0.125}, int8[3] wz = {0, 0, 0}> {
        q = QuantizeLinear(x, xs, xz)
        d = DequantizeLinear(q, xs, xz)
        wd = DequantizeLinear <axis = 1> (w, ws, wz)
        y = MatMul(d, wd)
    }
"""


def int4_graph(rows: int = 128, block: int = 64, axis: int = 0, scales: int | None = None) -> str:
    blocks = scales or rows // block
    ones = ", ".join
    return f"""
        g (float[batch, {rows}] x) => (float[batch, 2] y)
          <int4[{rows}, 2] w = {{{ones(["1"] * rows * 2)}}},
           float[{blocks}, 2] s = {{{ones(["0.5"] * blocks * 2)}}},
           int4[{blocks}, 2] z = {{{ones(["0"] * blocks * 2)}}}> {{
            d = DequantizeLinear <axis = {axis}, block_size = {block}> (w, s, z)
            y = MatMul(x, d)
        }}
    """


BATCH = {"batch": Profile((1,), (1,), (8,))}


@pytest.mark.parametrize("release", ["8.5.2", "8.6.2", "10.3", "10.13", "10.16.2", "11.1"])
def test_an_int8_graph_fits_every_generation(lint: Lint, release: str) -> None:
    report = lint(CLEAN_INT8, board(release), opset=17)
    assert report.findings == ()
    assert report.exit_code == 0


def test_an_int4_graph_fits_the_generations_that_have_it(lint: Lint) -> None:
    report = lint(int4_graph(), board("10.16.2"), opset=21, profiles=BATCH)
    assert report.findings == ()
    # 128·2 half bytes, 2·2 scales, 2·2 half-byte zero-points; 8 rows in, 8 rows out.
    assert report.memory.weights_bytes == 128 + 16 + 2
    assert report.memory.inputs_outputs_bytes == 8 * 128 * 4 + 8 * 2 * 4
    assert report.memory.activations_bytes == 0
    old = lint(int4_graph(), board("8.6.2"), opset=21, profiles=BATCH)
    assert any(one.rule == "int4_blocks" and "10.0 is the first" in one.message for one in old.findings)


def test_opset(lint: Lint) -> None:
    relu = "g (float[2] x) => (float[2] y) { y = Relu(x) }"
    newer = only(lint(relu, board("8.5.2"), opset=18))
    assert (newer.rule, newer.severity) == ("opset", Severity.ERROR)
    assert "opset 18" in newer.message and "7 to 17" in newer.message
    assert only(lint(relu, opset=8)).severity is Severity.ERROR
    # 10.3 documents 20 and is built with an ONNX of opset 21; 22 is beyond both.
    assert only(lint(relu, opset=21)).severity is Severity.WARNING
    assert only(lint(relu, opset=22)).severity is Severity.ERROR


def test_operators(lint: Lint) -> None:
    unknown = only(lint("g (float[2, 2] x) => (float y) { y = Det(x) }"))
    assert (
        unknown.rule == "operators" and "Det is not among the operators of TensorRT 10.3" in unknown.message
    )
    norm = "g (float[2, 4] x) => (float[2, 4] y) <float[4] w = {1, 1, 1, 1}> { y = LayerNormalization(x, w) }"
    assert only(lint(norm, board("8.5.2"), opset=17)).rule == "operators"
    assert lint(norm, board("8.6.2"), opset=17).findings == ()


def test_operators_of_onnx_runtime_and_of_plugins_are_told_apart(lint: Lint) -> None:
    text = "g (float[2] x) => (float[2] y) {{ y = {domain}.Thing(x) }}"
    theirs = lint(text.format(domain="com.microsoft"), domains=', "com.microsoft" : 1')
    finding = next(one for one in theirs.findings if one.rule == "operators")
    assert "com.microsoft::Thing is ONNX Runtime's own operator" in finding.message
    assert "compile the model for orin" in finding.message
    plugin = lint(text.format(domain="mine"), domains=', "mine" : 1')
    finding = next(one for one in plugin.findings if one.rule == "operators")
    assert "only with a plugin" in finding.message


@pytest.mark.parametrize(
    ("graph", "opset", "sentence"),
    [
        (
            "g (float[1, 2, 3, 4] q, float[1, 2, 5, 4] p) => (float[1, 2, 3, 4] y) "
            "{ y = Attention(q, q, q, , p, p) }",
            23,
            "Attention with past or present keys",
        ),
        ("g (float[1, 3, 8] q) => (float[1, 3, 8] y) { y = Attention(q, q, q) }", 23, "Attention of rank 3"),
        (
            "g (float[2, 4] x) => (float[2, 4] y, float[2, 1] m) <float[4] w = {1, 1, 1, 1}> "
            "{ y, m = LayerNormalization(x, w) }",
            20,
            "LayerNormalization with a second output",
        ),
        (
            "g (float[5000] x) => (float[4000] v, int64[4000] i) <int64[1] k = {4000}> { v, i = TopK(x, k) }",
            20,
            "TopK with k = 4,000; expected fewer than 3,840",
        ),
        (
            "g (float[1, 1, 2, 2] x) => (float[1, 1, 4, 4] y) <float[4] s = {1, 1, 2, 2}> "
            '{ y = Resize <mode = "cubic"> (x, , s) }',
            20,
            "Resize of mode cubic",
        ),
        (
            "g (float[2, 2] x, int64[1] a) => (float[n, m] y) { y = ReduceMean(x, a) }",
            20,
            "over computed axes",
        ),
    ],
)
def test_restrictions(lint: Lint, graph: str, opset: int, sentence: str) -> None:
    found = [one for one in lint(graph, board("10.16.2"), opset=opset).findings if one.rule == "restrictions"]
    assert any(sentence in one.message for one in found)


def test_types(lint: Lint) -> None:
    finding = only(lint("g (int32[2, 2] x) => (int32[2, 2] y) { y = MatMul(x, x) }"))
    assert finding.rule == "types" and "MatMul of INT32 (x)" in finding.message
    integers = "g (int64[2] x) => (int64[2] y) { y = Add(x, x) }"
    assert lint(integers).findings == ()
    # Before INT64 was a type of its own it was read as INT32.
    assert lint(integers, board("8.6.2"), opset=17).findings == ()
    gathered = """
        g (int64[2] i) => (int8[2, 2] y) <int8[3, 2] w = {1, 2, 3, 4, 5, 6}> { y = Gather(w, i) }
    """
    assert only(lint(gathered)).message.startswith("Gather of INT8")


def test_qdq_pairs(lint: Lint) -> None:
    open_end = """
        g (float[2] x) => (int8[2] q) <float s = {0.5}, int8 z = {0}> { q = QuantizeLinear(x, s, z) }
    """
    assert "q is an output of the graph" in only(lint(open_end)).message
    between = """
        g (float[2] x) => (float[2] y) <float s = {0.5}, int8 z = {0}> {
            q = QuantizeLinear(x, s, z)
            r = Identity(q)
            y = DequantizeLinear(r, s, z)
        }
    """
    report = lint(between, board("8.6.2"), opset=17)
    assert [one.rule for one in report.findings] == ["qdq_pairs", "qdq_pairs"]
    assert "feeds Identity" in report.findings[0].message
    assert "reads the output of Identity" in report.findings[1].message


def test_scales(lint: Lint) -> None:
    zero = only(lint(CLEAN_INT8.replace("{0.5, 0.25, 0.125}", "{0.5, 0.0, -1.0}")))
    assert zero.rule == "scales" and "2 of 3 scales are zero, negative" in zero.message
    computed = """
        g (float[2] x, float s) => (float[2] y) <int8 z = {0}> {
            q = QuantizeLinear(x, s, z)
            y = DequantizeLinear(q, s, z)
        }
    """
    assert [one.message.split(";")[0] for one in lint(computed).findings] == ["a computed scale"] * 2


def test_zero_points(lint: Lint) -> None:
    shifted = lint(CLEAN_INT8.replace("int8 xz = {0}", "int8 xz = {3}"))
    assert {one.rule for one in shifted.findings} == {"zero_points"}
    assert "other than zero" in shifted.findings[0].message
    unsigned = lint(CLEAN_INT8.replace("int8 xz = {0}", "uint8 xz = {0}"))
    assert any("a zero-point of type UINT8" in one.message for one in unsigned.findings)
    missing = lint(
        CLEAN_INT8.replace("QuantizeLinear(x, xs, xz)", "QuantizeLinear(x, xs)").replace(
            "(q, xs, xz)", "(q, xs)"
        )
    )
    severities = {one.severity for one in missing.findings if one.rule == "zero_points"}
    assert severities == {Severity.ERROR, Severity.WARNING}


def test_granularity(lint: Lint) -> None:
    per_column = """
        g (float[2, 2] x) => (float[2, 2] y) <float[2] s = {0.5, 0.25}, int8[2] z = {0, 0}> {
            q = QuantizeLinear <axis = 1> (x, s, z)
            y = DequantizeLinear <axis = 1> (q, s, z)
        }
    """
    assert {"one scale for the whole tensor" in one.message for one in lint(per_column).findings} == {True}
    square = (
        CLEAN_INT8.replace("[4, 3] w", "[3, 3] w")
        .replace(", 10, 11, 12}", "}")
        .replace("[2, 4] x", "[2, 3] x")
    )
    assert lint(square).findings == ()
    wrong_axis = only(lint(square.replace("axis = 1", "axis = 0")))
    assert (
        wrong_axis.rule == "granularity" and "expected the axis of output channels, 1" in wrong_axis.message
    )
    too_few = only(lint(CLEAN_INT8.replace("axis = 1", "axis = 0")))
    assert "3 scales along axis 0 of a weight of shape [4, 3]" in too_few.message


def test_the_output_axis_is_found_behind_a_transpose(lint: Lint) -> None:
    text = """
        g (float[2, 3] x) => (float[2, 3] y)
          <int8[3, 3] w = {1, 2, 3, 4, 5, 6, 7, 8, 9},
           float[3] s = {0.5, 0.25, 0.125}, int8[3] z = {0, 0, 0}> {
            d = DequantizeLinear <axis = 0> (w, s, z)
            t = Transpose <perm = [1, 0]> (d)
            y = MatMul(x, t)
        }
    """
    assert lint(text).findings == ()
    assert (
        "expected the axis of output channels, 0" in only(lint(text.replace("axis = 0", "axis = 1"))).message
    )


@pytest.mark.parametrize(
    ("graph", "sentence"),
    [
        (int4_graph(block=32), "blocks of 32; TensorRT has 64 and 128"),
        (int4_graph(rows=96, scales=2), "whole blocks"),
        (int4_graph(axis=1, scales=2), "the axis that the product sums over"),
        (
            int4_graph().replace("MatMul(x, d)", "Add(x, d)").replace("[batch, 128] x", "[128, 2] x"),
            "feed Add",
        ),
    ],
)
def test_int4_blocks(lint: Lint, graph: str, sentence: str) -> None:
    report = lint(graph, board("10.16.2"), opset=21, profiles=BATCH)
    found = [one for one in report.findings if one.rule == "int4_blocks"]
    assert any(sentence in one.message for one in found), report.findings


def test_int4_is_for_weights(lint: Lint) -> None:
    text = """
        g (float[2, 2] x) => (float[2, 2] y) <float s = {0.5}, int4 z = {0}> {
            q = QuantizeLinear(x, s, z)
            y = DequantizeLinear(q, s, z)
        }
    """
    report = lint(text, board("10.16.2"), opset=21)
    assert {one.rule for one in report.findings} == {"int4_blocks"}
    assert "an INT4 activation" in report.findings[0].message


def test_formats(lint: Lint) -> None:
    nano = only(lint(CLEAN_INT8, board("8.6.2", "jetson-nano"), opset=17))
    assert nano.rule == "formats" and "INT8 on jetson-nano" in nano.message
    fp8 = """
        g (float[2] x, float8e4m3fn z) => (float[2] y) <float s = {0.5}> {
            q = QuantizeLinear(x, s, z)
            y = DequantizeLinear(q, s, z)
        }
    """
    on_orin = [one.message for one in lint(fp8).findings if one.rule == "formats"]
    assert on_orin == [
        "FP8 on orin (Tegra Orin (SM 8.7)); expected SM 8.9 or later. Quantise to int8 for this board."
    ]
    assert not [one for one in lint(fp8, resources.target("thor")).findings if one.rule == "formats"]


def test_data_dependent(lint: Lint) -> None:
    finding = next(
        one
        for one in lint("g (float[2] x) => (int64[1, n] y) { y = NonZero(x) }").findings
        if one.rule == "data_dependent"
    )
    assert "NonZero: the size of its output depends on values" in finding.message
    top = "g (float[4] x, int64[1] k) => (float[n] v, int64[n] i) { v, i = TopK(x, k) }"
    assert any("TopK with a computed k" in one.message for one in lint(top).findings)


DYNAMIC = "g (float[batch, 2] x, float[batch, 2] m) => (float[batch, 2] y) { y = Mul(x, m) }"


@pytest.mark.parametrize(
    ("profiles", "sentence"),
    [
        ({}, "dynamic shape [batch, 2] without an optimisation profile"),
        ({"x": Profile((1,), (1,), (8,))}, "expected 2 sizes in each of the three"),
        ({"x": Profile((1, 2), (9, 2), (8, 2))}, "is not min ≤ opt ≤ max"),
        ({"x": Profile((1, 2), (1, 2), (8, 4))}, "the size 2 is fixed in the graph"),
        (
            {"x": Profile((1, 2), (1, 2), (8, 2)), "m": Profile((1, 2), (1, 2), (4, 2))},
            "batch is 1:1:4 here and 1:1:8 in x",
        ),
        ({**BATCH, "z": Profile((1,), (1,), (1,))}, "a profile for z, which is no input"),
    ],
)
def test_profiles(lint: Lint, profiles: dict[str, Profile], sentence: str) -> None:
    report = lint(DYNAMIC, profiles=profiles)
    found = [one for one in report.findings if one.rule == "profiles"]
    assert any(sentence in one.message for one in found), report.findings


def test_a_symbol_covers_every_input_that_has_it(lint: Lint) -> None:
    report = lint(DYNAMIC, profiles=BATCH)
    assert report.findings == ()
    assert report.memory.inputs_outputs_bytes == 3 * 8 * 2 * 4


def test_memory(lint: Lint) -> None:
    text = """
        g (float[batch, 1000] x) => (float[batch, 1000] y) {
            a = Relu(x)
            b = Sigmoid(a)
            c = Add(a, b)
            y = Tanh(c)
        }
    """
    small = board(
        "10.3",
        memory_bytes=100_000,
        budgets=resources.target("orin").budgets.model_copy(update={"peak_rss_bytes": None}),
    )
    report = lint(text, small, profiles=BATCH)
    # At the Add, a, b and c are alive at the same time.
    assert report.memory.activations_bytes == 3 * 8 * 1000 * 4
    assert report.memory.total_bytes == 5 * 8 * 1000 * 4
    finding = only(report)
    assert (
        finding.rule == "memory"
        and "about 0.2 MB" in finding.message
        and "orin leaves 0.1 MB" in finding.message
    )
    assert lint(text, profiles=BATCH).findings == ()


def test_constants_count_as_weights(lint: Lint) -> None:
    report = lint("""
        g (float[4] x) => (float[4] y) {
            c = Constant <value = float[4] {1, 2, 3, 4}> ()
            d = Neg(c)
            y = Add(x, d)
        }
    """)
    assert report.findings == ()
    assert (report.memory.weights_bytes, report.memory.activations_bytes) == (16, 0)


def test_a_size_that_cannot_be_inferred_makes_the_estimate_a_lower_bound(lint: Lint) -> None:
    report = lint("g (float[2] x) => (float[2] y) { a = mine.Thing(x)  y = Relu(a) }", domains=', "mine" : 1')
    assert report.memory.unknown == 1
    assert any(one.rule == "memory" and "lower bound" in one.message for one in report.findings)


def test_every_rule_has_a_test_that_breaks_it() -> None:
    source = "".join(file.read_text() for file in Path(__file__).parent.glob("test_*.py"))
    missing = [rule.__name__ for rule in tensorrt.RULES if f"def test_{rule.__name__}" not in source]
    assert missing == []
