"""How one picture is prepared: the numbers of a family's preprocessor, part of the contract.

Python 3.8, standard library only.
"""

from __future__ import annotations

import dataclasses
from typing import Optional, Tuple, Union

from edgevlm_runner.errors import BundleError


@dataclasses.dataclass(frozen=True)
class ImageSpec:
    """How a picture becomes tiles (the numbers of Idefics3's and SmolVLM's preprocessor)."""

    tile_size: int
    """Side of one square tile in pixels."""
    longest_edge: int
    """The picture is resized to this before splitting."""
    split: bool
    """Cut into tiles plus one global view; otherwise one square tile."""
    max_tiles: Optional[int]
    """Upper bound on tiles per picture, global view included; None for the model's own."""
    resample: int
    """Pillow's filter number."""
    rescale_factor: float
    mean: Tuple[float, float, float]
    std: Tuple[float, float, float]


@dataclasses.dataclass(frozen=True)
class FrameSpec:
    """How a picture becomes one square (the numbers of CLIP's or SigLIP's preprocessor; BLIP, LLaVA-1.5
    and PaliGemma use them too)."""

    side: int
    """Of the square, in pixels."""
    shortest_edge: Optional[int]
    """The picture is resized until its shorter edge has this length, then its middle is cut out; None: it
    is squashed into the square."""
    resample: int
    """Pillow's filter number."""
    rescale_factor: float
    mean: Tuple[float, float, float]
    std: Tuple[float, float, float]

    @property
    def tile_size(self) -> int:
        """As in ImageSpec: the square is the only tile."""
        return self.side


@dataclasses.dataclass(frozen=True)
class NativeSpec:
    """How a picture keeps its own resolution (the numbers of Qwen2-VL's and its successors' preprocessor)."""

    patch_size: int
    """Side of a patch in pixels."""
    merge_size: int
    """merge × merge patches, a cell, become one image token."""
    frames: int
    """Frames of a film that a patch spans; a picture repeats itself."""
    window_size: int
    """Side in pixels of the windows that most layers look within; 0 for layers that see the whole picture."""
    min_pixels: int
    max_pixels: int
    """The picture is resized to whole cells within these numbers of pixels, its shape nearly kept."""
    size: Optional[Tuple[int, int]]
    """Height and width that every picture is stretched to, where graphs have one size; None: its own."""
    resample: int
    """Pillow's filter number."""
    rescale_factor: float
    mean: Tuple[float, float, float]
    std: Tuple[float, float, float]
    table_side: int = 0
    """Side of a learned table of positions, which is stretched over each picture; 0 without."""

    @property
    def cell(self) -> int:
        """Side of a cell in pixels."""
        return self.patch_size * self.merge_size


@dataclasses.dataclass(frozen=True)
class AnyresSpec:
    """How a picture becomes an overview and tiles of a grid (the numbers of the preprocessor of LLaVA-NeXT
    and LLaVA-OneVision).
    """

    tile_size: int
    """Side of one square tile in pixels."""
    side_tokens: int
    """A tile becomes side_tokens × side_tokens image tokens, and one that ends a row of them."""
    heights: Tuple[int, ...]
    """Of the grids that a picture may be fitted to, in pixels."""
    widths: Tuple[int, ...]
    tiles_worth: Optional[int]
    """More tokens than this many tiles hold are interpolated down; None: never."""
    resample: int
    """Pillow's filter number."""
    rescale_factor: float
    mean: Tuple[float, float, float]
    std: Tuple[float, float, float]


Pixels = Union[ImageSpec, FrameSpec, NativeSpec, AnyresSpec]
"""How one picture is prepared; a family has one of them."""


def sides(spec: Pixels) -> Tuple[int, int]:
    """Height and width in pixels of a tile. Raises BundleError when every picture has its own."""
    if not isinstance(spec, NativeSpec):
        return spec.tile_size, spec.tile_size
    if spec.size is None:
        raise BundleError("The bundle takes pictures of any size; only ONNX Runtime executes such graphs.")
    return spec.size
