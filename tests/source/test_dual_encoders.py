"""CLIP and SigLIP checkpoints: described without torch, loaded as stored, specified for the device."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_dual
from edgevlm_runner import preprocess, zero_shot
from edgevlm_runner.contract import DualEncoderSpec, FrameSpec, TextSpec
from PIL import Image
from tokenizers import Tokenizer

from edgevlm_deploy import resources, source
from edgevlm_deploy.errors import CheckpointError, DataError
from edgevlm_deploy.recipe import Recipe, ZeroShot

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")

RECIPE = resources.recipe("zero-shot-classifier")
GRAPHS = {"vision_encoder": "graphs/v.onnx", "text_encoder": "graphs/t.onnx"}


@pytest.fixture(scope="session", params=["clip", "siglip"])
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_dual.save(request.param, tmp_path_factory.mktemp(request.param) / "tiny")


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    """One to damage."""
    return tiny_dual.save("clip", tmp_path / "tiny")


def spec_of(folder: Path, runtime: str = "onnxruntime", recipe: Recipe = RECIPE) -> DualEncoderSpec:
    found = source.model_spec(source.inspect(folder), recipe, runtime, GRAPHS, tiny_dual.CLASSES)
    assert isinstance(found, DualEncoderSpec)
    return found


def test_components_hold_their_own_matrices(checkpoint: Path) -> None:
    described = source.inspect(checkpoint)
    assert described.kind == "dual_encoder"
    assert set(described.modules) == {"vision_encoder", "text_encoder", "projector", "embedding"}
    assert len(described.modules["vision_encoder"]) == len(described.modules["text_encoder"]) == 2 * 6
    every = [name for names in described.modules.values() for name in names]
    assert len(every) == len(set(every))
    assert not [name for name in every if "position" in name or ("out_proj" in name and "head" in name)]
    model = source.load(described)
    for name in every:
        assert tuple(model.get_submodule(name).weight.shape) == described.shapes[name]


def test_the_specification_is_what_transformers_computes_with(checkpoint: Path) -> None:
    """Logits and probabilities of the whole model, from our classes, cosines and scale."""
    described, spec = source.inspect(checkpoint), spec_of(checkpoint)
    model, tokenizer = source.load(described), Tokenizer.from_file(str(described.tokenizer))
    picture = tiny_dual.picture("disc", 1)
    texts = zero_shot.sentences(spec.text.classes, spec.text.templates)
    pixels = torch.from_numpy(preprocess.frame(picture, spec.image))
    ids = torch.from_numpy(zero_shot.tokens(texts, spec.text, tokenizer))
    with torch.inference_mode():
        theirs = model(pixel_values=pixels, input_ids=ids).logits_per_image[0]
        image = model.get_image_features(pixel_values=pixels).pooler_output[0].numpy()

        def encode(rows: np.ndarray) -> np.ndarray:
            return model.get_text_features(input_ids=torch.from_numpy(rows)).pooler_output.numpy()

        classes = zero_shot.embed_classes(encode, spec.text.classes, spec.text, tokenizer)
    cosines = classes.astype(np.float64) @ zero_shot.normalize(image)
    np.testing.assert_allclose(cosines * spec.logit_scale + spec.logit_bias, theirs, rtol=1e-4, atol=1e-4)
    expected = theirs.softmax(0) if spec.activation == "softmax" else theirs.sigmoid()
    np.testing.assert_allclose(np.exp(zero_shot.log_probabilities(cosines, spec)), expected, rtol=1e-3)


def test_only_a_causal_encoder_goes_without_padding(checkpoint: Path) -> None:
    is_clip = source.inspect(checkpoint).family == "clip"
    assert spec_of(checkpoint).text.padded is not is_clip
    assert spec_of(checkpoint, "tensorrt").text.padded and spec_of(checkpoint, "litert").text.padded
    assert (spec_of(checkpoint).text.end_token_id is not None) is is_clip


@pytest.mark.parametrize("size", [(40, 40), (333, 77), (61, 500), (36, 37), (1, 90)])
def test_pixels_equal_the_image_processors_own(checkpoint: Path, size: tuple[int, int]) -> None:
    from transformers import AutoImageProcessor

    pixels = np.random.default_rng(7).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    processor = AutoImageProcessor.from_pretrained(checkpoint)
    theirs = processor(Image.fromarray(pixels), return_tensors="np")["pixel_values"]
    assert np.array_equal(preprocess.frame(Image.fromarray(pixels), spec_of(checkpoint).image), theirs)


def test_classes_come_from_the_recipe_or_from_the_data(clip: Path) -> None:
    wanted = RECIPE.model_copy(update={"zero_shot": ZeroShot(classes=("cat", "dog"), templates=("the {}",))})
    assert spec_of(clip).text.classes == tiny_dual.CLASSES
    assert spec_of(clip, recipe=wanted).text.classes == ("cat", "dog")
    with pytest.raises(DataError, match="two classes or more"):
        source.model_spec(source.inspect(clip), RECIPE, "onnxruntime", GRAPHS, ("cat",))
    long = RECIPE.model_copy(update={"zero_shot": ZeroShot(classes=("cat", "x" * 40))})
    with pytest.raises(DataError, match="the text encoder reads 16"):
        spec_of(clip, recipe=long)


def edit(path: Path, **values: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def test_damage_is_a_sentence(clip: Path, tmp_path: Path) -> None:
    other = tiny_dual.save("siglip", tmp_path / "other")
    cropped = Path(shutil.copytree(clip, tmp_path / "cropped"))
    edit(cropped / "preprocessor_config.json", crop_size={"height": 30, "width": 30})
    with pytest.raises(CheckpointError, match="expected a shortest_edge, and a centre crop"):
        spec_of(cropped)
    shutil.copy(other / "preprocessor_config.json", cropped / "preprocessor_config.json")
    with pytest.raises(CheckpointError, match="image processor SiglipImageProcessor, expected CLIP"):
        spec_of(cropped)
    config = json.loads((clip / "config.json").read_text())
    config["vision_config"]["image_size"] = 64
    edit(cropped / "config.json", **config)
    with pytest.raises(CheckpointError, match="config and weights disagree: image_size 64"):
        source.inspect(cropped)
    config["vision_config"]["image_size"] = 32
    config["text_config"]["eos_token_id"] = 5
    shutil.copy(clip / "preprocessor_config.json", cropped / "preprocessor_config.json")
    edit(cropped / "config.json", **config)
    with pytest.raises(CheckpointError, match="does not end with the token"):
        spec_of(cropped)


def test_position_buffers_of_older_checkpoints_are_passed_over(clip: Path) -> None:
    """openai/clip-vit-base-patch32 stores 0, 1, 2 … as int64 beside its weights."""
    from safetensors.torch import load_file, save_file

    weights = load_file(clip / "model.safetensors")
    weights["text_model.embeddings.position_ids"] = torch.arange(16)[None]
    save_file(weights, clip / "model.safetensors", metadata={"format": "pt"})
    described = source.inspect(clip)
    assert described.parameters == sum(t.numel() for n, t in weights.items() if "position_ids" not in n)
    source.load(described)
    weights["text_model.final_layer_norm.weight"] = torch.arange(32)
    save_file(weights, clip / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match="is stored as I64"):
        source.inspect(clip)


def test_the_real_clips_preprocessing_and_tokens(real_data: Path) -> None:
    """The published configuration of CLIP ViT-B/32, without its weights."""
    from transformers import AutoTokenizer
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    folder = real_data / "configs" / "clip-vit-base-patch32"
    processor = CLIPImageProcessorPil.from_pretrained(folder)
    mean, std = tuple(processor.image_mean), tuple(processor.image_std)
    spec = FrameSpec(224, 224, 3, processor.rescale_factor, mean, std)
    for size in ((640, 480), (224, 231), (100, 300)):
        pixels = np.random.default_rng(1).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
        theirs = processor(Image.fromarray(pixels), return_tensors="np")["pixel_values"]
        assert np.array_equal(preprocess.frame(Image.fromarray(pixels), spec), theirs)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    on_device = Tokenizer.from_file(str(folder / "tokenizer.json"))
    text = TextSpec((), ("{}",), 77, True, tokenizer.pad_token_id, tokenizer.eos_token_id)
    texts = [f"a photo of a {name}." for name in ("cat", "Traffic light", "coupé", "T-shirt & tie", "日本")]
    theirs = np.asarray(tokenizer(texts, padding="max_length", max_length=77)["input_ids"])
    assert np.array_equal(zero_shot.tokens(texts, text, on_device), theirs)


def test_the_real_clips_end_of_text(real_data: Path, tmp_path: Path) -> None:
    """Its config says that texts end with token 2; transformers takes the largest token instead. The
    published tokenizer and configuration with small layers and random weights."""
    import transformers

    from edgevlm_deploy.export.encoders import TextEncoder

    published = real_data / "configs" / "clip-vit-base-patch32"
    config = transformers.CLIPConfig.from_pretrained(published)
    assert config.text_config.eos_token_id == 2
    small = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    for part in (config.text_config, config.vision_config):
        part.update(small)
    torch.manual_seed(0)
    transformers.CLIPModel(config).save_pretrained(tmp_path / "clip")
    for name in (
        "tokenizer.json",
        "tokenizer_config.json",
        "preprocessor_config.json",
        "vocab.json",
        "merges.txt",
    ):
        shutil.copy(published / name, tmp_path / "clip" / name)
    described, spec = source.inspect(tmp_path / "clip"), spec_of(tmp_path / "clip")
    assert (spec.text.length, spec.text.end_token_id, spec.image.side) == (77, 49407, 224)
    model, tokenizer = source.load(described), Tokenizer.from_file(str(described.tokenizer))
    ids = torch.from_numpy(zero_shot.tokens(["a photo of a cat", "two dogs!"], spec.text, tokenizer))
    model.text_model.config._attn_implementation = "sdpa"
    with torch.inference_mode():
        theirs = model.get_text_features(input_ids=ids).pooler_output
        torch.testing.assert_close(TextEncoder(model, spec.text)(ids), theirs, rtol=1e-4, atol=1e-5)
