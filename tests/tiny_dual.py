"""Tiny dual encoders with random weights in `save_pretrained` layout, and labelled pictures for them."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

CLASSES = ("disc", "square", "stripes")
SENTENCES = [f"a photo of a {name}" for name in (*CLASSES, "cat", "dog")]
BOS, EOS = "<|startoftext|>", "<|endoftext|>"
SIDE, PATCH, TEXT = 32, 8, 16


def _tokenizer() -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    bpe = Tokenizer(models.BPE(unk_token=EOS))
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=318,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
        special_tokens=["<unused>"],
    )
    bpe.train_from_iterator(SENTENCES, trainer)
    # As in CLIP, the end of a text is the largest token of all.
    bpe.add_special_tokens([BOS, EOS])
    begin, end = bpe.token_to_id(BOS), bpe.token_to_id(EOS)
    bpe.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A {EOS}", special_tokens=[(BOS, begin), (EOS, end)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=bpe, bos_token=BOS, eos_token=EOS, pad_token=EOS)


def _numbers(layers: int, width: int, **more: Any) -> dict[str, Any]:
    return {
        "hidden_size": width,
        "intermediate_size": 2 * width,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        **more,
    }


def save(family: str, folder: Path, dtype: str = "float16", width: int = 32) -> Path:
    """A model of the family "clip" or "siglip" with its tokenizer and image processor.

    width: of its text encoder.
    """
    import torch
    import transformers
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
    from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

    tokenizer = _tokenizer()
    vision = _numbers(2, width, image_size=SIDE, patch_size=PATCH)
    text = _numbers(
        2,
        width,
        vocab_size=len(tokenizer),
        max_position_embeddings=TEXT,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if family == "clip":
            # Other widths on both sides, as in real checkpoints.
            vision |= {"hidden_size": width * 3 // 2, "intermediate_size": width * 3}
            config = transformers.CLIPConfig(vision_config=vision, text_config=text, projection_dim=24)
            model = transformers.CLIPModel(config)
            images: Any = CLIPImageProcessorPil(
                size={"shortest_edge": SIDE + 4}, crop_size={"height": SIDE, "width": SIDE}
            )
        else:
            text["projection_size"] = width
            config = transformers.SiglipConfig(vision_config=vision, text_config=text)
            model = transformers.SiglipModel(config)
            with torch.no_grad():
                model.logit_scale.fill_(2.3)
                model.logit_bias.fill_(-4.0)
            images = SiglipImageProcessorPil(size={"height": SIDE, "width": SIDE})
        for parameter in model.parameters():
            # Fresh weights are so small that all embeddings look alike.
            if parameter.ndim >= 2:
                with torch.no_grad():
                    parameter.mul_(3.0)
        model.to(getattr(torch, dtype)).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        images.save_pretrained(folder)
    return folder


def picture(name: str, number: int) -> Image.Image:
    """A shape on a noisy ground, 40 × 48 pixels."""
    rng = np.random.default_rng([number, CLASSES.index(name)])
    pixels = rng.integers(0, 80, (48, 40, 3), dtype=np.uint8)
    rows, columns = np.mgrid[:48, :40]
    inside = {
        "disc": (rows - 24) ** 2 + (columns - 20) ** 2 < 144,
        "square": (abs(rows - 24) < 12) & (abs(columns - 20) < 12),
        "stripes": rows % 8 < 4,
    }[name]
    pixels[inside] = rng.integers(120, 256, 3, dtype=np.uint8)
    return Image.fromarray(pixels)


def labelled(folder: Path, each: int = 8) -> Path:
    """One sub-folder per class with `each` pictures."""
    for name in CLASSES:
        (folder / name).mkdir(parents=True)
        for number in range(each):
            picture(name, number).save(folder / name / f"{number}.png")
    return folder
