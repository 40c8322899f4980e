"""A tiny BLIP through every backend: the graphs compute what was quantised, and answer as transformers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tiny_blip
from edgevlm_runner.contract import EncoderDecoderSpec
from edgevlm_runner.errors import ExecutionError
from edgevlm_runner.generate import generate
from edgevlm_runner.inputs import Inputs, from_picture, load_tokenizer
from edgevlm_runner.runtimes import load

from edgevlm_deploy import backends, plan, quiet, resources, source
from edgevlm_deploy.errors import ExportError, PlanError
from edgevlm_deploy.export import verify_encoder_decoder
from edgevlm_deploy.export.tflite_calibration import DECODED, answering_calls
from edgevlm_deploy.pipeline.job import own_recipe
from edgevlm_deploy.quantize import fakequant, uniform
from edgevlm_deploy.quantize.quantized_model import QuantizedModel
from edgevlm_deploy.quantize.table import QuantizedLinear, QuantizedTable, StaticActivation
from edgevlm_deploy.recipe import Generation, Recipe
from edgevlm_deploy.source import SourceModel
from edgevlm_deploy.target import Backend, Target

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

RECIPE = resources.recipe("encoder-decoder").model_copy(
    update={"components": {}, "generation": Generation(max_new_tokens=6, prefill_lengths=(12, 24))}
)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> SourceModel:
    torch.set_num_threads(1)
    return source.inspect(tiny_blip.save(tmp_path_factory.mktemp("blip") / "tiny-blip", steps=60))


def table_of(model: SourceModel, target: Target) -> QuantizedTable:
    """Every matrix in 8 bits, the encoders' with static inputs where the target has them."""
    modules: dict[str, QuantizedLinear] = {}
    if "int8" not in target.formats:
        return QuantizedTable(modules)
    loaded = source.load(model)
    for component, names in model.modules.items():
        for name in names:
            weight = loaded.get_submodule(name).weight.detach().numpy()
            q, scale = uniform.quantize_symmetric(weight, 8, weight.shape[1])
            is_static = component.endswith("_encoder") and target.backend is not Backend.LITERT
            activation = StaticActivation(2.0**-4, 0) if is_static else None
            modules[name] = QuantizedLinear(q, scale, None, 8, weight.shape[1], activation)
    return QuantizedTable(modules)


def specified(model: SourceModel, target: Target) -> EncoderDecoderSpec:
    graphs = backends.graph_names(target.backend, model.kind)
    spec = source.model_spec(model, RECIPE, target.backend.value, graphs)
    made = backends.with_profiles(spec, RECIPE, target)
    assert isinstance(made, EncoderDecoderSpec)
    return made


def samples(model: SourceModel, spec: EncoderDecoderSpec) -> list[Inputs]:
    tokenizer = load_tokenizer(model.tokenizer)
    return [
        from_picture(tiny_blip.picture(color, 9), question, spec, tokenizer)
        for color, question in zip(
            ("red", "blue", "dark blue"), (*tiny_blip.QUESTIONS, "Is it?"), strict=True
        )
    ]


def compiled(
    model: SourceModel, target: Target, table: QuantizedTable, out: Path
) -> tuple[EncoderDecoderSpec, backends.CompiledGraphs]:
    spec = specified(model, target)
    made = plan.resolve(RECIPE, target, model.modules, model.architecture)
    with quiet.libraries():
        compile_graphs = backends.compiler(made, lambda: iter(samples(model, spec)))
        quantized = QuantizedModel(table)
        return spec, compile_graphs(lambda: source.load(model), quantized, spec, samples(model, spec), out)


def theirs(reference: Any, sample: Inputs, tokens: int) -> tuple[tuple[int, ...], list[float]]:
    """transformers' own greedy answer, and its log-probabilities."""
    made = reference.generate(
        input_ids=torch.from_numpy(sample.input_ids),
        pixel_values=torch.from_numpy(sample.pixel_values),
        max_new_tokens=tokens,
        num_beams=1,
        do_sample=False,
        output_logits=True,
        return_dict_in_generate=True,
    )
    ids = made.sequences[0, 1:]
    logprobs = [
        float(torch.log_softmax(step.double(), -1)[0, token])
        for step, token in zip(made.logits, ids, strict=True)
    ]
    return tuple(ids.tolist()), logprobs


