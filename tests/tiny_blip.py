"""A tiny BLIP-VQA in `save_pretrained` layout, taught two kinds of question about plain pictures."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

SIDE, PATCH, LONGEST = 32, 8, 32
COLORS = {"red": (200, 40, 30), "green": (40, 170, 60), "blue": (40, 60, 200), "dark blue": (10, 15, 90)}
QUESTIONS = ("What color is it?", "Is the color of this blue?")
STEPS = 150
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
WORDS = "what color is it ? the of this red green blue dark yes no thing , . a picture in"


def answer(question: str, color: str) -> str:
    return color if question == QUESTIONS[0] else "yes" if "blue" in color else "no"


def picture(color: str, number: int) -> Image.Image:
    """A noisy ground with a patch of the color, 40 × 48 pixels."""
    rng = np.random.default_rng([number, list(COLORS).index(color)])
    pixels = rng.integers(90, 150, (48, 40, 3)).astype(np.uint8)
    top, left = rng.integers(2, 12, 2)
    patch = np.array(COLORS[color]) + rng.integers(-8, 9, (30, 24, 3))
    pixels[top : top + 30, left : left + 24] = patch.clip(0, 255)
    return Image.fromarray(pixels)


def questions(folder: Path, pictures: int = 6) -> Path:
    """`items.jsonl` with every question about so many pictures of each color."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for color in COLORS:
        for number in range(pictures):
            file = f"{color.replace(' ', '-')}-{number}.png"
            picture(color, 100 + number).save(folder / file)
            rows += [{"image": file, "question": one, "answers": [answer(one, color)]} for one in QUESTIONS]
    (folder / "items.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return folder / "items.jsonl"


def tokenizer() -> Any:
    """BERT's, with as few words as there are here; unknown ones fall into letters. [DEC] begins answers."""
    from transformers import BertTokenizer

    letters = [*"abcdefghijklmnopqrstuvwxyz0123456789"]
    pieces = [*SPECIAL, *letters, *(f"##{one}" for one in letters), *WORDS.split()]
    made = BertTokenizer(vocab={piece: place for place, piece in enumerate(dict.fromkeys(pieces))})
    made.add_special_tokens({"bos_token": "[DEC]", "additional_special_tokens": ["[ENC]"]})
    return made


def config(tokens: Any) -> Any:
    """Both sides are equally wide: the answer decoder's cross-attention is made for the vision encoder."""
    import transformers

    shape = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
    }
    return transformers.BlipConfig(
        vision_config={
            **shape,
            "image_size": SIDE,
            "patch_size": PATCH,
            "initializer_range": 0.02,
        },
        text_config={
            **shape,
            "vocab_size": len(tokens),
            "max_position_embeddings": LONGEST,
            "bos_token_id": tokens.bos_token_id,
            "sep_token_id": tokens.sep_token_id,
            "pad_token_id": tokens.pad_token_id,
            "eos_token_id": tokens.sep_token_id,
        },
    )


def save(folder: Path, dtype: str = "float16", steps: int = STEPS) -> Path:
    """The model after so many steps of training, with its processor."""
    import torch
    import transformers
    from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil

    tokens = tokenizer()
    images = BlipImageProcessorPil(size={"height": SIDE, "width": SIDE})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(0)
        model = transformers.BlipForQuestionAnswering(config(tokens))
        _train(model, transformers.BlipProcessor(images, tokens), steps)
        model.to(getattr(torch, dtype)).save_pretrained(folder)
        transformers.BlipProcessor(images, tokens).save_pretrained(folder)
    return folder


def _train(model: Any, processor: Any, steps: int) -> None:
    import torch

    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, max(steps, 1))
    for step in range(steps):
        pairs = [(color, question) for color in COLORS for question in QUESTIONS]
        asked = processor(
            images=[picture(color, step) for color, _ in pairs],
            text=[question for _, question in pairs],
            padding=True,
            return_tensors="pt",
        )
        said = processor.tokenizer([answer(q, c) for c, q in pairs], padding=True, return_tensors="pt")
        ids = said.input_ids.clone()
        ids[:, 0] = processor.tokenizer.bos_token_id
        labels = ids.masked_fill(said.attention_mask == 0, -100)
        states = model.text_encoder(
            input_ids=asked.input_ids,
            attention_mask=asked.attention_mask,
            encoder_hidden_states=model.vision_model(asked.pixel_values).last_hidden_state,
        ).last_hidden_state
        loss = model.text_decoder(
            input_ids=ids,
            attention_mask=said.attention_mask,
            encoder_hidden_states=states,
            encoder_attention_mask=asked.attention_mask,
            labels=labels,
        ).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    model.eval()
