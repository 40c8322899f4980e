"""BLIP-VQA checkpoints: described without torch, loaded as stored, specified for the device."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_blip
from edgevlm_runner import preprocess, prompt
from edgevlm_runner.contract import EncoderDecoderSpec, model_from_json, to_json
from edgevlm_runner.errors import PromptError
from edgevlm_runner.inputs import from_picture, load_tokenizer
from PIL import Image

from edgevlm_deploy import resources, source
from edgevlm_deploy.errors import CheckpointError
from edgevlm_deploy.recipe import Generation, Recipe

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")

RECIPE = resources.recipe("encoder-decoder")
GRAPHS = {name: f"graphs/{name}.onnx" for name in ("vision_encoder", "text_encoder", "decoder")}


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_blip.save(tmp_path_factory.mktemp("blip") / "tiny-blip", steps=0)


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    return Path(shutil.copytree(saved, tmp_path / "tiny-blip"))


def spec_of(folder: Path, runtime: str = "onnxruntime", recipe: Recipe = RECIPE) -> EncoderDecoderSpec:
    found = source.model_spec(source.inspect(folder), recipe, runtime, GRAPHS)
    assert isinstance(found, EncoderDecoderSpec)
    return found


def edit(path: Path, section: str = "", **values: Any) -> None:
    data = json.loads(path.read_text())
    (data[section] if section else data).update(values)
    path.write_text(json.dumps(data))


def tensors(folder: Path) -> dict[str, Any]:
    from safetensors.torch import load_file

    return load_file(folder / "model.safetensors")


def store(folder: Path, weights: dict[str, Any]) -> None:
    from safetensors.torch import save_file

    weights = {name: tensor.clone() for name, tensor in weights.items()}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def test_components_hold_their_own_matrices(saved: Path) -> None:
    described = source.inspect(saved)
    assert described.kind == "encoder_decoder" and described.tied_head
    assert {name: len(found) for name, found in described.modules.items()} == {
        "vision_encoder": 2 * 4,
        "text_encoder": 2 * 10,
        "decoder": 2 * 10,
        "head": 2,
        "embedding": 2,
    }
    every = [name for names in described.modules.values() for name in names]
    assert len(every) == len(set(every)) and not [name for name in every if "position" in name]
    model = source.load(described)
    for name in every:
        assert tuple(model.get_submodule(name).weight.shape) == described.shapes[name]
    linear = {name for name, one in model.named_modules() if isinstance(one, torch.nn.Linear)}
    assert linear <= set(every), "every linear layer belongs to a component"


@pytest.mark.parametrize("size", [(40, 40), (333, 77), (61, 500), (1, 90)])
def test_pixels_and_tokens_equal_the_processors_own(saved: Path, size: tuple[int, int]) -> None:
    from transformers import AutoProcessor

    pixels = np.random.default_rng(7).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    picture, spec = Image.fromarray(pixels), spec_of(saved)
    processor = AutoProcessor.from_pretrained(saved)
    tokenizer = load_tokenizer(saved / "tokenizer.json")
    for question in (*tiny_blip.QUESTIONS, "Is THIS\n not red, “café”?", ""):
        theirs = processor(images=picture, text=question, return_tensors="np")
        ours = from_picture(picture, question, spec, tokenizer)
        assert np.array_equal(ours.pixel_values, theirs["pixel_values"])
        assert np.array_equal(ours.input_ids, theirs["input_ids"])


def test_real_preprocessing_is_the_same(saved: Path) -> None:
    """BLIP-VQA's own 384 × 384 pixels."""
    from dataclasses import replace

    from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil

    processor, spec = BlipImageProcessorPil(), replace(spec_of(saved).image, side=384)
    for size in ((640, 480), (100, 301)):
        pixels = np.random.default_rng(1).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
        theirs = processor(Image.fromarray(pixels), return_tensors="np")["pixel_values"]
        assert np.array_equal(preprocess.frame(Image.fromarray(pixels), spec), theirs)


