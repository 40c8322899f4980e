"""Compiling for ONNX Runtime, from a torch module to verified graphs."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from edgevlm_runner.contract import ModelSpec, to_json
from edgevlm_runner.inputs import Inputs

from edgevlm_deploy import backends, paging, resources
from edgevlm_deploy.backends import onnxruntime
from edgevlm_deploy.backends import tensorrt as tensorrt_backend
from edgevlm_deploy.errors import ExportError, MissingExtraError
from edgevlm_deploy.export import graph
from edgevlm_deploy.lint import tensorrt
from edgevlm_deploy.plan import Plan
from edgevlm_deploy.quantize import uniform
from edgevlm_deploy.quantize.quantized_model import QuantizedModel
from edgevlm_deploy.quantize.table import QuantizedLinear, QuantizedTable, StaticActivation
from edgevlm_deploy.target import Backend


def test_exact_graphs_agree_with_torch(compiled: Any) -> None:
    found = compiled.graphs.verification
    assert found["samples"] == 3
    assert found["tokens"] == 3 * 32
    for name in ("vision_difference", "embedding_difference", "logits_difference"):
        assert 0 <= found[name] <= 1e-5


def test_int8_arithmetic_of_the_shipped_graphs_is_measured(compiled: Any) -> None:
    found = compiled.graphs.verification
    assert 1e-5 < found["shipped_logits_difference"] < 0.1
    assert found["shipped_max_abs_logit_difference"] > 0
    assert 0 <= found["shipped_tokens_equal"] <= 1


def test_files_are_those_on_disk(compiled: Any, spec: ModelSpec) -> None:
    on_disk = {
        str(path.relative_to(compiled.root)): path.stat().st_size
        for path in compiled.root.rglob("*")
        if path.is_file()
    }
    assert compiled.graphs.files == on_disk
    assert set(spec.graphs.values()) == set(on_disk)


def test_every_module_is_quantised_and_nothing_else(
    compiled: Any, spec: ModelSpec, table: QuantizedTable
) -> None:
    operators: dict[str, str] = {}
    for path in spec.graphs.values():
        for node in graph.load(compiled.root / path).graph:
            module = graph.module_of(node)
            if node.op_type in ("MatMul", "Gemm", "MatMulNBits", "MatMulIntegerToFloat"):
                if module is None:  # what zero-points with fractions need beside their product
                    assert node.name.endswith(("/block_sums", "/remainder"))
                    continue
                operators[module] = node.op_type
    assert operators.pop("model.text_model.layers.0.self_attn.q_proj") == "MatMulNBits"
    assert operators.pop("model.connector.modality_projection.proj") == "MatMulIntegerToFloat"
    assert set(operators.values()) == {"MatMulNBits", "MatMulIntegerToFloat"}
    assert len(operators) == len(table) - 1 - 2  # the embedding is a Gather


def test_query_key_and_value_share_one_quantised_input(compiled: Any, spec: ModelSpec) -> None:
    model = graph.load(compiled.root / spec.graphs["vision_encoder"])
    inputs: dict[str, set[str]] = {}
    for node in model.graph:
        if node.op_type == "MatMulIntegerToFloat":
            layer, _, projection = str(graph.module_of(node)).rpartition(".")
            inputs.setdefault(projection, set()).add(f"{layer}:{node.inputs[0].name}")
    assert inputs["q_proj"] == inputs["k_proj"] == inputs["v_proj"]


def test_biases_are_folded_into_the_integer_products(compiled: Any, spec: ModelSpec) -> None:
    model = graph.load(compiled.root / spec.graphs["vision_encoder"])
    products = [node for node in model.graph if node.op_type == "MatMulIntegerToFloat"]
    with_bias = {graph.module_of(node) for node in products if len(node.inputs) == 7}
    assert {graph.module_of(node) for node in products} - with_bias == {
        "model.connector.modality_projection.proj"
    }


def test_norms_and_rotary_embeddings_are_fused(compiled: Any, spec: ModelSpec) -> None:
    model = graph.load(compiled.root / spec.graphs["decoder"])
    counted = [node.op_type for node in model.graph]
    assert counted.count("SimplifiedLayerNormalization") == 2 * spec.layers + 1
    assert counted.count("GroupQueryAttention") == spec.layers
    assert not {"Pow", "Cos", "Sin", "Neg"} & set(counted)


def test_the_linter_says_that_tensorrt_cannot_take_these_graphs(compiled: Any, spec: ModelSpec) -> None:
    orin = resources.target("orin")
    for path, operator in (
        (spec.graphs["decoder"], "GroupQueryAttention"),
        (spec.graphs["embedding"], "Gather"),
    ):
        report = tensorrt.lint(compiled.root / path, orin, {})
        assert report.exit_code == 5
        assert any(operator in one.message for one in report.findings)
    vision = tensorrt.lint(compiled.root / spec.graphs["vision_encoder"], orin, {})
    sentences = [one.message for one in vision.findings if one.rule == "operators"]
    assert any(
        "com.microsoft::MatMulIntegerToFloat is ONNX Runtime's own operator" in one for one in sentences
    )
    assert all("compile the model for orin" in one for one in sentences)


def test_graphs_hold_no_traces_of_this_machine(compiled: Any, spec: ModelSpec) -> None:
    for path in spec.graphs.values():
        text = (compiled.root / path).read_bytes()
        assert b"site-packages" not in text
        assert os.fsencode(Path.home()) not in text


def test_operators_stay_within_what_1_23_reads(compiled: Any, spec: ModelSpec) -> None:
    for path in spec.graphs.values():
        model = graph.load(compiled.root / path)
        assert model.ir_version == 10
        assert model.opset_imports[""] == 21
        assert set(model.opset_imports) <= {"", "com.microsoft"}


@pytest.mark.slow
def test_without_quantisation_weights_are_stored_in_half(
    load_source: Callable[[], Any], spec: ModelSpec, samples: list[Inputs], tmp_path: Path
) -> None:
    made = onnxruntime.compile(load_source, None, spec, samples, tmp_path)
    assert made.verification["shipped_logits_difference"] <= 1e-5
    assert made.verification["shipped_tokens_equal"] == 1
    for path in spec.graphs.values():
        large = [
            value
            for value in graph.load(tmp_path / path).graph.initializers.values()
            if value.const_value.size >= 64 and not value.name.startswith("rotary.")
        ]
        assert {value.dtype for value in large} <= {ir.DataType.FLOAT16, ir.DataType.INT64}


@pytest.mark.slow
def test_changed_float_parameters_reach_the_graphs(
    load_source: Callable[[], Any], spec: ModelSpec, samples: list[Inputs], tmp_path: Path
) -> None:
    name = "model.text_model.layers.0.input_layernorm.weight"
    weight = np.linspace(0.5, 2, 64).astype(np.float32)
    onnxruntime.compile(
        load_source, QuantizedModel(QuantizedTable({}), {name: weight}), spec, samples[2:], tmp_path
    )
    stored = [
        graph.constant(node.inputs[1])
        for node in graph.load(tmp_path / spec.graphs["decoder"]).graph
        if node.op_type == "SimplifiedLayerNormalization"
    ]
    np.testing.assert_array_equal(stored[0], weight.astype(np.float16).astype(np.float32))


@pytest.mark.slow
def test_static_activations_in_the_decoder(
    load_source: Callable[[], Any], spec: ModelSpec, samples: list[Inputs], tmp_path: Path
) -> None:
    modules = {}
    for name, module in load_source().named_modules():
        if (
            name.startswith("model.text_model.layers")
            and hasattr(module, "weight")
            and module.weight.ndim == 2
        ):
            q, scale = uniform.quantize_symmetric(module.weight.detach().numpy(), 8, module.weight.shape[1])
            activation = StaticActivation(2.0**-6, 0)
            modules[name] = QuantizedLinear(q, scale, None, 8, module.weight.shape[1], activation)
    made = onnxruntime.compile(load_source, QuantizedModel(QuantizedTable(modules)), spec, samples, tmp_path)
    assert made.verification["logits_difference"] <= 1e-5


@pytest.mark.slow
def test_a_module_without_a_product_is_an_error(
    load_source: Callable[[], Any],
    table: QuantizedTable,
    spec: ModelSpec,
    samples: list[Inputs],
    tmp_path: Path,
) -> None:
    wrong = QuantizedTable({"model.text_model.layers.9.mlp.up_proj": table["lm_head"]})
    with pytest.raises(ExportError, match=r"No matrix product .*layers\.9\.mlp\.up_proj"):
        onnxruntime.compile(load_source, QuantizedModel(wrong), spec, samples, tmp_path)


def test_half_precision_leaves_what_would_overflow() -> None:
    import torch

    layer = torch.nn.Linear(2, 1)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[1e6, 1.0001]]))
        layer.bias.fill_(1.0001)
    onnxruntime.half_precision(layer)
    assert layer.weight.tolist() == [[1e6, pytest.approx(1.0001, abs=1e-7)]]
    assert layer.bias.item() == 1.0


def test_a_backend_without_its_packages_is_refused_early(monkeypatch: pytest.MonkeyPatch) -> None:
    backends.require_packages(Backend.LITERT)
    monkeypatch.setattr(sys, "path", [])
    with pytest.raises(
        MissingExtraError, match=r"needs litert-torch, .*pip install 'edgevlm\[compile,litert"
    ):
        backends.require_packages(Backend.LITERT)


_ON_A_DEVICE = """
import json, sys
from pathlib import Path
import numpy as np
from edgevlm_runner.contract import ModelSpec, from_json
from edgevlm_runner.generate import generate
from edgevlm_runner.runtimes import load
root = Path(sys.argv[1])
spec = from_json(ModelSpec, json.loads((root / "spec.json").read_text()), "spec.json")
inputs = np.load(root / "inputs.npz")
with load(root, spec, 1) as runtime:
    made = generate(runtime, spec, inputs["pixel_values"], inputs["input_ids"])
    print(json.dumps([runtime.versions()["onnxruntime"], made.token_ids]))
