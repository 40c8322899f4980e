"""The demo CLIP: its tokenizer, its start from the demo VLM, its training, its shipped weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from edgevlm_runner.preprocess import load_image

from edgevlm_deploy import resources
from edgevlm_deploy.demo import clip, train_clip
from edgevlm_deploy.demo import model as vlm
from edgevlm_deploy.demo.captions import CLASS_TEMPLATE, full_caption
from edgevlm_deploy.demo.pictures import CLASSES, counterfactual, pair_picture
from edgevlm_deploy.demo.scenes import SIDE, Split, scene


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return clip.tokenizer(pictures=200)


def test_a_word_of_the_captions_is_a_token_and_any_text_can_be_read(tokenizer: Any) -> None:
    words = ["a", "photo", "of", "a", "red", "cube"]
    assert tokenizer.tokenize(" ".join(words)) == [f"{word}</w>" for word in words]
    longest = max((full_caption(pair_picture(Split.TUNING, i)).text for i in range(20)), key=len)
    assert len(tokenizer(longest).input_ids) <= clip.CONTEXT
    ids = tokenizer("Zebra é ☃!").input_ids
    assert ids[0] == tokenizer.bos_token_id
    assert ids[1:].index(tokenizer.eos_token_id) == len(ids) - 2


def test_the_text_is_read_at_the_first_end_token(tokenizer: Any) -> None:
    """It pads too and has the highest id, so runtimes that look for either find the same place."""
    model = clip.architecture(tokenizer)
    assert tokenizer.eos_token_id == tokenizer.pad_token_id == len(tokenizer) - 1
    short = tokenizer("a red cube", return_tensors="pt").input_ids
    padded = tokenizer("a red cube", padding="max_length", return_tensors="pt").input_ids
    assert padded.shape == (1, clip.CONTEXT)
    with torch.no_grad():
        features = [model.get_text_features(input_ids=ids).pooler_output for ids in (short, padded)]
    torch.testing.assert_close(features[0], features[1], atol=1e-5, rtol=1e-4)


def test_patches_start_where_the_vlm_s_stand(tokenizer: Any) -> None:
    """Before the first layer both see the same, up to the scale that the norm in front has."""
    weights = vlm.load_weights(resources.DEMO_CHECKPOINT)
    model = clip.architecture(tokenizer)
    pixels = torch.from_numpy(np.stack([scene(Split.TUNING, i).pixels for i in range(4)]))
    pixels = pixels.permute(0, 3, 1, 2) / 127.5 - 1.0
    clip.take_over_vision(model, weights, pixels)
    theirs = vlm.architecture(vlm.load_tokenizer(resources.DEMO_CHECKPOINT))
    theirs.load_state_dict(weights)
    with torch.no_grad():
        ours = model.vision_model.embeddings(pixels)[:, 1:]
        expected = theirs.model.vision_model.embeddings(pixels, torch.ones(4, 8, 8, dtype=torch.bool))
        torch.testing.assert_close(ours, expected, atol=1e-5, rtol=1e-4)
        normed = model.vision_model.pre_layrnorm(model.vision_model.embeddings(pixels))[:, 1:]
    assert float(normed.std(-1).mean()) == pytest.approx(float(ours.std(-1).mean()), rel=0.01)


def test_training_writes_a_checkpoint_that_loads(tmp_path: Path) -> None:
    from transformers import AutoProcessor, CLIPModel

    train_clip.train(tmp_path, 0, train_clip.Schedule(steps=2, pictures=4, held_out=4))
    rows = [json.loads(line) for line in (tmp_path / "training.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [0, 1]
    model = CLIPModel.from_pretrained(tmp_path)
    assert model.dtype == torch.float16
    assert type(AutoProcessor.from_pretrained(tmp_path)).__name__ == "CLIPProcessor"


def test_the_shipped_checkpoint_tells_the_classes_apart(tmp_path: Path) -> None:
    """With its own processor on picture files, as a user has them."""
    from transformers import AutoProcessor, CLIPModel

    shipped = resources.DEMO_CLIP
    assert sum(path.stat().st_size for path in shipped.iterdir()) < 6_000_000
    model, processor = CLIPModel.from_pretrained(shipped).float(), AutoProcessor.from_pretrained(shipped)
    images, labels = [], []
    for index in range(30):
        common, _ = counterfactual(Split.EVALUATION, index)
        common.image.save(tmp_path / f"{index}.png")
        images.append(load_image(tmp_path / f"{index}.png"))
        labels.append(CLASSES.index(common.things[0].name))
    texts = [CLASS_TEMPLATE.format(name) for name in CLASSES]
    inputs = processor(text=texts, images=images, padding="max_length", return_tensors="pt")
    assert inputs.pixel_values.shape == (30, 3, SIDE, SIDE)
    with torch.no_grad():
        said = model(**inputs).logits_per_image.argmax(dim=1)
    assert (said == torch.tensor(labels)).float().mean() > 0.9
