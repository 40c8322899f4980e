from __future__ import annotations

from pathlib import Path

import pytest
import torch
from edgevlm_runner.contract import ImageSpec, ModelSpec, PromptSpec
from PIL import Image
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from edgevlm_deploy.artifacts import file_digest
from edgevlm_deploy.calibration import Batches, batches, build
from edgevlm_deploy.datasets import Sample
from edgevlm_deploy.errors import DataError
from edgevlm_deploy.recipe import Calibration

SPECIAL = ("<image>", "<fake>", "<global-img>", "<end>")
TOKENS_PER_TILE, SIDE = 4, 24


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    """One token per byte and per special token."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({token: n for n, token in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(list(SPECIAL))
    return tokenizer


@pytest.fixture(scope="module")
def spec(tokenizer: Tokenizer) -> ModelSpec:
    return ModelSpec(
        family="smolvlm",
        runtime="onnxruntime",
        graphs={},
        image=ImageSpec(SIDE, SIDE, False, None, 1, 1 / 255, (0.5,) * 3, (0.5,) * 3),
        prompt=PromptSpec(
            with_image="User:{image}{question}<end>\nAssistant:",
            text_only="User: {question}<end>\nAssistant:",
            image_token="<image>",
            fake_token="<fake>",
            global_token="<global-img>",
            tokens_per_tile=TOKENS_PER_TILE,
        ),
        image_token_id=tokenizer.token_to_id("<image>"),
        eos_token_ids=(tokenizer.token_to_id("<end>"),),
        max_new_tokens=8,
        max_context=100,
        layers=1,
        kv_heads=1,
        head_dim=8,
        hidden_size=8,
        vocab_size=300,
    )


def batched(
    folder: Path, spec: ModelSpec, tokenizer: Tokenizer, answer: str, question: str = "Who?"
) -> Batches:
    Image.new("RGB", (48, 48), (255, 0, 0)).save(folder / "a.png")
    image = folder / "a.png"
    samples = [
        Sample("1", "", image, file_digest(image), question, (answer,) if answer else ()),
        Sample("2", "", None, "", question, (answer,) if answer else ()),
    ]
    tokenizer.save(str(folder / "tokenizer.json"))
    return batches(build(samples, Calibration(samples=2), folder / "set"), spec, folder / "tokenizer.json")


def test_a_batch_is_what_the_model_takes(tmp_path: Path, spec: ModelSpec, tokenizer: Tokenizer) -> None:
    made = batched(tmp_path, spec, tokenizer, "me")
    assert len(made) == 2
    (with_image,) = (batch for batch in made if "pixel_values" in batch)
    (text_only,) = (batch for batch in made if "pixel_values" not in batch)
    assert with_image["pixel_values"].shape == (1, 1, 3, SIDE, SIDE)
    assert with_image["pixel_values"].dtype == torch.float32
    assert with_image["pixel_values"][0, 0, :, 3, 3].tolist() == pytest.approx([1.0, -1.0, -1.0])
    assert with_image["pixel_attention_mask"].shape == (1, 1, SIDE, SIDE)
    assert with_image["pixel_attention_mask"].dtype == torch.bool
    for batch in (with_image, text_only):
        assert batch["input_ids"].dtype == torch.int64
        assert batch["attention_mask"].tolist() == [[1] * batch["input_ids"].shape[1]]
    assert (with_image["input_ids"] == spec.image_token_id).sum() == TOKENS_PER_TILE
    text = tokenizer.decode(text_only["input_ids"][0].tolist(), skip_special_tokens=False)
    assert text == "User: Who?<end>\nAssistant: me<end>"
    for batch in (with_image, text_only):
        answer = batch["input_ids"][batch["labels"] != -100]
        assert tokenizer.decode(answer.tolist(), skip_special_tokens=False) == " me<end>"
        assert torch.equal(batch["labels"][0, -len(answer) :], answer)
    assert made[-1].keys() == made[1].keys()
    assert [batch.keys() for batch in made[:]] == [batch.keys() for batch in made]


def test_without_a_known_answer_the_prompt_ends_the_batch(
    tmp_path: Path, spec: ModelSpec, tokenizer: Tokenizer
) -> None:
    for batch in batched(tmp_path, spec, tokenizer, ""):
        text = tokenizer.decode(batch["input_ids"][0].tolist(), skip_special_tokens=False)
        assert text.endswith("Assistant:")
        assert torch.all(batch["labels"] == -100)


def test_a_sample_that_is_longer_than_the_context(
    tmp_path: Path, spec: ModelSpec, tokenizer: Tokenizer
) -> None:
    with pytest.raises(DataError, match=r"calibration sample \d: 1\d\d tokens, the context holds 100"):
        list(batched(tmp_path, spec, tokenizer, "me", "Who? " * 15))
