"""Tiny VLMs of each family with random weights, in `save_pretrained` layout with processor and tokenizer."""

from __future__ import annotations

import functools
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

SIDE, PATCH = 28, 7
BOS, EOS, IMAGE = "<s>", "</s>", "<image>"
TURNS = (
    "{% for message in messages %}{{ message['role'] | upper }}: {% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<image>\n{% else %}{{ part['text'] }} {% endif %}{% endfor %}"
    "{% endfor %}{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)
TEXT = {
    "vocab_size": 304,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 1,
}
VISION = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_attention_heads": 2,
    "image_size": SIDE,
    "patch_size": PATCH,
}
CLIP = {"model_type": "clip_vision_model", "num_hidden_layers": 3, "projection_dim": 16, **VISION}
SIGLIP = {"model_type": "siglip_vision_model", "num_hidden_layers": 2, "vision_use_head": False, **VISION}


def tokenizer() -> Any:
    """One token per byte, and one in front of every text, as Llama's has it."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    special = [BOS, EOS, IMAGE]
    bpe = Tokenizer(models.BPE({token: n for n, token in enumerate([*special, *alphabet])}, []))
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    bpe.add_special_tokens(special)
    bpe.post_processor = processors.TemplateProcessing(single=f"{BOS} $A", special_tokens=[(BOS, 0)])
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        bos_token=BOS,
        eos_token=EOS,
        pad_token=EOS,
        extra_special_tokens={"image_token": IMAGE},
    )


def _llava() -> tuple[Any, Any]:
    import transformers
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    config = transformers.LlavaConfig(
        vision_config=CLIP, text_config={"model_type": "llama", **TEXT}, image_token_index=2
    )
    pixels = CLIPImageProcessorPil(size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE})
    processor = transformers.LlavaProcessor(
        pixels,
        tokenizer(),
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=TURNS,
    )
    return transformers.LlavaForConditionalGeneration(config), processor


def _paligemma() -> tuple[Any, Any]:
    import transformers
    from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

    # Embeddings are scaled by √96, which fp16 does not hold.
    text = {"model_type": "gemma", **TEXT, "hidden_size": 96, "num_key_value_heads": 1, "head_dim": 16}
    config = transformers.PaliGemmaConfig(
        vision_config=SIGLIP, text_config=text, image_token_index=2, projection_dim=96
    )
    pixels = SiglipImageProcessorPil(size={"height": SIDE, "width": SIDE})
    pixels.image_seq_length = (SIDE // PATCH) ** 2
    return (
        transformers.PaliGemmaForConditionalGeneration(config),
        transformers.PaliGemmaProcessor(pixels, tokenizer()),
    )


GRIDS = [[SIDE, 2 * SIDE], [2 * SIDE, SIDE], [2 * SIDE, 2 * SIDE], [SIDE, 3 * SIDE], [SIDE, SIDE]]


def _llava_next() -> tuple[Any, Any]:
    import transformers
    from transformers.models.llava_next.image_processing_pil_llava_next import LlavaNextImageProcessorPil

    text = {"model_type": "mistral", **TEXT, "sliding_window": None}
    config = transformers.LlavaNextConfig(
        vision_config=CLIP, text_config=text, image_token_index=2, image_grid_pinpoints=GRIDS
    )
    pixels = LlavaNextImageProcessorPil(
        size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE}, image_grid_pinpoints=GRIDS
    )
    processor = transformers.LlavaNextProcessor(
        pixels,
        tokenizer(),
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=TURNS,
    )
    return transformers.LlavaNextForConditionalGeneration(config), processor


def _llava_onevision() -> tuple[Any, Any]:
    import transformers
    from transformers.models.llava_onevision.image_processing_pil_llava_onevision import (
        LlavaOnevisionImageProcessorPil,
    )

    # With room for two tiles' worth of tokens, larger grids are interpolated.
    config = transformers.LlavaOnevisionConfig(
        vision_config=SIGLIP,
        text_config={"model_type": "qwen2", **TEXT},
        image_token_index=2,
        video_token_index=2,
        image_grid_pinpoints=GRIDS,
        vision_aspect_ratio="anyres_max_2",
    )
    pixels = LlavaOnevisionImageProcessorPil(size={"height": SIDE, "width": SIDE}, image_grid_pinpoints=GRIDS)
    return transformers.LlavaOnevisionForConditionalGeneration(config), _OnevisionProcessor(pixels)


class _OnevisionProcessor:
    """transformers' wants torchvision, for its films; this one borrows how it counts tokens."""

    def __init__(self, pixels: Any) -> None:
        self.image_processor, self.tokenizer = pixels, tokenizer()
        self.tokenizer.chat_template = TURNS
        self.num_image_tokens, self.vision_aspect_ratio = (SIDE // PATCH) ** 2, "anyres_max_2"
        self.apply_chat_template = functools.partial(self.tokenizer.apply_chat_template, tokenize=False)

    def __call__(self, images: Image.Image, text: str, return_tensors: str) -> dict[str, Any]:
        from transformers import LlavaOnevisionProcessor as Real

        self._get_unpadded_features = functools.partial(Real._get_unpadded_features, self)
        count = Real._get_number_of_features(self, images.height, images.width, SIDE, SIDE)
        pixels = self.image_processor(images, return_tensors=return_tensors)
        words = self.tokenizer(text.replace(IMAGE, IMAGE * count), return_tensors=return_tensors)
        return {**words, "pixel_values": pixels["pixel_values"], "image_sizes": pixels["image_sizes"]}

    def save_pretrained(self, folder: Path) -> None:
        self.image_processor.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)


MAKERS = {
    "llava_next": _llava_next,
    "llava_onevision": _llava_onevision,
    "llava": _llava,
    "paligemma": _paligemma,
}


def make(family: str) -> tuple[Any, Any]:
    """(model in float32 and eval mode, processor), both transformers'."""
    import torch

    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model, processor = MAKERS[family]()
    with torch.no_grad():
        for parameter in model.parameters():
            # Fresh weights are so small that pictures change nothing; norms and biases are all alike.
            if parameter.ndim >= 2:
                parameter.normal_(std=parameter[0].numel() ** -0.5)
            else:
                parameter.add_(0.1 * torch.randn(parameter.shape))
        # A head that shares the embedding's weight would else repeat each token.
        model.get_decoder().norm.weight.normal_()
    model.generation_config.update(bos_token_id=0, eos_token_id=1, pad_token_id=1)
    return model.eval(), processor


def save(family: str, folder: Path, dtype: str = "float16") -> Path:
    import torch

    model, processor = make(family)
    model.to(getattr(torch, dtype)).save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def pictures() -> list[Image.Image]:
    """A wide, a tall and a small one."""
    rng = np.random.default_rng(0)
    return [
        Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))
        for width, height in ((61, 40), (33, 75), (28, 28))
    ]