@pytest.mark.slow
@pytest.mark.parametrize("name", ["host-cpu", "snapdragon-8-gen3", "jetson-nano", "orin-nano"])
def test_graphs_answer_as_transformers_does(model: SourceModel, tmp_path: Path, name: str) -> None:
    target = resources.target(name)
    table = table_of(model, target)
    spec, made = compiled(model, target, table, tmp_path)
    tolerance = 1e-4 if target.backend is Backend.LITERT else 1e-5
    for part in ("vision", "question", "logits"):
        assert made.verification[f"{part}_difference"] <= tolerance
    assert made.verification["tokens"] == 3 * 6 and made.verification["shipped_tokens_equal"] == 1.0
    if target.backend is not Backend.ONNXRUNTIME:
        assert made.verification["exact_modules"] == len(table)
    reference = fakequant.apply(source.load(model), QuantizedModel(table))
    with load(tmp_path, spec, 1, emulate=True) as runtime:
        for sample in samples(model, spec):
            answer = generate(runtime, spec, sample.pixel_values, sample.input_ids)
            tokens, logprobs = theirs(reference, sample, spec.max_new_tokens)
            assert answer.token_ids == tokens
            assert answer.token_logprobs == pytest.approx(logprobs, abs=0.05)
            assert answer.finished is (tokens[-1] in spec.eos_token_ids)
    if target.backend is Backend.LITERT:
        counted = {
            name: len(list(answering_calls(tmp_path, spec, name, samples(model, spec))))
            for name in ("encode_image", "encode_question_12", "decode_24")
        }
        assert counted == {"encode_image": 3, "encode_question_12": 3, "decode_24": 3 * DECODED}


@pytest.mark.slow
def test_a_wrong_graph_is_found(model: SourceModel, tmp_path: Path) -> None:
    """One weight of the shipped decoder is another than in torch; a full answer takes no further token."""
    spec, _ = compiled(model, resources.target("host-cpu"), QuantizedTable({}), tmp_path)
    other = source.load(model)
    with torch.no_grad():
        other.text_decoder.cls.predictions.transform.dense.weight[0, 0] += 0.05
    with pytest.raises(ExportError, match="logits differ from the quantised torch model"):
        verify_encoder_decoder.verify(other, QuantizedTable({}), spec, tmp_path, samples(model, spec))
    with torch.no_grad():
        other.text_decoder.bert.encoder.layer[1].crossattention.self.value.weight[0, 0] += 1
        other.text_encoder.encoder.layer[0].output.dense.weight[0, 0] += 0.05
    with pytest.raises(ExportError, match="question states differ"):
        verify_encoder_decoder.verify(other, QuantizedTable({}), spec, tmp_path, samples(model, spec))
    with load(tmp_path, spec, 1) as runtime:
        sample = samples(model, spec)[0]
        with pytest.raises(ExecutionError, match="no question was read"):
            runtime.step(spec.start_token_id)  # type: ignore[arg-type]
        assert len(verify_encoder_decoder.observe(runtime, spec, sample).tokens) == 6  # type: ignore[arg-type]
        with pytest.raises(ExecutionError, match="An answer of 6 tokens is full"):
            runtime.step(5)  # type: ignore[arg-type]
    graphs = {**spec.graphs, "decoder": spec.graphs["text_encoder"]}
    wrong = EncoderDecoderSpec(**{**vars(spec), "graphs": graphs})
    with pytest.raises(ExecutionError, match="Graph and manifest are of different models"):
        load(tmp_path, wrong, 1)


@pytest.mark.parametrize("target", resources.names("targets"))
def test_every_target_has_a_recipe_for_encoder_decoders(model: SourceModel, target: str) -> None:
    device = resources.target(target)
    recipe = resources.recipe(own_recipe(device, model))
    assert recipe.name == ("fp16" if target == "jetson-nano" else "encoder-decoder")
    plan.resolve(recipe, device, model.modules, model.architecture)


@pytest.mark.parametrize("algorithm", ["awq", "mbq", "smoothquant", "autoround"])
def test_what_cannot_be_had_is_refused_at_plan_time(model: SourceModel, algorithm: str) -> None:
    scheme = "w8a8" if algorithm == "smoothquant" else "w4a16_g32"
    component = "vision_encoder" if algorithm == "smoothquant" else "decoder"
    data = json.loads(RECIPE.model_dump_json())
    data["components"] = {component: {"scheme": scheme, "algorithm": algorithm}}
    with pytest.raises(
        PlanError, match=f"{algorithm} is not offered for encoder–decoders; take rtn, hqq, gptq"
    ):
        plan.resolve(
            Recipe.model_validate(data), resources.target("host-cpu"), model.modules, model.architecture
        )
