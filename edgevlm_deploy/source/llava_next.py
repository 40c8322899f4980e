"""The families `llava_next` and `llava_onevision`: LLaVA with an overview and tiles of any picture.

Liu et al., "LLaVA-NeXT", 2024 (CLIP, Vicuna or Mistral); Li et al., "LLaVA-OneVision: Easy Visual Task
Transfer", 2024 (SigLIP, Qwen2). Pictures only: OneVision's films are not.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from edgevlm_runner import anyres
from edgevlm_runner.contract import AnyresSpec, PromptSpec
from PIL import Image

from edgevlm_deploy.errors import CheckpointError, PlanError
from edgevlm_deploy.recipe import Recipe
from edgevlm_deploy.source import tower
from edgevlm_deploy.source.checkpoint import CONFIG, Checkpoint, read_json
from edgevlm_deploy.source.frames import open_processor
from edgevlm_deploy.source.model import SourceModel
from edgevlm_deploy.source.specification import chat_prompt, numbers_of, three

_NAMES = {"llava_next": "LlavaNext", "llava_onevision": "LlavaOnevision"}


@dataclass(frozen=True)
class Anyres:
    """One of the two families."""

    layout: tower.Layout

    def describe(self, checkpoint: Checkpoint) -> SourceModel:
        """Raises CheckpointError when tensors are missing or disagree with the configuration."""
        return tower.describe(checkpoint, self.layout)

    def load(self, source: SourceModel) -> Any:
        """Raises CheckpointError when transformers leaves out, adds or changes a single weight."""
        return tower.load(source, self.layout)

    def image_spec(self, source: SourceModel, recipe: Recipe) -> AnyresSpec:
        """The image processor's grids, proved on pictures of several shapes."""
        processor = _open(source)
        numbers, config = numbers_of(source), read_json(source.path / CONFIG)
        side, grids = numbers.image_size, processor.image_grid_pinpoints
        if [list(one) for one in grids] != config.get("image_grid_pinpoints", grids):
            raise CheckpointError(
                f"{source.path}: image_grid_pinpoints differ between config.json and the image processor."
            )
        if not grids or any(edge % side for grid in grids for edge in grid):
            raise CheckpointError(
                f"{source.path}: image_grid_pinpoints {grids} are not multiples of the vision encoder's "
                f"{side} pixels."
            )
        if numbers.tokens_per_tile - 1 != (side // numbers.patch_size) ** 2:
            raise CheckpointError(
                f"{source.path}: its vision tower gives {numbers.tokens_per_tile - 1} tokens for a tile, "
                "which are no square of patches. Set vision_feature_select_strategy to what the tower needs."
            )
        grids = _within(grids, side, recipe.image.max_tiles)
        mean, std = (three(value) for value in (processor.image_mean, processor.image_std))
        spec = AnyresSpec(
            tile_size=side,
            side_tokens=math.isqrt(numbers.tokens_per_tile),
            heights=tuple(int(height) for height, _ in grids),
            widths=tuple(int(width) for _, width in grids),
            tiles_worth=_tiles_worth(source, config),
            resample=int(processor.resample),
            rescale_factor=float(processor.rescale_factor),
            mean=mean,
            std=std,
        )
        _prove(source, processor, spec)
        return spec

    def prompt_spec(self, source: SourceModel, tokenizer: Any) -> PromptSpec:
        """The chat template; nothing surrounds the image tokens."""
        return chat_prompt(source, tokenizer)


NEXT = Anyres(
    tower.Layout(
        class_name="LlavaNextForConditionalGeneration",
        language_models=("llama", "mistral", "qwen2"),
        feature_layer=-2,
        select="default",
        image_token_id=32000,
        last_projection="linear_2",
        newline=True,
    )
)
ONEVISION = Anyres(
    tower.Layout(
        class_name="LlavaOnevisionForConditionalGeneration",
        language_models=("qwen2", "llama", "mistral"),
        feature_layer=-1,
        select="full",
        image_token_id=151646,
        last_projection="linear_2",
        default_image_size=384,
        default_tower="siglip_vision_model",
        newline=True,
    )
)


def _open(source: SourceModel) -> Any:
    from transformers.models.llava_next.image_processing_pil_llava_next import LlavaNextImageProcessorPil
    from transformers.models.llava_onevision.image_processing_pil_llava_onevision import (
        LlavaOnevisionImageProcessorPil,
    )

    kind = {"llava_next": LlavaNextImageProcessorPil}.get(source.family, LlavaOnevisionImageProcessorPil)
    return open_processor(source, kind, (f"{_NAMES[source.family]}ImageProcessor",))


def _within(grids: Sequence[Sequence[int]], side: int, max_tiles: int | None) -> list[Sequence[int]]:
    """Grids that make at most `max_tiles` tiles, overview included. Raises PlanError when none is left."""
    tiles = [1 + height * width // side**2 for height, width in grids]
    kept = [grid for grid, count in zip(grids, tiles, strict=True) if max_tiles is None or count <= max_tiles]
    if not kept:
        raise PlanError(
            f"image.max_tiles: {max_tiles}; this model makes an overview and a grid, at least {min(tiles)} "
            "tiles of any picture. Give at least as many."
        )
    return kept


def _tiles_worth(source: SourceModel, config: dict[str, Any]) -> int | None:
    """LLaVA-OneVision's bound on tokens, in tiles' worth of them."""
    if source.family == "llava_next":
        return None
    stated = str(config.get("vision_aspect_ratio", "anyres_max_9"))
    found = re.fullmatch(r"anyres_max_([1-9]\d*)", stated)
    if found is None:
        raise CheckpointError(
            f"{source.path}: vision_aspect_ratio in config.json is {stated!r}, expected anyres_max_ and a "
            "number."
        )
    return int(found.group(1))


def _prove(source: SourceModel, processor: Any, spec: AnyresSpec) -> None:
    """Raises CheckpointError when the device would make other pixels than transformers."""
    rng = np.random.default_rng(0)
    for width, height in ((83, 57), (57, 83), (211, 40)):
        picture = Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))
        kept = [list(grid) for grid in zip(spec.heights, spec.widths, strict=True)]
        given = processor(picture, image_grid_pinpoints=kept, return_tensors="np")
        theirs = given["pixel_values"][0]
        if not np.array_equal(anyres.tiles(picture, spec), theirs):
            raise CheckpointError(
                f"{source.path}: transformers' {type(processor).__name__} makes other pixels of a picture "
                "than the device would. Its preprocessing is not supported."
            )
