"""The device's prompts against transformers' own processors, token for token."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from edgevlm_runner.contract import PromptSpec
from edgevlm_runner.errors import PromptError
from edgevlm_runner.prompt import build, encode, expand
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

SPECIAL = ["<|im_start|>", "<|im_end|>", "<image>", "<fake_token_around_image>", "<global-img>"]
SPECIAL += ["<end_of_utterance>", "<row_1_col_1>", "<row_1_col_2>"]
TEMPLATE = (
    "<|im_start|>{% for message in messages %}{{message['role'] | capitalize}}"
    "{% if message['content'][0]['type'] == 'image' %}{{':'}}{% else %}{{': '}}{% endif %}"
    "{% for line in message['content'] %}{% if line['type'] == 'text' %}{{line['text']}}"
    "{% elif line['type'] == 'image' %}{{ '<image>' }}{% endif %}{% endfor %}<end_of_utterance>\n"
    "{% endfor %}{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
)
SPEC = PromptSpec(
    with_image="<|im_start|>User:{image}{question}<end_of_utterance>\nAssistant:",
    text_only="<|im_start|>User: {question}<end_of_utterance>\nAssistant:",
    image_token="<image>",
    fake_token="<fake_token_around_image>",
    global_token="<global-img>",
    tokens_per_tile=4,
)
QUESTIONS = [
    "What is this?",
    "  Is it red,\nor 1234 (blue)?  ",
    "Qu'est-ce que c'est ? 这是什么 🙂",
    "{image} {question}",
    "",
]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    bpe.train_from_iterator(["User: what is this?\n\nAssistant: a red cat"] * 4, trainer)
    return bpe


@pytest.fixture(scope="module")
def small_processor(tokenizer: Tokenizer) -> Any:
    transformers = pytest.importorskip("transformers")
    from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil

    images = Idefics3ImageProcessorPil(size={"longest_edge": 32}, max_image_size={"longest_edge": 8})
    text = transformers.PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(tokenizer.to_str()),
        bos_token="<|im_start|>",
        eos_token="<end_of_utterance>",
        pad_token="<|im_end|>",
    )
    return transformers.Idefics3Processor(images, text, image_seq_len=4, chat_template=TEMPLATE)


def conversation(question: str, image: Image.Image | None) -> list[dict[str, Any]]:
    content: list[dict[str, Any]] = [{"type": "text", "text": question}]
    if image is not None:
        content.insert(0, {"type": "image", "image": image})
    return [{"role": "user", "content": content}]


def theirs(
    processor: Any, question: str, image: Image.Image | None, split: bool = True
) -> np.ndarray[Any, Any]:
    out = processor.apply_chat_template(
        conversation(question, image),
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="np",
        processor_kwargs={"images_kwargs": {"do_image_splitting": split}},
    )
    return np.asarray(out["input_ids"])


def assert_same(ours: np.ndarray[Any, Any], expected: np.ndarray[Any, Any]) -> None:
    assert ours.dtype == np.int64 and ours.shape == expected.shape
    assert np.array_equal(ours, expected)


@pytest.mark.parametrize("question", QUESTIONS)
@pytest.mark.parametrize(("size", "grid"), [((32, 32), (4, 4)), ((32, 8), (1, 4)), ((8, 32), (4, 1))])
def test_split_pictures(
    tokenizer: Tokenizer, small_processor: Any, question: str, size: tuple[int, int], grid: tuple[int, int]
) -> None:
    ours = encode(tokenizer, build(question, grid, SPEC))
    assert_same(ours, theirs(small_processor, question, Image.new("RGB", size)))
    tiles = grid[0] * grid[1] + 1
    assert (ours == tokenizer.token_to_id("<image>")).sum() == tiles * SPEC.tokens_per_tile


@pytest.mark.parametrize("question", QUESTIONS)
def test_a_single_tile(tokenizer: Tokenizer, small_processor: Any, question: str) -> None:
    ours = encode(tokenizer, build(question, (0, 0), SPEC))
    assert_same(ours, theirs(small_processor, question, Image.new("RGB", (9, 5)), split=False))


@pytest.mark.parametrize("question", QUESTIONS)
def test_text_only(tokenizer: Tokenizer, small_processor: Any, question: str) -> None:
    ours = encode(tokenizer, build(question, None, SPEC))
    assert_same(ours, theirs(small_processor, question, None))
    assert not (ours == tokenizer.token_to_id("<image>")).any()


@pytest.mark.parametrize("question", QUESTIONS)
def test_published_processor(real_data: Path, question: str) -> None:
    transformers = pytest.importorskip("transformers")
    folder = real_data / "configs" / "SmolVLM-256M-Instruct"
    processor = transformers.AutoProcessor.from_pretrained(folder)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    spec = dataclasses.replace(SPEC, tokens_per_tile=64)
    wide = Image.new("RGB", (640, 480))
    for grid, image, split in (((3, 4), wide, True), ((0, 0), wide, False), (None, None, True)):
        ours = encode(tokenizer, build(question, grid, spec))
        assert_same(ours, theirs(processor, question, image, split))


@pytest.mark.parametrize("grid", [(0, 0), (1, 2), (3, 1), (7, 8)])
def test_expansion_equals_smolvlm(grid: tuple[int, int]) -> None:
    """SmolVLM's processor needs packages for video; its image part is a plain function."""
    processing = pytest.importorskip("transformers.models.smolvlm.processing_smolvlm")
    expected = processing.get_image_prompt_string(
        *grid, SPEC.tokens_per_tile, SPEC.fake_token, SPEC.image_token, SPEC.global_token
    )
    assert expand(grid, SPEC) == expected


@pytest.mark.parametrize(
    "question", ["<image>", "a <image> b", "<fake_token_around_image>", "<global-img>?", "see <row_3_col_12>"]
)
@pytest.mark.parametrize("grid", [None, (0, 0), (2, 2)])
def test_questions_cannot_inject_image_tokens(question: str, grid: tuple[int, int] | None) -> None:
    with pytest.raises(PromptError, match="image content"):
        build(question, grid, SPEC)


@given(question=st.text(st.sampled_from("<image>{question} ab"), max_size=30))
def test_image_tokens_are_as_many_as_the_tiles_need(question: str) -> None:
    try:
        text = build(question, (1, 2), SPEC)
    except PromptError:
        assert "<image>" in question
        return
    assert text.count("<image>") == 3 * SPEC.tokens_per_tile
    assert question in text


def test_a_long_prompt_is_not_cut(tokenizer: Tokenizer) -> None:
    strict = Tokenizer.from_str(tokenizer.to_str())
    strict.enable_truncation(max_length=5)
    strict.enable_padding(length=64)
    text = build("What is this?", (0, 0), SPEC)
    assert_same(encode(strict, text), encode(tokenizer, text))


def test_added_special_tokens_stay_out(tokenizer: Tokenizer) -> None:
    from tokenizers.processors import TemplateProcessing

    adding = Tokenizer.from_str(tokenizer.to_str())
    adding.post_processor = TemplateProcessing(single="<|im_start|> $A", special_tokens=[("<|im_start|>", 0)])
    assert len(adding.encode("a").ids) == 2
    assert encode(adding, "a").shape == (1, 1)


def test_broken_unicode(tokenizer: Tokenizer) -> None:
    with pytest.raises(PromptError, match="Unicode"):
        encode(tokenizer, build("\udcff", None, SPEC))
