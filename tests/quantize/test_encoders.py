"""Quantising vision and text encoders: those of CLIP and SigLIP, and a vision-language model's."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import tiny_dual
import torch
from edgevlm_runner.contract import DualEncoderSpec
from quantizing import logits, relative_error

from edgevlm_deploy import backends, calibration, datasets, quiet, resources, source
from edgevlm_deploy.errors import PlanError
from edgevlm_deploy.quantize import autoround, capture, fakequant, layerwise, quantize, resolve
from edgevlm_deploy.recipe import Algorithm, Calibration, Component, Precision, Quantizer, Scheme
from edgevlm_deploy.source import SourceModel
from edgevlm_deploy.target import Backend

INC = Quantizer.NEURAL_COMPRESSOR
STACKS = (Component.VISION_ENCODER, Component.TEXT_ENCODER)
SEARCHED = (Algorithm.GPTQ, Algorithm.AWQ, Algorithm.AUTOROUND)

Given = tuple[SourceModel, DualEncoderSpec, calibration.Batches]


@pytest.fixture(scope="module", params=["clip", "siglip"])
def given(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Given:
    """A tiny dual encoder and twelve pictures, each with the sentence of its class."""
    folder = tmp_path_factory.mktemp(request.param)
    with quiet.libraries():
        model = source.inspect(tiny_dual.save(request.param, folder / "model"))
        recipe, target = resources.recipe("zero-shot-classifier"), resources.target("snapdragon-8-gen3")
        graphs = backends.graph_names(target.backend, model.kind)
        spec = source.model_spec(model, recipe, target.backend.value, graphs, tiny_dual.CLASSES)
    assert isinstance(spec, DualEncoderSpec)
    samples = datasets.load(tiny_dual.labelled(folder / "pictures", each=4), labelled=True)
    rows = calibration.build(samples, Calibration(samples=12), folder / "rows")
    return model, spec, calibration.batches(rows, spec, model.tokenizer)


@pytest.fixture(autouse=True)
def few_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(autoround, "STEPS", 40)


def embeddings(model: Any, batches: calibration.Batches) -> tuple[Any, Any]:
    with torch.no_grad():
        found = [
            (
                model.get_image_features(pixel_values=one["pixel_values"]).pooler_output,
                model.get_text_features(input_ids=one["input_ids"]).pooler_output,
            )
            for one in batches
        ]
    return tuple(torch.cat(side) for side in zip(*found, strict=True))  # type: ignore[return-value]


def both(scheme: Scheme, algorithm: Algorithm) -> dict[Component, Precision]:
    return dict.fromkeys(STACKS, Precision(scheme=scheme, algorithm=algorithm))


@pytest.mark.parametrize("algorithm", SEARCHED)
def test_both_encoders_beat_rounding(given: Given, algorithm: Algorithm) -> None:
    model, _, batches = given
    expected = embeddings(source.load(model), batches)
    errors = {}
    for chosen in (Algorithm.RTN, algorithm):
        request = resolve(both(Scheme.W4A16_CHANNEL, chosen), (), model.modules, INC)
        quantized = quantize(lambda: source.load(model), request, batches)
        assert list(quantized.table) == list(request) and len(request) == 24
        found = embeddings(fakequant.apply(source.load(model), quantized), batches)
        errors[chosen] = [relative_error(one, wanted) for one, wanted in zip(found, expected, strict=True)]
    pictures, texts = (errors[algorithm][n] / errors[Algorithm.RTN][n] for n in (0, 1))
    # The one place of a text that is pooled need not gain from an error that is least over all places.
    assert pictures < 0.97 and texts < 1.5, errors


def test_only_what_a_text_encoder_reads_is_calibrated_on(given: Given) -> None:
    """CLIP's rows end with the text; SigLIP was trained with padding and pools the last place."""
    model, spec, batches = given
    assert spec.text.padded
    loaded = source.load(model)
    seen = layerwise.inputs(loaded, "text_model.encoder.layers.0", batches)
    lengths = {int(one["hidden_states"].shape[1]) for one in seen}
    assert max(lengths) < spec.text.length if model.family == "clip" else lengths == {spec.text.length}
    assert all(one["input_ids"].shape[1] == spec.text.length for one in batches)
    short = next(iter(capture.samples(batches)))["input_ids"]
    with torch.no_grad():
        texts = [loaded.get_text_features(input_ids=ids) for ids in (short, batches[0]["input_ids"])]
    torch.testing.assert_close(texts[0].pooler_output, texts[1].pooler_output)


def test_samples_are_counted_in_tokens_of_the_stack(given: Given, monkeypatch: pytest.MonkeyPatch) -> None:
    model, _, batches = given
    patches = (tiny_dual.SIDE // tiny_dual.PATCH) ** 2 + (model.family == "clip")
    monkeypatch.setattr(layerwise, "SAMPLES", 2)
    monkeypatch.setattr(layerwise, "TOKENS", 3 * patches)
    (together,) = layerwise.inputs(source.load(model), "vision_model.encoder.layers.0", batches)
    assert together["hidden_states"].shape[:2] == (3, patches)


def test_hqq_and_search_side_by_side(given: Given) -> None:
    """One algorithm an encoder; zero-points in one, folded norms in the other."""
    model, _, batches = given
    wanted = {
        Component.VISION_ENCODER: Precision(scheme=Scheme.W4A16_CHANNEL, algorithm=Algorithm.AWQ),
        Component.TEXT_ENCODER: Precision(scheme=Scheme.W4A16_CHANNEL, algorithm=Algorithm.HQQ),
    }
    request = resolve(wanted, (), model.modules, INC)
    quantized = quantize(lambda: source.load(model), request, batches)
    folded = set(quantized.float_parameters)
    assert folded and all(name.startswith("vision_model.encoder.") for name in folded)
    for name, linear in quantized.table.items():
        assert (linear.zero_point is not None) == name.startswith("text_model."), name


@pytest.mark.parametrize("component", STACKS)
def test_balancing_modalities_needs_two_of_them(given: Given, component: Component) -> None:
    wanted = {component: Precision(scheme=Scheme.W4A16_G32, algorithm=Algorithm.MBQ)}
    with pytest.raises(PlanError, match="an encoder sees one of the two; use awq"):
        resolve(wanted, (), given[0].modules, INC)


@pytest.mark.parametrize("algorithm", SEARCHED)
def test_the_vision_encoder_of_a_vision_language_model(
    load_model: Callable[[], Any], batches: Any, modules: Any, algorithm: Algorithm
) -> None:
    source_model = load_model()
    pictures = copy.deepcopy(batches[:6])
    errors = []
    for chosen in (Algorithm.RTN, algorithm):
        wanted = {Component.VISION_ENCODER: Precision(scheme=Scheme.W4A16_CHANNEL, algorithm=chosen)}
        request = resolve(wanted, (), modules, INC, Backend.ONNXRUNTIME)
        quantized = quantize(load_model, request, pictures)
        assert list(quantized.table) == list(request)
        fake = fakequant.apply(load_model(), quantized)
        errors.append(relative_error(logits(fake, pictures), logits(source_model, pictures)))
    assert np.isfinite(errors).all() and errors[1] < errors[0], errors
