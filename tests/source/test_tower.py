"""Checkpoints of LLaVA and its relatives: what is read from them, and what is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny_families
import torch
import transformers
from edgevlm_runner import anyres
from edgevlm_runner.contract import AnyresSpec, FrameSpec
from edgevlm_runner.inputs import from_picture, load_tokenizer
from PIL import Image

from edgevlm_deploy import quiet, resources, source
from edgevlm_deploy.errors import CheckpointError, PlanError
from edgevlm_deploy.source import SourceModel, tower

FAMILIES = sorted(tiny_families.MAKERS)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    root = tmp_path_factory.mktemp("towers")

    def folder(family: str) -> Path:
        if not (root / family).exists():
            with quiet.libraries():
                tiny_families.save(family, root / family)
        return root / family

    return folder


def spec_of(folder: Path) -> Any:
    return source.model_spec(source.inspect(folder), resources.recipe("default"), "onnxruntime", {})


@pytest.mark.parametrize("family", FAMILIES)
def test_every_layer_that_computes_is_in_one_component(saved: Callable[[str], Path], family: str) -> None:
    described = source.inspect(saved(family))
    model = source.load(described)
    linear = {name: one for name, one in model.named_modules() if isinstance(one, torch.nn.Linear)}
    listed = [name for names in described.modules.values() for name in names]
    assert len(listed) == len(set(listed))
    # The towers of LLaVA-1.5 and LLaVA-NeXT end one layer before their last.
    unused = {name for name in linear if name.startswith("model.vision_tower.encoder.layers.2.")}
    assert bool(unused) == (family in ("llava", "llava_next"))
    assert set(listed) == {*linear, "model.language_model.embed_tokens"} - unused
    for name in listed:
        assert tuple(model.get_submodule(name).weight.shape) == described.shapes[name]
    assert described.tied_head == (family == "paligemma")


def test_gemma_norms_hold_their_sum(saved: Callable[[str], Path]) -> None:
    described = source.inspect(saved("paligemma"))
    name = "language_model.model.layers.0.input_layernorm.weight"
    from safetensors.torch import load_file

    stored = load_file(described.path / "model.safetensors")[name].float()
    norm = source.load(described).get_decoder().layers[0].input_layernorm
    assert torch.equal(norm.weight, 1 + stored)


REFUSED = {
    "a decoder that is not exported": ("llava", {"text_config": {"model_type": "gemma2"}}, "type 'gemma2'"),
    "a tower that is not exported": ("llava", {"vision_config": {"model_type": "pixtral"}}, "type 'pixtral'"),
    "several layers of features": (
        "llava",
        {"vision_feature_layer": [-2, -1]},
        r"vision_feature_layer .* \[-2",
    ),
    "a layer that is not there": ("llava", {"vision_feature_layer": -9}, "one of the 3 layers"),
    "another size of pictures": ("llava", {"vision_config": {"image_size": 35}}, "disagree: image_size 35"),
    "a decoder that looks back a little": (
        "llava_next",
        {"text_config": {"sliding_window": 8}},
        "8 tokens only",
    ),
    "PaliGemma 2": ("paligemma", {"text_config": {"model_type": "gemma2"}}, "for paligemma: gemma"),
    "a head that is nowhere": ("paligemma", {"tie_word_embeddings": False}, "has no lm_head.weight"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_exported_is_refused(saved: Callable[[str], Path], tmp_path: Path, case: str) -> None:
    family, changes, message = REFUSED[case]
    folder = changed(saved(family), tmp_path, "config.json", changes)
    with pytest.raises(CheckpointError, match=message):
        source.inspect(folder)


SPECIFICATIONS = {
    "odd grids": (
        "llava_next",
        "config.json",
        {"image_grid_pinpoints": [[28, 28]]},
        "image_grid_pinpoints differ",
    ),
    "no number of tiles": (
        "llava_onevision",
        "config.json",
        {"vision_aspect_ratio": "square"},
        "is 'square'",
    ),
    "other squares": (
        "llava",
        "processor_config.json",
        {"image_processor": {"crop_size": 14}},
        "expected a shortest",
    ),
}


@pytest.mark.parametrize("case", SPECIFICATIONS)
def test_what_cannot_be_prepared_is_refused(saved: Callable[[str], Path], tmp_path: Path, case: str) -> None:
    family, file, changes, message = SPECIFICATIONS[case]
    with pytest.raises(CheckpointError, match=message):
        spec_of(changed(saved(family), tmp_path, file, changes))


def changed(folder: Path, to: Path, file: str, changes: dict[str, Any]) -> Path:
    copy = Path(shutil.copytree(folder, to / "changed"))
    data = json.loads((copy / file).read_text())
    for key, value in changes.items():
        data[key] = {**data[key], **value} if isinstance(value, dict) else value
    (copy / file).write_text(json.dumps(data))
    return copy


def test_a_recipe_bounds_the_tiles(saved: Callable[[str], Path]) -> None:
    described, whole = source.inspect(saved("llava_next")), resources.recipe("default")

    def bounded(most: int) -> Any:
        image = whole.image.model_copy(update={"max_tiles": most})
        return source.model_spec(described, whole.model_copy(update={"image": image}), "onnxruntime", {})

    spec = bounded(3)
    assert (spec.image.heights, spec.image.widths) == ((28, 56, 28), (56, 28, 28))
    assert len(anyres.tiles(tiny_families.pictures()[0], spec.image)) == 3
    model = source.load(described, spec)
    assert model.config.image_grid_pinpoints == [[28, 56], [56, 28], [28, 28]]
    with pytest.raises(PlanError, match="at least 2 tiles"):
        bounded(1)


@pytest.mark.parametrize("size", [(28, 28), (40, 61), (75, 33), (300, 20), (20, 300), (199, 201)])
@pytest.mark.parametrize("family", ["llava_next", "llava_onevision"])
def test_tokens_are_packed_as_transformers_do(
    saved: Callable[[str], Path], family: str, size: tuple[int, int]
) -> None:
    model, spec = source.load(source.inspect(saved(family))), spec_of(saved(family)).image
    assert isinstance(spec, AnyresSpec)
    tiles = len(anyres.tiles(Image.new("RGB", size[::-1]), spec))
    features = torch.randn(tiles, spec.side_tokens**2 + 1, 64, generator=torch.Generator().manual_seed(0))
    newline = features[0, -1].clone()
    features[:, -1] = newline
    given = {"image_newline": newline}
    if family == "llava_next":
        given["vision_feature_select_strategy"] = "default"
    else:
        given["vision_aspect_ratio"] = model.config.vision_aspect_ratio
    theirs, _ = model.model.pack_image_features([features[:, :-1]], torch.tensor([size]), **given)
    ours = anyres.pack(features.numpy(), size, spec)
    assert ours.shape == (1, anyres.tokens(size, spec), 64)
    torch.testing.assert_close(torch.from_numpy(ours[0]), theirs[0], atol=1e-6, rtol=0)


def small_published(real_data: Path, to: Path) -> Path:
    """LLaVA-1.5-7B's files with a narrow decoder of random weights."""
    from safetensors.torch import save_file

    shutil.copytree(real_data / "configs" / "llava-1.5-7b-hf", to, copy_function=shutil.copyfile)
    to.chmod(0o755)
    (to / "model.safetensors.index.json").unlink()
    config = json.loads((to / "config.json").read_text())
    small = {"hidden_size": 32, "intermediate_size": 32, "num_attention_heads": 2, "num_hidden_layers": 1}
    config["text_config"].update(small)
    config["vision_config"].update(num_hidden_layers=2, hidden_size=32, intermediate_size=32)
    (to / "config.json").write_text(json.dumps(config))
    made = transformers.LlavaForConditionalGeneration(transformers.AutoConfig.from_pretrained(to))
    save_file(made.state_dict(), to / "model.safetensors", {"format": "pt"})
    return to


