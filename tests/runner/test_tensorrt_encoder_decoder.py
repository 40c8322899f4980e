"""An encoder–decoder's TensorRT executor against the stand-in; not run on hardware."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_blip
from edgevlm_runner.contract import EncoderDecoderSpec
from edgevlm_runner.errors import BundleError, ExecutionError
from edgevlm_runner.generate import generate
from edgevlm_runner.inputs import Inputs, from_picture, load_tokenizer
from edgevlm_runner.runtimes import OnAccelerator, load

pytestmark = pytest.mark.slow
pytest.importorskip("torch")
pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_blip.save(tmp_path_factory.mktemp("blip") / "tiny-blip", steps=60)


@pytest.fixture(scope="module")
def graphs(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, EncoderDecoderSpec]:
    """Folder and specification of fp16 graphs."""
    from edgevlm_deploy import backends, quiet, resources, source
    from edgevlm_deploy.backends import tensorrt
    from edgevlm_deploy.export import graph, tensorrt_encoder_decoder

    target, model = resources.target("orin-nano"), source.inspect(checkpoint)
    recipe = resources.recipe("encoder-decoder")
    names = {one: f"{one}.onnx" for one in ("vision_encoder", "text_encoder", "decoder")}
    spec = backends.with_profiles(source.model_spec(model, recipe, "tensorrt", names), recipe, target)
    assert isinstance(spec, EncoderDecoderSpec)
    folder = tmp_path_factory.mktemp("graphs")
    chosen = tensorrt.dialect(target, with_int4=False)
    with quiet.libraries():
        exporters = tensorrt_encoder_decoder.exporters(source.load(model), spec, chosen)
        for component, export in exporters.items():
            graph.save(export(), folder / names[component])
    return folder, spec


def samples(checkpoint: Path, spec: EncoderDecoderSpec) -> list[Inputs]:
    tokenizer = load_tokenizer(checkpoint / "tokenizer.json")
    asked = [("red", tiny_blip.QUESTIONS[1]), ("dark blue", tiny_blip.QUESTIONS[0]), ("blue", "Is it?")]
    return [from_picture(tiny_blip.picture(color, 7), text, spec, tokenizer) for color, text in asked]


def test_answers_are_those_of_the_graphs(
    install: Callable[..., Any], graphs: tuple[Path, EncoderDecoderSpec], checkpoint: Path
) -> None:
    """Question after question: nothing of one answer is left in the next."""
    root, spec = graphs
    device = install("10.3")
    asked = samples(checkpoint, spec)
    with load(root, spec, 1) as runtime:
        found = [generate(runtime, spec, one.pixel_values, one.input_ids) for one in asked]
        states = runtime.read_question(runtime.encode_image(asked[0].pixel_values), asked[0].input_ids)
        assert isinstance(runtime, OnAccelerator) and runtime.device_bytes() > 0
        assert runtime.versions()["gpu"] == "Orin (SM 8.7)"
        for _ in range(spec.max_new_tokens):
            runtime.step(5)
        with pytest.raises(ExecutionError, match="is full, or no question was read"):
            runtime.step(5)
        with pytest.raises(ExecutionError, match="was built for input_ids of shape"):
            runtime.read_question(runtime.encode_image(asked[0].pixel_values), np.ones((1, 99), np.int64))
    assert not device.blocks, "memory is left allocated"
    with load(root, spec, 1, emulate=True) as emulated:
        for one, mine in zip(asked, found, strict=True):
            wanted = generate(emulated, spec, one.pixel_values, one.input_ids)
            assert mine.token_ids == wanted.token_ids
            np.testing.assert_allclose(mine.token_logprobs, wanted.token_logprobs, atol=1e-2)
        again = emulated.read_question(emulated.encode_image(asked[0].pixel_values), asked[0].input_ids)
        np.testing.assert_allclose(states, again, atol=1e-2)
    assert len({one.token_ids for one in found}) > 1


def test_graphs_of_another_model_and_missing_profiles_are_refused(
    install: Callable[..., Any], graphs: tuple[Path, EncoderDecoderSpec]
) -> None:
    root, spec = graphs
    device = install("10.3")
    with pytest.raises(ExecutionError, match="logits of the decoder"):
        load(root, dataclasses.replace(spec, vocab_size=spec.vocab_size + 1), 1)
    with pytest.raises(BundleError, match="no optimisation profile for the vision_encoder"):
        load(root, dataclasses.replace(spec, profiles={}), 1)
    assert not device.blocks
