"""Qwen2-VL and Qwen2.5-VL: what is read from a checkpoint, and what is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_qwen
from edgevlm_runner.contract import ModelSpec, NativeSpec, from_json, to_json
from edgevlm_runner.inputs import from_picture, load_tokenizer
from PIL import Image

from edgevlm_deploy import source
from edgevlm_deploy.errors import CheckpointError
from edgevlm_deploy.recipe import Gate, GateName, Recipe
from edgevlm_deploy.recipe import Image as ImageLimits
from edgevlm_deploy.source import Architecture

FAMILIES = tuple(tiny_qwen.CLASSES)


@pytest.fixture(scope="module")
def all_saved(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("qwen")
    return {family: tiny_qwen.make(root / family, family, tied=family == "qwen2_vl") for family in FAMILIES}


@pytest.fixture
def damaged(all_saved: dict[str, Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(all_saved["qwen2_5_vl"], tmp_path / "tiny"))


def spec_of(folder: Path, **image: Any) -> ModelSpec:
    gate = Gate(metric=GateName.ACCURACY, min=0.0)
    recipe = Recipe(name="test", description="", gates=(gate,), image=ImageLimits(**image))
    spec = source.model_spec(source.inspect(folder), recipe, "onnxruntime", {})
    assert isinstance(spec, ModelSpec)
    return spec


@pytest.mark.parametrize("family", FAMILIES)
def test_weights_are_loaded_as_they_are_stored(all_saved: dict[str, Path], family: str) -> None:
    described = source.inspect(all_saved[family])
    assert described.family == family
    assert isinstance(described.architecture, Architecture)
    assert described.architecture.cell == 2 * tiny_qwen.PATCHES[family]
    assert described.architecture.deepstack == (2 if family == "qwen3_vl" else 0)
    assert described.architecture.window_size == (56 if family == "qwen2_5_vl" else 0)
    model = source.load(described)
    linear = {name for name, module in model.named_modules() if type(module).__name__ == "Linear"}
    named = {name for names in described.modules.values() for name in names}
    assert len(described.modules["projector"]) == 2 * (1 + described.architecture.deepstack)
    assert named - {"model.language_model.embed_tokens"} == linear


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("size", [(61, 95), (200, 30), None])
def test_inputs_equal_the_processors(
    all_saved: dict[str, Path], family: str, size: tuple[int, int] | None
) -> None:
    folder = all_saved[family]
    spec = spec_of(folder)
    picture = Image.effect_noise(size, 80).convert("RGB") if size else None
    ours = from_picture(picture, "12 of 34, naïve?\n", spec, load_tokenizer(folder / "tokenizer.json"))
    tokenizer, patch = tiny_qwen.tokenizer(), tiny_qwen.PATCHES[family]
    processor = tiny_qwen.image_processor(patch)
    content = [{"type": "image"}] if picture else []
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": [*content, {"type": "text", "text": "12 of 34, naïve?\n"}]}],
        add_generation_prompt=True,
        tokenize=False,
    )
    if picture is not None:
        # As Qwen2VLProcessor does, which cannot be made without torchvision.
        grid = processor(images=picture, return_tensors="np")["image_grid_thw"][0]
        text = text.replace("<|image_pad|>", "<|image_pad|>" * (int(grid.prod()) // 4))
        assert ours.pixel_values is not None
        assert ours.pixel_values.shape[2:] == (patch * grid[1], patch * grid[2])
    assert ours.input_ids[0].tolist() == tokenizer(text).input_ids


def test_the_device_is_told(all_saved: dict[str, Path]) -> None:
    spec = spec_of(all_saved["qwen2_5_vl"])
    assert isinstance(spec.image, NativeSpec)
    assert (spec.image.min_pixels, spec.image.max_pixels, spec.image.size) == (784, 31360, None)
    assert spec.position_rows == 3
    assert spec.eos_token_ids == (2, 0)
    assert from_json(ModelSpec, to_json(spec), "model.json") == spec
    smaller = spec_of(all_saved["qwen2_5_vl"], max_pixels=5000).image
    assert isinstance(smaller, NativeSpec)
    assert (smaller.min_pixels, smaller.max_pixels) == (784, 5000)
    fixed = spec_of(all_saved["qwen2_5_vl"], resolution=(56, 84))
    assert isinstance(fixed.image, NativeSpec)
    assert fixed.image.size == (56, 84)
    assert fixed.prompt.tokens_per_tile == 6
    assert from_json(ModelSpec, to_json(fixed), "model.json") == fixed


def test_configurations_of_transformers_4(all_saved: dict[str, Path], damaged: Path) -> None:
    """The decoder's numbers at the top, and M-RoPE in `rope_scaling`, as on the hub."""
    config = json.loads((damaged / "config.json").read_text())
    text = config.pop("text_config")
    rope = text.pop("rope_parameters")
    text |= {"rope_theta": rope["rope_theta"], "model_type": "qwen2_5_vl"}
    text["rope_scaling"] = {"type": "mrope", "mrope_section": rope["mrope_section"]}
    (damaged / "config.json").write_text(json.dumps({**text, **config}))
    described = source.inspect(damaged)
    assert described.architecture == source.inspect(all_saved["qwen2_5_vl"]).architecture
    source.load(described)


def text_config(**changes: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text())
        config["text_config"] |= changes
        (folder / "config.json").write_text(json.dumps(config))

    return change


def processor_config(**changes: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        file = folder / "preprocessor_config.json"
        file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (text_config(num_attention_heads=5), "config and weights disagree"),
        (text_config(rope_parameters={"rope_theta": 1e4, "rope_type": "default"}), r"mrope_section \[\]"),
        (text_config(use_sliding_window=True), "use_sliding_window"),
        (processor_config(patch_size=16), "made for .14, 2, 2."),
        (processor_config(image_processor_type="LlavaImageProcessor"), "expected Qwen2VLImageProcessor"),
        (processor_config(do_normalize=False), "other pixels than its image processor"),
    ],
)
def test_refused(damaged: Path, change: Callable[[Path], None], message: str) -> None:
    change(damaged)
    with pytest.raises(CheckpointError, match=message):
        spec_of(damaged)


def test_a_truncated_checkpoint_is_refused(damaged: Path) -> None:
    file = damaged / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match="truncated"):
        source.inspect(damaged)


def test_patches_of_all_questions_follow_each_other(all_saved: dict[str, Path]) -> None:
    from edgevlm_deploy import reference

    folder = all_saved["qwen2_vl"]
    spec, tokenizer = spec_of(folder), load_tokenizer(folder / "tokenizer.json")
    pictures = [Image.new("RGB", (56, 56)), None, Image.new("RGB", (84, 28))]
    batch = [from_picture(one, "what?", spec, tokenizer) for one in pictures]
    made = reference.collate(batch, spec)
    assert made["image_grid_thw"].tolist() == [[1, 4, 4], [1, 2, 6]]
    assert made["pixel_values"].shape == (28, 3 * 2 * 14 * 14)
    types = made["mm_token_type_ids"]
    assert types.sum(1).tolist() == [4, 0, 3]
    assert np.array_equal(types == 1, made["input_ids"] == tiny_qwen.IMAGE_ID)