def test_llava_1_5(real_data: Path, tmp_path: Path) -> None:
    folder = small_published(real_data, tmp_path / "model")
    spec = spec_of(folder)
    assert isinstance(spec.image, FrameSpec)
    assert (spec.image.side, spec.image.shortest_edge, spec.prompt.tokens_per_tile) == (336, 336, 576)
    assert (spec.eos_token_ids, spec.image_token_id) == ((2,), 32000)
    processor = transformers.AutoProcessor.from_pretrained(folder)
    picture = Image.effect_noise((640, 480), 80).convert("RGB")
    question = "How many birds, and what colour?"
    turn = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": question}]}]
    text = processor.apply_chat_template(turn, add_generation_prompt=True)
    theirs = processor(images=picture, text=text, return_tensors="np")
    ours = from_picture(picture, question, spec, load_tokenizer(folder / "tokenizer.json"))
    assert ours.input_ids.tolist() == theirs["input_ids"].tolist()
    assert ours.pixel_values is not None and (ours.pixel_values == theirs["pixel_values"]).all()


def test_names_of_published_tensors(real_data: Path) -> None:
    """Every tensor of LLaVA-1.5-7B has a module, and every parameter a tensor."""
    folder = real_data / "configs" / "llava-1.5-7b-hf"
    stored = json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"]
    with torch.device("meta"):
        config = transformers.AutoConfig.from_pretrained(folder)
        model = transformers.LlavaForConditionalGeneration(config)
    names = {tower.module_name(name) for name in stored if not name.endswith("position_ids")}
    assert names == set(model.state_dict())


def test_what_is_known_before_loading(saved: Callable[[str], Path]) -> None:
    described: SourceModel = source.inspect(saved("llava_onevision"))
    assert described.family == "llava_onevision"
    assert described.architecture == source.Architecture(
        layers=2,
        kv_heads=2,
        head_dim=16,
        hidden_size=64,
        vocab_size=304,
        max_context=512,
        rope_theta=10000.0,
        image_token_id=2,
        image_size=28,
        patch_size=7,
        tokens_per_tile=17,
    )
