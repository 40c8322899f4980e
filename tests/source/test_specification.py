"""What the device is told: equal to what transformers' processors do with the same checkpoint."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from edgevlm_runner.contract import ImageSpec, ModelSpec, from_json, to_json
from edgevlm_runner.inputs import from_picture, load_tokenizer
from PIL import Image

from edgevlm_deploy import source
from edgevlm_deploy.errors import CheckpointError
from edgevlm_deploy.recipe import Gate, GateName, Generation, Recipe
from edgevlm_deploy.recipe import Image as ImageLimits

transformers = pytest.importorskip("transformers")

GRAPHS = {"vision_encoder": "graphs/vision_encoder.onnx", "decoder": "graphs/decoder.onnx"}


def recipe(**fields: Any) -> Recipe:
    gate = Gate(metric=GateName.ACCURACY, min=0.0)
    return Recipe(name="test", description="", gates=(gate,), **fields)


def spec_of(folder: Path, **fields: Any) -> ModelSpec:
    return source.model_spec(source.inspect(folder), recipe(**fields), "onnxruntime", GRAPHS)


def test_numbers(saved: Path) -> None:
    spec = spec_of(saved)
    assert spec.image == ImageSpec(32, 64, True, None, 1, 1 / 255, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
    assert spec.prompt.with_image == "<|im_start|>User:{image}{question}<end_of_utterance>\nAssistant:"
    assert spec.prompt.text_only == "<|im_start|>User: {question}<end_of_utterance>\nAssistant:"
    assert (spec.prompt.image_token, spec.prompt.tokens_per_tile) == ("<image>", 4)
    assert (spec.family, spec.runtime, spec.graphs) == ("smolvlm", "onnxruntime", GRAPHS)
    assert (spec.layers, spec.kv_heads, spec.head_dim, spec.hidden_size, spec.vocab_size) == (
        2,
        2,
        8,
        32,
        304,
    )
    assert (spec.image_token_id, spec.eos_token_ids) == (4, (2, 6))
    assert from_json(ModelSpec, to_json(spec), "model.json") == spec


def test_context_is_cut_to_what_the_decoder_was_made_for(saved: Path) -> None:
    spec = spec_of(saved, generation=Generation(max_new_tokens=4000, max_context=4096))
    assert (spec.max_context, spec.max_new_tokens) == (256, 255)
    spec = spec_of(saved, generation=Generation(max_new_tokens=8, max_context=100))
    assert (spec.max_context, spec.max_new_tokens) == (100, 8)


def test_max_tiles_comes_from_the_recipe(saved: Path) -> None:
    assert spec_of(saved, image=ImageLimits(max_tiles=3)).image.max_tiles == 3


def assert_inputs_equal(folder: Path, processor: Any, image: Image.Image | None, question: str) -> None:
    """Pixels and tokens of the device against the whole transformers processor."""
    spec = spec_of(folder)
    ours = from_picture(image, question, spec, load_tokenizer(source.inspect(folder).tokenizer))
    content: list[dict[str, Any]] = [{"type": "text", "text": question}]
    if image is not None:
        content.insert(0, {"type": "image", "image": image})
    theirs = processor.apply_chat_template(
        [{"role": "user", "content": content}],
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="np",
    )
    assert np.array_equal(ours.input_ids, theirs["input_ids"])
    if image is not None:
        assert ours.pixel_values is not None
        assert np.array_equal(ours.pixel_values, theirs["pixel_values"][0])


@pytest.mark.parametrize("size", [(64, 64), (200, 30), (31, 33), None])
@pytest.mark.parametrize("question", ["What is this?", "12 of 34, naïve?\n"])
def test_inputs_equal_the_processors(saved: Path, size: tuple[int, int] | None, question: str) -> None:
    image = Image.effect_noise(size, 80).convert("RGB") if size else None
    assert_inputs_equal(saved, transformers.Idefics3Processor.from_pretrained(saved), image, question)


def test_the_layout_of_transformers_4(saved: Path, folder: Path, edit: Callable[..., None]) -> None:
    """preprocessor_config.json and chat_template.json instead of one file and a .jinja."""
    nested = json.loads((folder / "processor_config.json").read_text())["image_processor"]
    edit(folder / "preprocessor_config.json", **nested)
    edit(folder / "processor_config.json", image_processor=None)
    template = (folder / "chat_template.jinja").read_text()
    (folder / "chat_template.jinja").unlink()
    edit(folder / "chat_template.json", chat_template=template)
    assert spec_of(folder) == spec_of(saved)


def test_template_in_the_tokenizers_configuration(
    saved: Path, folder: Path, edit: Callable[..., None]
) -> None:
    template = (folder / "chat_template.jinja").read_text()
    (folder / "chat_template.jinja").unlink()
    edit(folder / "tokenizer_config.json", chat_template=template)
    assert spec_of(folder) == spec_of(saved)


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{{ messages[0]['content'][-1]['text'] }}", "places 0 image tokens"),
        ("<image><image>{{ messages[0]['content'][-1]['text'] }}", "places 2 image tokens"),
        ("<image>hello", "once and unchanged"),
        ("<image>{{ messages[0]['content'][-1]['text'] | upper }}", "once and unchanged"),
        ("<image>{question}{{ messages[0]['content'][-1]['text'] }}", "once and unchanged"),
        ("{{ raise_exception('no') }}", "cannot be rendered"),
        ("{% for", "cannot be rendered"),
        ("{{ ''.__class__.__mro__[1].__subclasses__() }}", "cannot be rendered"),
    ],
)
def test_templates_that_do_not_fit(folder: Path, template: str, message: str) -> None:
    (folder / "chat_template.jinja").write_text(template)
    with pytest.raises(CheckpointError, match=message):
        spec_of(folder)


def test_no_template(folder: Path) -> None:
    (folder / "chat_template.jinja").unlink()
    with pytest.raises(CheckpointError, match="no chat template"):
        spec_of(folder)


def test_end_tokens(folder: Path, edit: Callable[..., None]) -> None:
    generation = folder / "generation_config.json"
    edit(generation, eos_token_id=[6, 2])
    assert spec_of(folder).eos_token_ids == (6, 2)
    generation.unlink()
    assert spec_of(folder).eos_token_ids == (2, 6)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"do_normalize": False}, "do_normalize"),
        ({"size": {"height": 64, "width": 64}}, "longest_edge"),
        ({"max_image_size": {"longest_edge": 48}}, "tiles of 48 pixels"),
        ({"image_processor_type": "CLIPImageProcessor"}, "CLIPImageProcessor, expected"),
    ],
)
def test_image_processors_that_do_not_fit(folder: Path, change: dict[str, Any], message: str) -> None:
    file = folder / "processor_config.json"
    config = json.loads(file.read_text())
    config["image_processor"] |= change
    file.write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=message):
        spec_of(folder)


def test_image_tokens_that_do_not_fit(folder: Path, edit: Callable[..., None]) -> None:
    edit(folder / "processor_config.json", image_seq_len=9)
    with pytest.raises(CheckpointError, match="image_seq_len 9"):
        spec_of(folder)
    edit(folder / "processor_config.json", image_seq_len=4)
    edit(folder / "config.json", image_token_id=5)
    with pytest.raises(CheckpointError, match="image tokens"):
        spec_of(folder)
    edit(folder / "config.json", image_token_id=303)
    with pytest.raises(CheckpointError, match="303"):
        spec_of(folder)


def test_tokenizers_that_do_not_fit(folder: Path) -> None:
    file = folder / "tokenizer.json"
    file.write_text("{}")
    with pytest.raises(CheckpointError, match="tokenizer cannot be loaded"):
        spec_of(folder)
    file.unlink()
    with pytest.raises(CheckpointError, match=r"no tokenizer\.json"):
        spec_of(folder)


def test_tokens_that_the_tokenizer_adds_are_written_out_or_refused(folder: Path) -> None:
    """The template begins without BOS, so the processor puts one there; an end token has no place."""
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    tokenizer["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [
            {"SpecialToken": {"id": "<|im_start|>", "type_id": 0}},
            {"Sequence": {"id": "A", "type_id": 0}},
        ],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}],
        "special_tokens": {"<|im_start|>": {"id": "<|im_start|>", "ids": [1], "tokens": ["<|im_start|>"]}},
    }
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    assert spec_of(folder).prompt.with_image.startswith("<|im_start|>")
    template = (folder / "chat_template.jinja").read_text()
    (folder / "chat_template.jinja").write_text(template.removeprefix("<|im_start|>"))
    assert spec_of(folder).prompt.text_only.startswith("<|im_start|>")
    tokenizer["post_processor"]["single"].reverse()
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(CheckpointError, match="disagree on a prompt"):
        spec_of(folder)


def hollow(real_data: Path, name: str, to: Path) -> Path:
    """The published files with one layer of random weights."""
    import torch
    from safetensors.torch import save_file

    shutil.copytree(real_data / "configs" / name, to, copy_function=shutil.copyfile)
    to.chmod(0o755)
    config = json.loads((to / "config.json").read_text())
    for section in ("text_config", "vision_config"):
        config[section]["num_hidden_layers"] = 1
    (to / "config.json").write_text(json.dumps(config))
    with torch.device("meta"):
        made = getattr(transformers, config["architectures"][0])(transformers.AutoConfig.from_pretrained(to))
    weights = {
        key: torch.zeros(tensor.shape, dtype=torch.bfloat16) for key, tensor in made.state_dict().items()
    }
    save_file(weights, to / "model.safetensors", {"format": "pt"})
    return to


def test_smolvlm_256m(real_data: Path, tmp_path: Path) -> None:
    folder = hollow(real_data, "SmolVLM-256M-Instruct", tmp_path / "model")
    spec = spec_of(folder)
    assert spec.eos_token_ids == (49279,)
    assert spec.image == ImageSpec(512, 2048, True, None, 1, 1 / 255, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    assert (spec.prompt.tokens_per_tile, spec.max_context) == (64, 2048)
    processor = transformers.AutoProcessor.from_pretrained(folder)
    image = Image.effect_noise((640, 480), 80).convert("RGB")
    assert_inputs_equal(folder, processor, image, "How many birds, and what colour?")
    assert_inputs_equal(folder, processor, None, "What is 2 + 2?")


def test_smolvlm2_500m(real_data: Path, tmp_path: Path) -> None:
    """Its preprocessing; the tokenizer, not among the test data, is SmolVLM's."""
    folder = hollow(real_data, "SmolVLM2-500M-Video-Instruct", tmp_path / "model")
    with pytest.raises(CheckpointError, match=r"no tokenizer\.json"):
        spec_of(folder)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.json"):
        shutil.copyfile(real_data / "configs" / "SmolVLM-256M-Instruct" / name, folder / name)
    spec = spec_of(folder)
    assert (spec.family, spec.hidden_size, spec.image.tile_size) == ("smolvlm", 960, 512)
    processor = transformers.AutoImageProcessor.from_pretrained(folder)
    image = Image.effect_noise((320, 500), 80).convert("RGB")
    ours = from_picture(image, "What?", spec, load_tokenizer(folder / "tokenizer.json"))
    assert ours.pixel_values is not None
    assert np.array_equal(ours.pixel_values, processor(image)["pixel_values"][0])
