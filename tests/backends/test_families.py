"""Every family from checkpoint to answers: pixels, prompts and greedy tokens are those of transformers."""

from __future__ import annotations

import dataclasses
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_families
from edgevlm_runner import runtimes
from edgevlm_runner.contract import ModelSpec, from_json, to_json
from edgevlm_runner.generate import generate
from edgevlm_runner.inputs import Inputs, from_picture, load_tokenizer

from edgevlm_deploy import backends, quiet, reference, resources, source
from edgevlm_deploy.backends import CompiledGraphs, graph_names, onnxruntime
from edgevlm_deploy.plan import Plan
from edgevlm_deploy.quantize.quantized_model import QuantizedModel
from edgevlm_deploy.quantize.table import QuantizedTable
from edgevlm_deploy.source import SourceModel
from edgevlm_deploy.target import Backend

QUESTION = "What is this?"
TOKENS = 12
OTHERS = {
    "llava": ["orin"],
    "llava_next": ["snapdragon-8-gen3"],
    "llava_onevision": ["orin-jetpack7"],
    "paligemma": ["orin-jetpack7", "snapdragon-8-gen3"],
}
"""Families that differ in their vision encoder alone share the work; prompts that see all of themselves are
another decoder."""


@dataclass(frozen=True)
class Family:
    name: str
    source: SourceModel
    spec: ModelSpec
    samples: list[Inputs]
    """Three pictures of several shapes, and a question without one."""


@pytest.fixture(scope="module", params=sorted(tiny_families.MAKERS))
def family(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Family:
    folder = tmp_path_factory.mktemp("family") / request.param
    with quiet.libraries():
        tiny_families.save(request.param, folder)
    checkpoint = source.inspect(folder)
    graphs = graph_names(Backend.ONNXRUNTIME, checkpoint.kind)
    made = source.model_spec(checkpoint, resources.recipe("default"), "onnxruntime", graphs)
    assert isinstance(made, ModelSpec)
    spec = dataclasses.replace(made, max_context=256, max_new_tokens=TOKENS)
    tokenizer = load_tokenizer(checkpoint.tokenizer)
    pictures = [*tiny_families.pictures(), None]
    samples = [from_picture(picture, QUESTION, spec, tokenizer) for picture in pictures]
    return Family(request.param, checkpoint, spec, samples)


def processed(family: Family) -> list[dict[str, Any]]:
    """The pictures and the question as transformers' processor prepares them."""
    processor = tiny_families.make(family.name)[1]
    made: list[dict[str, Any]] = []
    for picture in tiny_families.pictures():
        if family.name == "paligemma":
            asked = tiny_families.IMAGE + QUESTION
        else:
            parts = [{"type": "image"}, {"type": "text", "text": QUESTION}]
            turn = [{"role": "user", "content": parts}]
            asked = processor.apply_chat_template(turn, add_generation_prompt=True)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # PaliGemma's makes arrays of tensors
            made.append(processor(images=picture, text=asked, return_tensors="pt"))
    return made


def test_pixels_and_prompts_are_those_of_the_processor(family: Family) -> None:
    for ours, theirs in zip(family.samples, processed(family), strict=False):
        assert ours.input_ids.tolist() == theirs["input_ids"].tolist()
        assert ours.pixel_values is not None
        wanted = theirs["pixel_values"].numpy()
        np.testing.assert_array_equal(ours.pixel_values, wanted.reshape(ours.pixel_values.shape))


def test_graphs_answer_as_transformers_do(family: Family, tmp_path: Path) -> None:
    import torch

    made = compile_graphs(family, tmp_path, QuantizedModel(QuantizedTable({})))
    assert made.verification["logits_difference"] <= 1e-5
    assert from_json(ModelSpec, to_json(family.spec), "model.json") == family.spec
    endless = dataclasses.replace(family.spec, eos_token_ids=(), max_new_tokens=TOKENS)
    with runtimes.load(tmp_path, family.spec, threads=1) as runtime:
        ours = [
            list(generate(runtime, endless, one.pixel_values, one.input_ids, one.size).token_ids)
            for one in family.samples
        ]
    model = source.load(family.source)
    model.generation_config.eos_token_id = None
    with torch.inference_mode():
        for tokens, given in zip(ours, processed(family), strict=False):
            given.pop("labels", None)
            theirs = model.generate(**given, max_new_tokens=TOKENS, do_sample=False)
            assert tokens == theirs[0, given["input_ids"].shape[1] :].tolist()
    assert len({tuple(tokens) for tokens in ours}) > 1  # pictures matter


def test_reference_answers_in_batches_are_those_asked_alone(family: Family) -> None:
    from edgevlm_runner.contract import Item

    model, tokenizer = source.load(family.source), load_tokenizer(family.source.tokenizer)
    asked = [
        reference.Question(Item(str(n), str(n), "", "clean", "", "", QUESTION, ()), one)
        for n, one in enumerate(family.samples)
    ]
    together = reference.generate(model, asked, family.spec, tokenizer)
    alone = [reference.generate(model, [one], family.spec, tokenizer)[0] for one in asked]
    assert [one.token_ids for one in together] == [one.token_ids for one in alone]


@pytest.mark.slow
def test_graphs_of_other_backends_compute_the_same(family: Family, tmp_path: Path) -> None:
    """Compiling compares them with torch, token by token; TensorRT's are executed by ONNX Runtime."""
    for target in OTHERS[family.name]:
        check_graphs(family, target, tmp_path / target)


def check_graphs(family: Family, target: str, folder: Path) -> None:
    device, recipe = resources.target(target), resources.recipe("fp16")
    lengths = {
        "max_context": 256,
        "cache_lengths": (128,),
        "prefill_lengths": (32,),
        "max_new_tokens": TOKENS,
    }
    recipe = recipe.model_copy(update={"generation": recipe.generation.model_copy(update=lengths)})
    graphs = backends.graph_names(device.backend, family.source.kind)
    made = source.model_spec(family.source, recipe, device.backend.value, graphs)
    spec = backends.with_profiles(made, recipe, device)
    compiled = backends.compiler(Plan(recipe, device, {}), lambda: iter(family.samples))(
        lambda: source.load(family.source), QuantizedModel(QuantizedTable({})), spec, family.samples, folder
    )
    assert compiled.verification["samples"] == len(family.samples)
    assert compiled.verification["logits_difference"] <= 1e-4
    # Weights are random: the fp16 of shipped graphs decides a near tie, and what follows differs.
    assert compiled.verification["shipped_tokens_equal"] >= 0.5


def compile_graphs(family: Family, folder: Path, quantized: QuantizedModel) -> CompiledGraphs:
    return onnxruntime.compile(
        lambda: source.load(family.source), quantized, family.spec, family.samples, folder
    )
