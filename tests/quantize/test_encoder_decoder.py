"""GPTQ on the three stacks of an encoder–decoder, with what each layer attends to."""

from __future__ import annotations

from typing import Any

import pytest
import tiny_blip
from quantizing import relative_error

from edgevlm_deploy import quantize, quiet, source
from edgevlm_deploy.quantize import fakequant
from edgevlm_deploy.recipe import Algorithm, Component, Precision, Quantizer, Scheme
from edgevlm_deploy.source import SourceModel

torch = pytest.importorskip("torch")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning"),
]


STACKS = (Component.VISION_ENCODER, Component.TEXT_ENCODER, Component.DECODER)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> SourceModel:
    return source.inspect(tiny_blip.save(tmp_path_factory.mktemp("blip") / "tiny-blip", steps=60))


@pytest.fixture(scope="module")
def batches(model: SourceModel) -> list[dict[str, Any]]:
    from transformers import AutoProcessor

    processor, found = AutoProcessor.from_pretrained(model.path), []
    for number in range(6):
        for color in tiny_blip.COLORS:
            question = tiny_blip.QUESTIONS[number % 2]
            picture = tiny_blip.picture(color, number)
            said = processor.tokenizer(tiny_blip.answer(question, color), add_special_tokens=False).input_ids
            asked = processor(images=picture, text=question, return_tensors="pt")
            fed = torch.tensor([[processor.tokenizer.bos_token_id, *said]])
            found.append({**asked, "decoder_input_ids": fed})
    return found


def outputs(model: Any, batches: list[dict[str, Any]]) -> dict[Component, Any]:
    """What each stack gives."""
    found: dict[Component, list[Any]] = {component: [] for component in STACKS}
    with torch.no_grad():
        for one in batches:
            image = model.vision_model(one["pixel_values"]).last_hidden_state
            question = model.text_encoder(one["input_ids"], encoder_hidden_states=image).last_hidden_state
            answer = model.text_decoder(one["decoder_input_ids"], encoder_hidden_states=question).logits
            for component, given in zip(STACKS, (image, question, answer), strict=True):
                found[component].append(given[0])
    return {component: torch.cat(given) for component, given in found.items()}


@pytest.mark.parametrize("component", STACKS)
def test_gptq_is_closer_than_rounding(
    model: SourceModel, batches: list[dict[str, Any]], component: Component
) -> None:
    expected, errors = outputs(source.load(model), batches)[component], {}
    for algorithm in (Algorithm.RTN, Algorithm.GPTQ):
        asked = {component: Precision(scheme=Scheme.W4A16_G32, algorithm=algorithm)}
        request = quantize.resolve(asked, (), model.modules, Quantizer.NEURAL_COMPRESSOR)
        with quiet.libraries():
            made = quantize.quantize(lambda: source.load(model), request, batches)
        assert set(made.table) == set(model.modules[component.value]) and not made.float_parameters
        got = outputs(fakequant.apply(source.load(model), made), batches)[component]
        errors[algorithm] = relative_error(got, expected)
    assert errors[Algorithm.GPTQ] < 0.8 * errors[Algorithm.RTN]
