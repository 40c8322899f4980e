"""The demo VLM: a SmolVLM of four million parameters with a tokenizer and chat template of its own.

The class, the processor and the file layout are the published ones; only the sizes are small.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from edgevlm_deploy.demo.questions import ask_any
from edgevlm_deploy.demo.scenes import CELL, SIDE, Split, generator, scene

PATCH = 12
PIXEL_SHUFFLE = CELL // PATCH
TOKENS_PER_TILE = (SIDE // CELL) ** 2
VOCABULARY = 512
MAX_CONTEXT = 512

SPECIAL_TOKENS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<fake_token_around_image>",
    "<image>",
    "<global-img>",
    "<end_of_utterance>",
)
# The turn format of SmolVLM-Instruct, for conversations of text and image parts.
CHAT_TEMPLATE = (
    "<|im_start|>{% for message in messages %}{{ message['role'] | capitalize }}"
    "{% if message['content'][0]['type'] == 'image' %}:{% else %}: {% endif %}"
    "{% for part in message['content'] %}{% if part['type'] == 'text' %}{{ part['text'] }}"
    "{% elif part['type'] == 'image' %}<image>{% endif %}{% endfor %}<end_of_utterance>\n"
    "{% endfor %}{% if add_generation_prompt %}Assistant:{% endif %}"
)


def tokenizer(scenes: int = 2000) -> Any:
    """Byte-level BPE trained on questions and answers of the first training scenes."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    def text() -> Any:
        for index in range(scenes):
            for question in ask_any(scene(Split.TRAIN, index), 8, generator(Split.TRAIN, index, 1)):
                yield f"User:{question.text}\nAssistant: {question.answer}"

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    bpe.train_from_iterator(text(), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        bos_token="<|im_start|>",
        eos_token="<end_of_utterance>",
        pad_token="<|im_end|>",
        unk_token="<|endoftext|>",
        extra_special_tokens={
            "image_token": "<image>",
            "fake_image_token": "<fake_token_around_image>",
            "global_image_token": "<global-img>",
            "end_of_utterance_token": "<end_of_utterance>",
        },
        clean_up_tokenization_spaces=False,
        model_max_length=MAX_CONTEXT,
    )


def load_tokenizer(directory: Path) -> Any:
    """The tokenizer that `save` wrote."""
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast.from_pretrained(directory)


def load_weights(directory: Path) -> dict[str, Any]:
    """Parameter name → float32 tensor, as `save` wrote them."""
    from safetensors.torch import load_file

    return {name: tensor.float() for name, tensor in load_file(directory / "model.safetensors").items()}


def processor(text_tokenizer: Any) -> Any:
    """One tile per picture, no splitting, SmolVLM's normalisation."""
    from transformers import Idefics3Processor
    from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil

    images = Idefics3ImageProcessorPil(
        size={"longest_edge": SIDE},
        max_image_size={"longest_edge": SIDE},
        do_image_splitting=False,
        image_mean=[0.5, 0.5, 0.5],
        image_std=[0.5, 0.5, 0.5],
    )
    return Idefics3Processor(
        images, text_tokenizer, image_seq_len=TOKENS_PER_TILE, chat_template=CHAT_TEMPLATE
    )


def architecture(text_tokenizer: Any) -> Any:
    """A SmolVLM with random weights, float32."""
    from transformers import SmolVLMConfig, SmolVLMForConditionalGeneration

    special = {name: text_tokenizer.convert_tokens_to_ids(name) for name in SPECIAL_TOKENS}
    ids = {
        "bos_token_id": special["<|im_start|>"],
        "eos_token_id": special["<end_of_utterance>"],
        "pad_token_id": special["<|im_end|>"],
    }
    config = SmolVLMConfig(
        image_token_id=special["<image>"],
        scale_factor=PIXEL_SHUFFLE,
        pad_token_id=ids["pad_token_id"],
        tie_word_embeddings=False,
        vision_config={
            "hidden_size": 128,
            "intermediate_size": 512,
            "num_hidden_layers": 5,
            "num_attention_heads": 4,
            "image_size": SIDE,
            "patch_size": PATCH,
        },
        text_config={
            "model_type": "llama",
            "vocab_size": VOCABULARY,
            "hidden_size": 256,
            "intermediate_size": 512,
            "num_hidden_layers": 5,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 64,
            "max_position_embeddings": MAX_CONTEXT,
            "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
            "tie_word_embeddings": False,
            **ids,
        },
    )
    model = SmolVLMForConditionalGeneration(config)
    model.generation_config.update(**ids)
    return model


def save(model: Any, text_tokenizer: Any, directory: Path) -> None:
    """Write the checkpoint in `save_pretrained` layout with fp16 weights."""
    import torch

    model.to(torch.float16).save_pretrained(directory)
    processor(text_tokenizer).save_pretrained(directory)
