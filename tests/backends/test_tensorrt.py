"""Compiling for each generation of TensorRT: what the graphs are made of, and that they compute the same."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from edgevlm_runner.contract import ModelSpec
from edgevlm_runner.errors import ExecutionError
from edgevlm_runner.generate import generate
from edgevlm_runner.inputs import Inputs
from edgevlm_runner.runtimes import load
from edgevlm_runner.runtimes.emulation import EmulatedTensorRt

from edgevlm_deploy import resources
from edgevlm_deploy.backends import CompiledGraphs, tensorrt
from edgevlm_deploy.errors import ExportError
from edgevlm_deploy.export import graph, readback
from edgevlm_deploy.plan import Plan
from edgevlm_deploy.quantize import uniform
from edgevlm_deploy.quantize.quantized_model import QuantizedModel
from edgevlm_deploy.quantize.table import QuantizedLinear, QuantizedTable, StaticActivation
from edgevlm_deploy.target import Target

CASES = {
    "jetson-nano": "fp16",
    "xavier-nx": "int8",
    "orin": "int4",
    "orin-nano": "smoothquant",
    "thor": "int4",
    "orin-jetpack7": "int4",
    "orin-jetpack7 11.1": "smoothquant",
}
"""Target, and another release than its own → precision; together every form that a graph can take."""
WITH_HIDDEN = ("xavier-nx", "orin", "orin-jetpack7")
"""Fp32, fp16 and the cache that is updated in place; the others' decoders give logits alone."""


def table_of(precision: str, load_source: Callable[[], Any]) -> QuantizedTable:
    modules = {}
    for name, module in load_source().named_modules():
        weight = getattr(module, "weight", None)
        if precision == "fp16" or weight is None or weight.ndim != 2 or "position_embedding" in name:
            continue
        weight = weight.detach().numpy()
        bits, block, activation = 8, weight.shape[1], None
        is_vision = "vision_model" in name or "connector" in name
        is_layer = "text_model.layers" in name
        if is_vision or (is_layer and precision == "smoothquant"):
            activation = StaticActivation(2.0**-6, 0)  # narrow on purpose: some inputs are clipped
        if is_layer and precision == "int4" and weight.shape[1] % 64 == 0:
            bits, block = 4, 64
        q, scale = uniform.quantize_symmetric(weight, bits, block)
        modules[name] = QuantizedLinear(q, scale, None, bits, block, activation)
    return QuantizedTable(modules)


@dataclasses.dataclass(frozen=True)
class Case:
    target: Target
    table: QuantizedTable
    spec: ModelSpec
    root: Path
    graphs: CompiledGraphs

    def graph(self, component: str) -> ir.Model:
        return graph.load(self.root / self.spec.graphs[component])

    def operators(self, component: str) -> Counter[str]:
        return Counter(node.op_type for node in self.graph(component).graph)


@pytest.fixture(scope="module", params=CASES)
def case(
    request: pytest.FixtureRequest,
    load_source: Callable[[], Any],
    spec: ModelSpec,
    samples: list[Inputs],
    tmp_path_factory: pytest.TempPathFactory,
) -> Case:
    name, _, release = request.param.partition(" ")
    target = resources.target(name)
    if release:
        target = target.model_copy(update={"software": {**target.software, "tensorrt": release}})
    table = table_of(CASES[request.param], load_source)
    made = dataclasses.replace(spec, runtime="tensorrt", hidden=request.param in WITH_HIDDEN)
    made = dataclasses.replace(made, profiles=tensorrt.profiles(target, made, None, None))
    root = tmp_path_factory.mktemp(name)
    plan = Plan(resources.recipe(target.recipe), target, {})
    graphs = tensorrt.compile(load_source, QuantizedModel(table), made, samples, root, plan)
    return Case(target, table, made, root, graphs)


@pytest.mark.slow
def test_the_graphs_compute_what_was_quantised(case: Case) -> None:
    found = case.graphs.verification
    for name in ("vision_difference", "embedding_difference", "logits_difference"):
        assert 0 <= found[name] <= 1e-5
    assert found["tokens"] == 3 * 32
    assert found.get("hidden_difference", 0.0) <= 1e-5
    assert ("hidden_difference" in found) == case.spec.hidden
    assert found["exact_modules"] == len(case.table)
    assert found["exact_integers"] == sum(linear.q.size for linear in case.table.values())


def test_the_graphs_are_legal_onnx_of_the_generation(case: Case) -> None:
    """Without errors of the linter too: `compile` would have refused."""
    opsets = {"8.2.1": 13, "8.5.2": 17, "10.3": 21, "10.13": 21, "10.16.2": 24, "11.1": 24}
    expected = opsets[case.target.software["tensorrt"]]
    if case.target.name == "orin-nano":
        expected = 20  # without int4
    for name in case.spec.graphs.values():
        onnx.checker.check_model(str(case.root / name), full_check=True)
        assert ir.load(case.root / name).opset_imports == {"": expected}


