"""Squares of pixels, as transformers' processors of CLIP and SigLIP make them, proved per checkpoint."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from edgevlm_runner import preprocess
from edgevlm_runner.contract import FrameSpec
from PIL import Image

from edgevlm_deploy.errors import CheckpointError
from edgevlm_deploy.source.model import SourceModel
from edgevlm_deploy.source.specification import check_image_processor_type, numbers_of, three

CLIP = ("CLIPImageProcessor", "CLIPFeatureExtractor")
SIGLIP = ("SiglipImageProcessor",)


def frame(source: SourceModel) -> FrameSpec:
    """Of the image processor that a VLM brings along, whichever it is. Raises CheckpointError."""
    kind = check_image_processor_type(source, (*CLIP, *SIGLIP))
    return (clip_frame if kind in CLIP else siglip_frame)(source, numbers_of(source).image_size)


def clip_frame(source: SourceModel, side: int) -> FrameSpec:
    """Of CLIP's image processor: resize, and cut out a middle of `side` pixels. Raises CheckpointError."""
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    processor = open_processor(source, CLIPImageProcessorPil, CLIP)
    edge, crop = dict(processor.size).get("shortest_edge"), dict(processor.crop_size)
    if not edge or not processor.do_center_crop or (crop.get("height"), crop.get("width")) != (side, side):
        raise CheckpointError(
            f"{source.path}: its image processor resizes to {dict(processor.size)} and crops to {crop}; "
            f"expected a shortest_edge, and a centre crop of the vision encoder's {side} × {side}."
        )
    if edge < side:
        raise CheckpointError(f"{source.path}: its image processor crops {side} pixels out of {edge}.")
    return proved_frame(source, processor, side, int(edge))


def siglip_frame(source: SourceModel, side: int) -> FrameSpec:
    """Of SigLIP's image processor: squash into `side` × `side` pixels. Raises CheckpointError."""
    from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

    return squashed_frame(source, open_processor(source, SiglipImageProcessorPil, SIGLIP), side)


def squashed_frame(source: SourceModel, processor: Any, side: int) -> FrameSpec:
    """Of a processor that brings any picture to the vision encoder's square. Raises CheckpointError."""
    size = dict(processor.size)
    if (size.get("height"), size.get("width")) != (side, side):
        raise CheckpointError(
            f"{source.path}: its image processor resizes to {size}; the vision encoder is made for "
            f"{side} × {side}. They are of different models."
        )
    return proved_frame(source, processor, side, None)


def open_processor(source: SourceModel, kind: Any, names: Sequence[str]) -> Any:
    """transformers' image processor, which does all that the device does. Raises CheckpointError."""
    check_image_processor_type(source, names)
    try:
        processor = kind.from_pretrained(source.path, local_files_only=True)
    except Exception as error:
        raise CheckpointError(f"{source.path}: its image processor cannot be loaded ({error}).") from error
    steps = ("do_resize", "do_rescale", "do_normalize", "do_convert_rgb")
    skipped = [step for step in steps if getattr(processor, step) is False]
    if skipped:
        raise CheckpointError(
            f"{source.path}: its image processor goes without {', '.join(skipped)}; the device always "
            "resizes, rescales and normalises."
        )
    return processor


def proved_frame(source: SourceModel, processor: Any, side: int, shortest_edge: int | None) -> FrameSpec:
    """Proved on pictures of odd size. Raises CheckpointError."""
    mean, std = (three(value) for value in (processor.image_mean, processor.image_std))
    spec = FrameSpec(
        side=side,
        shortest_edge=shortest_edge,
        resample=int(processor.resample),
        rescale_factor=float(processor.rescale_factor),
        mean=mean,
        std=std,
    )
    pixels = np.random.default_rng(0).integers(0, 256, (57, 83, 3), dtype=np.uint8)
    for picture in (Image.fromarray(pixels), Image.fromarray(pixels.transpose(1, 0, 2).copy())):
        theirs = processor(picture, return_tensors="np")["pixel_values"]
        if not np.array_equal(preprocess.frame(picture, spec), theirs):
            raise CheckpointError(
                f"{source.path}: transformers' {type(processor).__name__} makes other pixels of a picture "
                "than the device would. Its preprocessing is not supported."
            )
    return spec
