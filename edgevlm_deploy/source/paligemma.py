"""The family `paligemma`: SigLIP, one linear layer, and Gemma, whose tokens all see the whole prompt.

Beyer et al., "PaliGemma: A versatile 3B VLM for transfer", 2024. There are no turns: the picture, a first
token, the question and a line break, then the answer.
"""

from __future__ import annotations

from typing import Any

from edgevlm_runner import prompt
from edgevlm_runner.contract import FrameSpec, PromptSpec

from edgevlm_deploy.recipe import Recipe
from edgevlm_deploy.source import tower
from edgevlm_deploy.source.checkpoint import Checkpoint
from edgevlm_deploy.source.frames import frame
from edgevlm_deploy.source.model import SourceModel
from edgevlm_deploy.source.specification import image_token_of, numbers_of

LAYOUT = tower.Layout(
    class_name="PaliGemmaForConditionalGeneration",
    language_models=("gemma",),
    feature_layer=None,
    select="full",
    image_token_id=256000,
    last_projection="linear",
    tied=True,
    prefix=True,
    default_image_size=224,
)


def describe(checkpoint: Checkpoint) -> SourceModel:
    """Raises CheckpointError when tensors are missing or disagree with the configuration."""
    return tower.describe(checkpoint, LAYOUT)


def load(source: SourceModel) -> Any:
    """Raises CheckpointError when transformers leaves out, adds or changes a single weight."""
    return tower.load(source, LAYOUT, _with_plain_norms)


def _with_plain_norms(model: Any) -> Any:
    """Gemma's norms multiply by 1 + weight; here the weight holds the sum, as quantisers that fold scales
    into norms expect it."""
    import torch
    from transformers.models.llama.modeling_llama import LlamaRMSNorm

    text = model.get_decoder()
    for name, norm in list(text.named_modules()):
        if type(norm).__name__ == "GemmaRMSNorm":
            plain = LlamaRMSNorm(norm.weight.numel(), norm.eps)
            plain.weight = torch.nn.Parameter(1.0 + norm.weight.detach())
            text.set_submodule(name, plain)
    return model


def image_spec(source: SourceModel, recipe: Recipe) -> FrameSpec:
    """One square, as the image processor of the tower makes it."""
    return frame(source)


def prompt_spec(source: SourceModel, tokenizer: Any) -> PromptSpec:
    """As transformers' processor writes it, which switches off what the tokenizer adds by itself."""
    tokenizer.add_bos_token = tokenizer.add_eos_token = False
    asked = f"{tokenizer.bos_token}{prompt.QUESTION_SLOT}\n"
    return PromptSpec(
        with_image=prompt.IMAGE_SLOT + asked,
        text_only=asked,
        image_token=image_token_of(source, tokenizer),
        fake_token="",
        global_token="",
        tokens_per_tile=numbers_of(source).tokens_per_tile,
    )
