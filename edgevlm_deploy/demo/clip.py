"""The demo CLIP: transformers' class with a tokenizer of its own; only the sizes are small."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from edgevlm_deploy.demo.captions import caption
from edgevlm_deploy.demo.pictures import training_picture
from edgevlm_deploy.demo.scenes import SIDE, Split, generator

PATCH = 12
CONTEXT = 24
WIDTH = 64
"""Of the features that pictures and texts share."""
MEAN = STD = (0.5, 0.5, 0.5)
"""Of pixels in 0 … 1, as the demo VLM normalises them."""
BEGIN, END = "<|startoftext|>", "<|endoftext|>"
_WORD_END = "</w>"
_MERGES = 126
"""More than the words of the captions need."""
_CAPTION_STREAM = 13
"""Stream of `scenes.generator` that the tokenizer's captions are drawn from."""


def tokenizer(pictures: int = 1000) -> Any:
    """CLIP's byte-level BPE, trained on captions. As in CLIP the end token has the highest id and pads."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers
    from transformers import CLIPTokenizer

    def captions() -> Iterator[str]:
        for index in range(pictures):
            rng = generator(Split.TRAIN, index, _CAPTION_STREAM)
            yield caption(training_picture(Split.TRAIN, index), rng).text

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = [*letters, *(letter + _WORD_END for letter in letters)]
    like_clip = CLIPTokenizer(vocab={token: i for i, token in enumerate((BEGIN, END))}).backend_tokenizer
    bpe = Tokenizer(models.BPE(end_of_word_suffix=_WORD_END))
    bpe.normalizer, bpe.pre_tokenizer = like_clip.normalizer, like_clip.pre_tokenizer
    trainer = trainers.BpeTrainer(
        vocab_size=len(vocabulary) + _MERGES,
        initial_alphabet=letters,
        end_of_word_suffix=_WORD_END,
        show_progress=False,
    )
    bpe.train_from_iterator(captions(), trainer)
    merges = [tuple(merge) for merge in json.loads(bpe.to_str())["model"]["merges"]]
    vocabulary += ["".join(merge) for merge in merges]
    return CLIPTokenizer(
        vocab={token: i for i, token in enumerate((*vocabulary, BEGIN, END))},
        merges=merges,
        model_max_length=CONTEXT,
    )


def architecture(text_tokenizer: Any) -> Any:
    """A CLIP with random weights, float32."""
    from transformers import CLIPConfig, CLIPModel

    shape = {"hidden_size": 128, "intermediate_size": 512, "num_attention_heads": 4, "projection_dim": WIDTH}
    config = CLIPConfig(
        projection_dim=WIDTH,
        vision_config={**shape, "num_hidden_layers": 5, "image_size": SIDE, "patch_size": PATCH},
        text_config={
            **shape,
            "num_hidden_layers": 3,
            "vocab_size": len(text_tokenizer),
            "max_position_embeddings": CONTEXT,
            "bos_token_id": text_tokenizer.bos_token_id,
            "eos_token_id": text_tokenizer.eos_token_id,
            "pad_token_id": text_tokenizer.pad_token_id,
        },
    )
    return CLIPModel(config)


def take_over_vision(model: Any, vlm: dict[str, Any], patches: Any) -> None:
    """Start the vision encoder from the demo VLM's weights (`model.load_weights`), which has the same layers.

    What CLIP has not, the bias of the patches, moves into the position embeddings; what only CLIP has
    starts neutral: the class token in the middle of the patches' places, and the norm in front of the
    layers with the usual spread of embeddings, measured on `patches`, float32 [N, 3, SIDE, SIDE].
    """
    import torch

    prefix = "model.vision_model."
    found = {name.removeprefix(prefix): weight for name, weight in vlm.items() if name.startswith(prefix)}
    bias = found.pop("embeddings.patch_embedding.bias")
    places = found.pop("embeddings.position_embedding.weight") + bias
    found["embeddings.position_embedding.weight"] = torch.cat([places.mean(0, keepdim=True), places])
    missing, unknown = model.vision_model.load_state_dict(found, strict=False)
    own = {"embeddings.class_embedding", "pre_layrnorm.weight", "pre_layrnorm.bias"}
    assert (set(missing), unknown) == (own, []), (missing, unknown)
    with torch.no_grad():
        spread = model.vision_model.embeddings(patches)[:, 1:].std(-1).mean()
        model.vision_model.pre_layrnorm.weight.fill_(float(spread))


def image_processor() -> Any:
    """CLIP's, with the side of the scenes and the demo VLM's normalisation."""
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    return CLIPImageProcessorPil(
        size={"shortest_edge": SIDE},
        crop_size={"height": SIDE, "width": SIDE},
        image_mean=list(MEAN),
        image_std=list(STD),
    )


def save(model: Any, text_tokenizer: Any, directory: Path) -> None:
    """Write the checkpoint in `save_pretrained` layout with fp16 weights."""
    import torch
    from transformers import CLIPProcessor

    model.to(torch.float16).save_pretrained(directory)
    CLIPProcessor(image_processor(), text_tokenizer).save_pretrained(directory)