def test_the_specification_crosses_the_boundary(saved: Path) -> None:
    spec = spec_of(saved)
    assert model_from_json(json.loads(json.dumps(to_json(spec))), "model.json") == spec
    assert (spec.image_tokens, spec.max_new_tokens, spec.question_lengths) == (17, 16, (32,))
    tokens = tiny_blip.tokenizer()
    assert spec.start_token_id == tokens.bos_token_id and spec.eos_token_ids == (tokens.sep_token_id,)
    long = RECIPE.model_copy(update={"generation": Generation(max_new_tokens=100, max_context=16)})
    assert spec_of(saved, recipe=long).max_new_tokens == 32, "no more than the decoder has positions for"
    assert spec_of(saved, recipe=long).question_lengths == (16,)


def test_questions_need_a_picture_and_have_an_end(saved: Path) -> None:
    spec, tokenizer = spec_of(saved), load_tokenizer(saved / "tokenizer.json")
    with pytest.raises(PromptError, match="answers questions about a picture"):
        from_picture(None, "what is this?", spec, tokenizer)
    with pytest.raises(PromptError, match=r"has 52 tokens, the text encoder reads 32"):
        prompt.encode_question(tokenizer, "red " * 50, spec)
    with pytest.raises(PromptError, match="not valid Unicode"):
        prompt.encode_question(tokenizer, "red \udc80", spec)


def test_stored_twice_or_once_a_tied_head_is_the_same(folder: Path) -> None:
    weights = tensors(folder)
    embedding = weights["text_decoder.bert.embeddings.word_embeddings.weight"]
    weights["text_decoder.cls.predictions.decoder.weight"] = embedding
    weights["text_decoder.cls.predictions.decoder.bias"] = weights["text_decoder.cls.predictions.bias"]
    weights["text_encoder.embeddings.position_ids"] = torch.arange(32)[None]
    store(folder, weights)
    described = source.inspect(folder)
    assert not described.tied_head
    source.load(described)


def test_damage_is_a_sentence(folder: Path, saved: Path) -> None:
    weights = tensors(folder)
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match="truncated or damaged"):
        source.inspect(folder)
    caption = {name: one for name, one in weights.items() if not name.startswith("text_encoder")}
    store(folder, caption)
    with pytest.raises(CheckpointError, match="BlipForQuestionAnswering is supported; models for captions"):
        source.inspect(folder)
    store(folder, {**weights, "extra.weight": torch.zeros(2, 2)})
    with pytest.raises(CheckpointError, match=r"unexpected_keys: extra\.weight"):
        source.load(source.inspect(folder))
    name = "text_decoder.bert.encoder.layer.1.attention.self.key.weight"
    store(folder, {**weights, name: torch.zeros(8, 32)})
    with pytest.raises(CheckpointError, match=r"layer\.1\.\S+key has shape \[8, 32\], .*layer\.0"):
        source.inspect(folder)
    broken = weights[name].clone()
    broken[0, 0] = torch.inf
    store(folder, {**weights, name: broken})
    with pytest.raises(CheckpointError, match="not finite"):
        source.load(source.inspect(folder))


@pytest.mark.parametrize(
    ("part", "values", "message"),
    [
        ("vision_config", {"image_size": 64}, "config and weights disagree: image_size 64"),
        ("text_config", {"num_attention_heads": 3}, "3 heads"),
        ("text_config", {"num_attention_heads": "two"}, "expected a whole number"),
        ("text_config", {"bos_token_id": 4000}, "bos_token_id in text_config is 4000"),
        ("text_config", {"sep_token_id": 7}, "ends texts with token 3"),
        ("text_config", {"num_hidden_layers": 3}, "weights do not fit the config"),
    ],
)
def test_a_config_of_another_model_is_refused(
    folder: Path, part: str, values: dict[str, Any], message: str
) -> None:
    edit(folder / "config.json", part, **values)
    with pytest.raises(CheckpointError, match=message):
        spec_of(folder)
        source.load(source.inspect(folder))


def test_another_preprocessing_is_refused(folder: Path) -> None:
    file = folder / "processor_config.json"
    edit(file, "image_processor", size={"height": 30, "width": 30})
    with pytest.raises(CheckpointError, match="the vision encoder is made for 32 × 32"):
        spec_of(folder)
    edit(file, "image_processor", size={"height": 32, "width": 32}, do_normalize=False)
    with pytest.raises(CheckpointError, match="goes without do_normalize"):
        spec_of(folder)
    edit(file, "image_processor", image_processor_type="CLIPImageProcessor")
    with pytest.raises(CheckpointError, match="image processor CLIPImageProcessor, expected Blip"):
        spec_of(folder)