def test_strongly_typed_graphs_hold_fp16(case: Case) -> None:
    wanted = ir.DataType.FLOAT if case.target.software["tensorrt"].startswith("8") else ir.DataType.FLOAT16
    decoder = case.graph("decoder").graph
    types = {value.name: value.dtype for value in (*decoder.inputs, *decoder.outputs)}
    assert types["inputs_embeds"] == types["past_key.0"] == types["mask"] == wanted
    assert types["logits"] == ir.DataType.FLOAT
    assert types.get("hidden") == (ir.DataType.FLOAT if case.spec.hidden else None)
    assert types["position_ids"] == ir.DataType.INT32


def test_the_cache_takes_the_form_of_the_generation(case: Case) -> None:
    operators = case.operators("decoder")
    names = {value.name for value in case.graph("decoder").graph.inputs}
    if case.target.name == "orin-jetpack7":
        assert operators["TensorScatter"] == 4 and operators["Attention"] == 2
        assert operators["RMSNormalization"] == 5 and "write_index" in names
    else:
        assert not {"TensorScatter", "Attention", "RMSNormalization"} & set(operators)
        assert "write_index" not in names


def test_every_module_of_the_table_is_quantised(case: Case) -> None:
    found = set()
    for component in case.spec.graphs:
        for node in case.graph(component).graph:
            if readback.dequantized_weight(node) is not None:
                found.add(graph.module_of(node))
    assert found == set(case.table)


def test_a_changed_integer_is_found(case: Case, tmp_path: Path) -> None:
    quantized = [name for name in case.table if "text_model.layers" in name]
    if not quantized:
        pytest.skip("nothing is quantised for this board")
    linear = case.table[quantized[0]]
    q = linear.q.copy()
    q[0, 0] = 1 if q[0, 0] != 1 else 2
    changed = QuantizedTable({quantized[0]: dataclasses.replace(linear, q=q)})
    with pytest.raises(ExportError, match="integers"):
        readback.check(case.root / case.spec.graphs["decoder"], changed, quantized[:1])
    scaled = QuantizedTable({quantized[0]: dataclasses.replace(linear, scale=linear.scale * 2)})
    with pytest.raises(ExportError, match="scales"):
        readback.check(case.root / case.spec.graphs["decoder"], scaled, quantized[:1])


def test_the_emulation_answers_across_buckets(case: Case, samples: list[Inputs]) -> None:
    """Prefill in one piece and in pieces of three tokens give the same tokens."""
    answers = []
    for longest in (case.spec.max_context, 3):
        profiles = {"decoder": [{"inputs_embeds": [[1, 1, 64], [1, 1, 64], [1, longest, 64]]}]}
        spec = dataclasses.replace(case.spec, profiles=profiles, eos_token_ids=(), max_new_tokens=20)
        with load(case.root, spec, threads=1, emulate=True) as runtime:
            answers.append(generate(runtime, spec, samples[0].pixel_values, samples[0].input_ids).token_ids)
    same = np.mean([one == other for one, other in zip(*answers, strict=True)])
    assert same >= 0.9  # fp16 rounds sums of another order differently


def test_a_full_cache_is_refused(case: Case) -> None:
    with EmulatedTensorRt(case.root, case.spec) as runtime:
        runtime.start(8)
        with pytest.raises(ExecutionError, match="9 tokens do not fit the cache of 8"):
            runtime.step(np.zeros((1, 9, case.spec.hidden_size), np.float32))


def test_a_graph_of_another_model_is_refused(case: Case) -> None:
    other = dataclasses.replace(case.spec, hidden_size=128)
    with pytest.raises(ExecutionError, match="of different models"):
        EmulatedTensorRt(case.root, other)


def test_profiles_cover_the_longest_prompt_and_one_token(case: Case) -> None:
    prefill, decode = case.spec.profiles["decoder"]
    assert prefill["inputs_embeds"][2] == [1, case.spec.max_context, 64]
    assert decode["inputs_embeds"] == [[1, 1, 64]] * 3
    assert case.spec.profiles["vision_encoder"][0]["pixel_values"][2] == [1, 3, 32, 32]
    for profile in (prefill, decode):
        assert list(profile) == [value.name for value in case.graph("decoder").graph.inputs]


def test_a_board_without_the_memory_is_refused_before_anything_is_shipped(
    case: Case, load_source: Callable[[], Any], samples: list[Inputs], tmp_path: Path
) -> None:
    budgets = case.target.budgets.model_copy(update={"peak_rss_bytes": 1000})
    small = case.target.model_copy(update={"budgets": budgets})
    plan = Plan(resources.recipe(small.recipe), small, {})
    from edgevlm_deploy.errors import PlanError

    with pytest.raises(PlanError, match=f"{small.name} leaves 0.0 MB"):
        tensorrt.compile(load_source, QuantizedModel(case.table), case.spec, samples, tmp_path, plan)
