"""Tiny CLIP and SigLIP through every backend: what is written computes what was quantised."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tiny_dual
from edgevlm_runner.contract import DualEncoderSpec
from edgevlm_runner.errors import ExecutionError
from edgevlm_runner.inputs import Inputs, from_class, load_tokenizer
from edgevlm_runner.runtimes import load_encoders

from edgevlm_deploy import backends, calibration, datasets, plan, quiet, resources, source
from edgevlm_deploy.errors import ExportError, PlanError
from edgevlm_deploy.export import encoders, graph, verify_encoders
from edgevlm_deploy.pipeline.job import own_recipe
from edgevlm_deploy.quantize import fakequant, quantize, resolve, uniform
from edgevlm_deploy.quantize.quantized_model import QuantizedModel
from edgevlm_deploy.quantize.table import QuantizedLinear, QuantizedTable, StaticActivation
from edgevlm_deploy.recipe import Algorithm, Calibration, Component, Precision, Quantizer, Recipe, Scheme
from edgevlm_deploy.source import SourceModel
from edgevlm_deploy.target import Backend, Target

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

RECIPE = resources.recipe("zero-shot-classifier")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], SourceModel]:
    @functools.cache
    def made(family: str) -> SourceModel:
        torch.set_num_threads(1)
        return source.inspect(tiny_dual.save(family, tmp_path_factory.mktemp(family) / "tiny"))

    return made


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], SourceModel]:
    """Wide enough for groups of 64."""

    @functools.cache
    def made(family: str) -> SourceModel:
        return source.inspect(tiny_dual.save(family, tmp_path_factory.mktemp(family) / "wide", width=128))

    return made


def table_of(model: SourceModel, target: Target) -> QuantizedTable:
    """Every matrix in 8 bits, with static inputs where the target has them."""
    modules = {}
    if "int8" not in target.formats:
        return QuantizedTable(modules)
    loaded = source.load(model)
    for component, names in model.modules.items():
        for name in names:
            weight = loaded.get_submodule(name).weight.detach().numpy()
            q, scale = uniform.quantize_symmetric(weight, 8, weight.shape[1])
            is_static = component != "embedding" and target.backend is not Backend.LITERT
            activation = StaticActivation(2.0**-5, 0) if is_static else None
            modules[name] = QuantizedLinear(q, scale, None, 8, weight.shape[1], activation)
    return QuantizedTable(modules)


def specified(model: SourceModel, target: Target) -> DualEncoderSpec:
    graphs = backends.graph_names(target.backend, model.kind)
    spec = source.model_spec(model, RECIPE, target.backend.value, graphs, tiny_dual.CLASSES)
    made = backends.with_profiles(spec, RECIPE, target)
    assert isinstance(made, DualEncoderSpec)
    return made


def samples(model: SourceModel, spec: DualEncoderSpec) -> list[Inputs]:
    tokenizer = load_tokenizer(model.tokenizer)
    return [from_class(tiny_dual.picture(name, 9), name, spec, tokenizer) for name in tiny_dual.CLASSES]


def compiled(
    model: SourceModel, target: Target, spec: DualEncoderSpec, quantized: QuantizedModel, out: Path
) -> backends.CompiledGraphs:
    without = Recipe.model_validate({**RECIPE.model_dump(), "components": {}})
    made = plan.resolve(without, target, model.modules)
    with quiet.libraries():
        compile_graphs = backends.compiler(made, lambda: iter(samples(model, spec)))
        return compile_graphs(lambda: source.load(model), quantized, spec, samples(model, spec), out)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "name"),
    [
        ("clip", "host-cpu"),
        ("siglip", "host-cpu"),
        ("clip", "snapdragon-8-gen3"),
        ("siglip", "snapdragon-8-gen3"),
        ("clip", "jetson-nano"),
        ("clip", "orin-nano"),
        ("siglip", "orin-jetpack7"),
    ],
)
def test_graphs_compute_what_was_quantised(
    models: Callable[[str], SourceModel], tmp_path: Path, family: str, name: str
) -> None:
    model, target = models(family), resources.target(name)
    spec, table = specified(model, target), table_of(model, target)
    made = compiled(model, target, spec, QuantizedModel(table), tmp_path)
    phone = target.backend is Backend.LITERT
    tolerance = 1e-4 if phone else 1e-5
    assert made.verification["vision_difference"] <= tolerance
    assert made.verification["text_difference"] <= tolerance
    assert made.verification["shipped_max_abs_cosine_difference"] < 0.05
    if target.backend is not Backend.ONNXRUNTIME:
        assert made.verification["exact_modules"] == len(table)

    reference = fakequant.apply(source.load(model), QuantizedModel(table))
    with load_encoders(tmp_path, spec, 1, emulate=True) as runtime:
        for one in samples(model, spec):
            assert one.pixel_values is not None
            with torch.inference_mode():
                image = reference.get_image_features(pixel_values=torch.from_numpy(one.pixel_values))
                text = reference.get_text_features(input_ids=torch.from_numpy(one.input_ids))
            for found, wanted in (
                (runtime.encode_image(one.pixel_values), image.pooler_output.numpy()),
                (runtime.encode_text(one.input_ids), text.pooler_output.numpy()),
            ):
                # On a CPU LiteRT rounds inputs to int8 by itself, which random weights do not forgive.
                assert verify_encoders.relative(found, wanted) < (0.2 if phone else 0.1)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "name", "quantizer", "algorithm"),
    [
        ("siglip", "host-cpu", "neural-compressor", "hqq"),
        ("clip", "snapdragon-8-gen3", "neural-compressor", "awq"),
        ("clip", "orin-nano", "neural-compressor", "gptq"),
        ("siglip", "orin-nano", "tensorrt", "awq"),
    ],
)
def test_four_bit_encoders(
    wide: Callable[[str], SourceModel],
    tmp_path: Path,
    family: str,
    name: str,
    quantizer: str,
    algorithm: str,
) -> None:
    """From calibration to graphs: all integers are read back, and the graphs compute with them."""
    model, target = wide(family), resources.target(name)
    spec = specified(model, target)
    encoder = Precision(scheme=Scheme.W4A16_G64, algorithm=Algorithm(algorithm))
    components = dict.fromkeys((Component.VISION_ENCODER, Component.TEXT_ENCODER), encoder)
    chosen = Quantizer(quantizer)
    request = resolve(components, (), model.modules, chosen, target.backend, target.accelerator)
    rows = tiny_dual.labelled(tmp_path / "pictures", each=2)
    drawn = calibration.build(datasets.load(rows, labelled=True), Calibration(samples=6), tmp_path / "rows")
    batches = calibration.batches(drawn, spec, model.tokenizer)
    quantized = quantize(lambda: source.load(model), request, batches, chosen)
    made = compiled(model, target, spec, quantized, tmp_path)
    tolerance = 1e-4 if target.backend is Backend.LITERT else 1e-5
    assert made.verification["vision_difference"] <= tolerance
    assert made.verification["text_difference"] <= tolerance
    assert len(quantized.table) == 24
    assert made.verification.get("exact_modules", 24) == 24
    assert all(one.bits == 4 and one.block == 64 for one in quantized.table.values())
    sizes = {Path(path).name: size for path, size in made.files.items()}
    assert sum(sizes.values()) < 0.6 * 2 * model.parameters, "no smaller than fp16"


def test_rows_of_any_length_give_the_same_text(models: Callable[[str], SourceModel], tmp_path: Path) -> None:
    """CLIP's text encoder never looks behind the end; the wrapper's pooling finds it in padded rows too."""
    model = models("clip")
    spec = specified(model, resources.target("host-cpu"))
    short = samples(model, spec)[0].input_ids
    padded = np.full((1, spec.text.length), spec.text.pad_token_id, np.int64)
    padded[:, : short.shape[1]] = short
    loaded = source.load(model)
    with torch.inference_mode():
        plain = loaded.get_text_features(input_ids=torch.from_numpy(short)).pooler_output
        for rows in (short, padded):
            found = encoders.TextEncoder(loaded, spec.text)
            # Attention without a tensor as mask, as a runtime's own operator has it.
            loaded.text_model.config._attn_implementation = "sdpa"
            torch.testing.assert_close(found(torch.from_numpy(rows)), plain, rtol=1e-5, atol=1e-5)


def test_a_wrong_graph_is_found(models: Callable[[str], SourceModel], tmp_path: Path) -> None:
    """One weight of the shipped vision encoder is another than in torch."""
    model, target = models("clip"), resources.target("host-cpu")
    spec = specified(model, target)
    compiled(model, target, spec, QuantizedModel(QuantizedTable({})), tmp_path)
    other = source.load(model)
    with torch.no_grad():
        other.visual_projection.weight[0, 0] += 0.01
    with pytest.raises(ExportError, match="image embeddings differ from the quantised torch model"):
        verify_encoders.verify(other, QuantizedTable({}), spec, tmp_path, samples(model, spec))


def test_a_graph_of_another_model_is_refused(models: Callable[[str], SourceModel], tmp_path: Path) -> None:
    from edgevlm_deploy.export import onnx_encoders

    clip, siglip = models("clip"), models("siglip")
    spec, others = (specified(one, resources.target("host-cpu")) for one in (clip, siglip))
    (tmp_path / "graphs").mkdir()
    with quiet.libraries():
        made = onnx_encoders.export_text_encoder(source.load(siglip), others.text)
        graph.save(made, tmp_path / spec.graphs["text_encoder"])
        graph.save(
            onnx_encoders.export_vision_encoder(source.load(clip)), tmp_path / spec.graphs["vision_encoder"]
        )
    with pytest.raises(ExecutionError, match="Graph and manifest are of different models"):
        load_encoders(tmp_path, spec, 1)


@pytest.mark.parametrize("target", resources.names("targets"))
def test_every_target_has_a_recipe_for_dual_encoders(
    models: Callable[[str], SourceModel], target: str
) -> None:
    device = resources.target(target)
    for family in ("clip", "siglip"):
        recipe = resources.recipe(own_recipe(device, models(family)))
        assert recipe.name == ("fp16" if target == "jetson-nano" else RECIPE.name)
        plan.resolve(recipe, device, models(family).modules)


def test_what_encoders_cannot_have_is_refused_at_plan_time(models: Callable[[str], SourceModel]) -> None:
    wanted = {
        Component.TEXT_ENCODER: Precision(scheme=Scheme.W4A16_G32, algorithm=Algorithm.MBQ),
        Component.PROJECTOR: Precision(scheme=Scheme.W4A16_G32, algorithm=Algorithm.GPTQ),
    }
    recipe = RECIPE.model_copy(update={"components": wanted})
    with pytest.raises(PlanError) as caught:
        plan.resolve(recipe, resources.target("host-cpu"), models("clip").modules)
    assert "text_encoder w4a16_g32/mbq: mbq balances the gradients" in str(caught.value)
    assert "projector w4a16_g32/gptq: gptq works on stacks of layers" in str(caught.value)