"""


def test_graphs_run_on_onnxruntime_1_23(
    compiled: Any, spec: ModelSpec, samples: list[Inputs], repository: Path, tmp_path: Path
) -> None:
    """The last version for JetPack 6's Python 3.10. Needs an interpreter with onnxruntime 1.23 and numpy:

    python3 -m venv V; V/bin/pip install onnxruntime==1.23.2; EDGEVLM_ORT_1_23_PYTHON=V/bin/python pytest
    """
    import json

    from edgevlm_runner.generate import generate
    from edgevlm_runner.runtimes import load

    python = os.environ.get("EDGEVLM_ORT_1_23_PYTHON")
    if not python:
        pytest.skip("EDGEVLM_ORT_1_23_PYTHON names no interpreter with onnxruntime 1.23")
    endless = dataclasses.replace(spec, eos_token_ids=(), max_new_tokens=32)
    (compiled.root / "spec.json").write_text(json.dumps(to_json(endless)))
    sample = samples[0]
    assert sample.pixel_values is not None
    np.savez(compiled.root / "inputs.npz", pixel_values=sample.pixel_values, input_ids=sample.input_ids)
    try:
        out = subprocess.run(
            [python, "-c", _ON_A_DEVICE, str(compiled.root)],
            env={"PYTHONPATH": str(repository / "runners"), "PATH": os.environ["PATH"]},
            capture_output=True,
            text=True,
            check=False,
        )
    finally:
        (compiled.root / "spec.json").unlink()
        (compiled.root / "inputs.npz").unlink()
    assert out.returncode == 0, out.stderr
    version, tokens = json.loads(out.stdout)
    assert version.startswith("1.23.")
    with load(compiled.root, endless, 1) as runtime:
        made = generate(runtime, endless, sample.pixel_values, sample.input_ids)
    assert tuple(tokens) == made.token_ids


def test_every_backend_has_its_compiler() -> None:
    here = Plan(resources.recipe("default"), resources.target("host-cpu"), {})
    assert backends.compiler(here, list) is onnxruntime.compile
    there = dataclasses.replace(here, target=resources.target("orin"))
    assert backends.compiler(there, list).func is tensorrt_backend.compile  # type: ignore[attr-defined]


def test_a_paged_model_gives_the_graphs_of_one_in_memory(
    load_source: Callable[[], Any],
    table: QuantizedTable,
    spec: ModelSpec,
    samples: list[Inputs],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With a decoder that is partly fp16; weights over two files, which verification links to."""
    monkeypatch.setattr(paging, "LARGE", 1)
    monkeypatch.setattr(graph, "SINGLE_FILE_BYTES", 50_000)
    kept = {name: linear for name, linear in table.items() if ".1." not in name}
    quantized = QuantizedModel(QuantizedTable(kept))

    def stored() -> Any:
        return load_source().bfloat16()

    def paged() -> Any:
        model = stored()
        paging.keep(model)
        return model

    found = {}
    for name, load in (("paged", paged), ("resident", lambda: stored().float())):
        made = onnxruntime.compile(load, quantized, spec, samples, tmp_path / name)
        found[name] = made.verification, made.files
    assert found["paged"][0] == pytest.approx(found["resident"][0], abs=1e-5)
    sizes, expected = found["paged"][1], found["resident"][1]
    assert sizes.keys() == expected.keys() and "graphs/decoder.onnx.data" in sizes
    assert sizes["graphs/decoder.onnx.data"] == pytest.approx(expected["graphs/decoder.onnx.data"], rel=0.01)
    assert not [path.name for path in (tmp_path / "paged").iterdir() if path.name.startswith(".")]
