"""Tiny checkpoints in `save_pretrained` layout, one per family."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

SPECIAL = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<fake_token_around_image>",
    "<image>",
    "<global-img>",
    "<end_of_utterance>",
)
TEMPLATE = (
    "<|im_start|>{% for message in messages %}{{ message['role'] | capitalize }}"
    "{% if message['content'][0]['type'] == 'image' %}:{% else %}: {% endif %}"
    "{% for part in message['content'] %}{% if part['type'] == 'text' %}{{ part['text'] }}"
    "{% elif part['type'] == 'image' %}<image>{% endif %}{% endfor %}<end_of_utterance>\n"
    "{% endfor %}{% if add_generation_prompt %}Assistant:{% endif %}"
)
IMAGE_TOKEN_ID, END_ID = 4, 6


def _tokenizer() -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=list(SPECIAL), initial_alphabet=alphabet, show_progress=False
    )
    bpe.train_from_iterator(["User: what is this?\nAssistant: a red cat"] * 4, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe, bos_token="<|im_start|>", eos_token="<|im_end|>", pad_token="<|im_end|>"
    )


def _processor() -> Any:
    from transformers import Idefics3Processor
    from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil

    images = Idefics3ImageProcessorPil(
        size={"longest_edge": 64},
        max_image_size={"longest_edge": 32},
        image_mean=[0.5] * 3,
        image_std=[0.25] * 3,
    )
    return Idefics3Processor(images, _tokenizer(), image_seq_len=4, chat_template=TEMPLATE)


def _model(family: str, tied: bool) -> Any:
    import transformers

    torch.manual_seed(0)
    name = {"idefics3": "Idefics3", "smolvlm": "SmolVLM"}[family]
    config = getattr(transformers, f"{name}Config")(
        text_config={
            "model_type": "llama",
            "vocab_size": 304,
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 8,
            "max_position_embeddings": 256,
            "rope_parameters": {"rope_type": "default", "rope_theta": 5000.0},
            "bos_token_id": 1,
            "eos_token_id": 2,
            "pad_token_id": 2,
            "tie_word_embeddings": tied,
        },
        vision_config={
            "hidden_size": 24,
            "intermediate_size": 40,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "image_size": 32,
            "patch_size": 8,
        },
        scale_factor=2,
        image_token_id=IMAGE_TOKEN_ID,
        tie_word_embeddings=tied,
    )
    model = getattr(transformers, f"{name}ForConditionalGeneration")(config)
    model.generation_config.update(bos_token_id=1, eos_token_id=2, pad_token_id=2)
    return model


@pytest.fixture(scope="session")
def make(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """make(family, dtype=…, tied=…, max_shard_size=…) → a new folder."""

    def write(
        family: str = "smolvlm", dtype: str = "float16", tied: bool = False, max_shard_size: str = "1GB"
    ) -> Path:
        folder = tmp_path_factory.mktemp("checkpoint") / f"tiny-{family}"
        model = _model(family, tied).to(getattr(torch, dtype))
        model.save_pretrained(folder, max_shard_size=max_shard_size)
        _processor().save_pretrained(folder)
        return folder

    return write


@pytest.fixture(scope="session")
def saved(make: Callable[..., Path]) -> Path:
    """A SmolVLM stored as fp16; read only."""
    return make()


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    return Path(shutil.copytree(saved, tmp_path / "tiny"))


@pytest.fixture
def edit() -> Callable[..., None]:
    """edit(file, key=value, …): change keys of a JSON file; None removes one."""

    def change(file: Path, **values: Any) -> None:
        data = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
        data = {key: value for key, value in {**data, **values}.items() if value is not None}
        file.write_text(json.dumps(data), encoding="utf-8")

    return change
