"""Pictures into tiles, as transformers' image processors of Idefics3, SmolVLM, BLIP, CLIP and SigLIP do it.

Pixels are equal to theirs bit for bit (`Idefics3ImageProcessorPil`, `CLIPImageProcessorPil` …): resize,
cut, rescale and normalise happen in the same order, with Pillow's filters and in the same precision.

Python 3.8, NumPy and Pillow only.
"""

from __future__ import annotations

import dataclasses
import io
import math
import warnings
from pathlib import Path
from typing import List, Sequence, Tuple, Union

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from edgevlm_runner.contract import AnyresSpec, FrameSpec, ImageSpec, Pixels
from edgevlm_runner.errors import ImageError

MAX_PIXELS = 64_000_000
MAX_EDGE = 4096
"""transformers shrinks every picture to this after its resize."""
FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
"""What is decoded. Pillow knows more, but some of those start other programs (EPS: Ghostscript)."""

Size = Tuple[int, int]
"""Width and height in pixels, Pillow's order."""


@dataclasses.dataclass(frozen=True)
class Tiles:
    """One picture, ready for the vision encoder.

    pixel_values  float32 [tiles, 3, S, S], C-contiguous: row by row, the global view last
    rows, cols    the grid; both 0 for a single tile that was not split
    """

    pixel_values: np.ndarray
    rows: int
    cols: int


def load_image(source: Union[str, Path, bytes]) -> Image.Image:
    """Decode a picture (path, or the file's bytes) to upright RGB.

    Same pixels as transformers' `load_image` followed by its processors' own conversion: EXIF orientation
    applied; alpha dropped, not composited; one transparent colour laid on white. Values above 255 of
    16- and 32-bit grey are cut off, not scaled, so that such pictures come out nearly white. That is
    what transformers does; convert them to 8 bits beforehand.

    Raises ImageError when the picture is missing, damaged, of an unknown format or above MAX_PIXELS.
    """
    name = f"picture of {len(source)} bytes" if isinstance(source, bytes) else str(source)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            stream = io.BytesIO(source) if isinstance(source, bytes) else source
            with Image.open(stream, formats=FORMATS) as picture:
                _check_size(picture.size, name)
                upright: Image.Image = ImageOps.exif_transpose(picture)
                return _rgb(upright)
    except ImageError:
        raise
    except FileNotFoundError as error:
        raise ImageError(f"{name}: no such picture. Check the path.") from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ImageError(_too_large(name, str(error))) from error
    except UnidentifiedImageError as error:
        raise ImageError(
            f"{name}: not a picture in a format that is read ({', '.join(FORMATS)}). Convert it to PNG."
        ) from error
    # Pillow raises OSError, SyntaxError, struct.error … depending on which decoder meets the damage.
    except Exception as error:
        raise ImageError(
            f"{name}: cannot be decoded ({error or type(error).__name__}). The file is truncated or damaged; "
            "copy it again, or open and save it anew in an image editor."
        ) from error


def _check_size(size: Size, name: str) -> None:
    """Before decoding: a small file can unpack to more pixels than there is memory."""
    if size[0] * size[1] > MAX_PIXELS:
        raise ImageError(_too_large(name, f"{size[0]} × {size[1]} pixels"))


def _too_large(name: str, found: str) -> str:
    return f"{name}: too large ({found}); at most {MAX_PIXELS:,} pixels are decoded. Scale it down first."


def _rgb(picture: Image.Image) -> Image.Image:
    # Pillow drops a palette's table of alphas when converting to RGB, and warns about it.
    if isinstance(picture.info.get("transparency"), bytes):
        del picture.info["transparency"]
    rgb = picture.convert("RGB")
    if rgb.info.get("transparency") is None:
        return rgb
    white = Image.new("RGBA", rgb.size, (255, 255, 255, 255))
    return Image.alpha_composite(white, rgb.convert("RGBA")).convert("RGB")


def tiles(image: Image.Image, spec: Union[ImageSpec, FrameSpec]) -> Tiles:
    """Resize, cut and normalise one RGB picture. Of a `FrameSpec` there is one tile; see `frame`.

    With `spec.split`, the picture is brought to `longest_edge`, stretched to whole tiles, cut, and
    followed by a global view; one that fits a single tile is not split. Without, it becomes one tile.

    `spec.max_tiles` bounds the tiles of a split picture. When the model's own `longest_edge` gives more,
    the largest multiple of `tile_size` below it is taken that does not: the picture gets coarser,
    its shape stays. 1 always gives a single tile.

    Raises ImageError when the picture is not RGB; `load_image` returns RGB.
    """
    if isinstance(spec, FrameSpec):
        return Tiles(frame(image, spec), 0, 0)
    require_rgb(image)
    if spec.split:
        frames, rows, cols = _cut(image, spec)
    else:
        whole = image.resize(_fit(image.size, spec.longest_edge), spec.resample)
        frames, rows, cols = [_square(whole, spec)], 0, 0
    return Tiles(normalize(frames, (spec.tile_size,) * 2, spec), rows, cols)


def frame(image: Image.Image, spec: FrameSpec) -> np.ndarray:
    """float32 [1, 3, S, S] of one RGB picture: CLIP's resize and centre crop, or SigLIP's and
    BLIP's squash.

    Raises ImageError when the picture is not RGB; `load_image` returns RGB.
    """
    require_rgb(image)
    side = spec.side
    if spec.shortest_edge is None:
        return normalize([image.resize((side, side), spec.resample)], (side, side), spec)
    short, long = sorted(image.size)
    longest = int(spec.shortest_edge * long / short)
    size = (spec.shortest_edge, longest) if image.width <= image.height else (longest, spec.shortest_edge)
    left, top = (size[0] - side) // 2, (size[1] - side) // 2
    middle = image.resize(size, spec.resample).crop((left, top, left + side, top + side))
    return normalize([middle], (side, side), spec)


def require_rgb(image: Image.Image) -> None:
    """Raises ImageError for other pictures."""
    if image.mode != "RGB":
        raise ImageError(f"expected a picture in RGB, got mode {image.mode!r}; convert it first.")


def most_tiles(spec: Pixels) -> int:
    """The largest number of tiles that any picture becomes, global view included."""
    if isinstance(spec, AnyresSpec):
        return 1 + max(h * w for h, w in zip(spec.heights, spec.widths)) // spec.tile_size**2
    if not isinstance(spec, ImageSpec) or not spec.split:
        return 1
    edge = min(spec.longest_edge, MAX_EDGE)
    most = _count(((edge + spec.tile_size - 1) // spec.tile_size * spec.tile_size,) * 2, spec.tile_size)
    return most if spec.max_tiles is None else min(most, spec.max_tiles)


def _cut(image: Image.Image, spec: ImageSpec) -> Tuple[List[Image.Image], int, int]:
    """(tiles row by row and the global view, rows, cols)."""
    side = spec.tile_size
    fitted, whole = _split_sizes(image.size, spec)
    # Two resizes in a row, because the processor does so: one would give other pixels.
    stretched = image.resize(fitted, spec.resample).resize(whole, spec.resample)
    cols, rows = whole[0] // side, whole[1] // side
    if rows * cols == 1:
        return [stretched], 0, 0
    corners = [(col * side, row * side) for row in range(rows) for col in range(cols)]
    frames = [stretched.crop((x, y, x + side, y + side)) for x, y in corners]
    return [*frames, _square(stretched, spec)], rows, cols


def _square(image: Image.Image, spec: ImageSpec) -> Image.Image:
    return image.resize((spec.tile_size, spec.tile_size), spec.resample)


def _split_sizes(size: Size, spec: ImageSpec) -> Tuple[Size, Size]:
    """(size after fitting the longest edge, size in whole tiles) within `spec.max_tiles`."""
    side = spec.tile_size
    smaller = range((spec.longest_edge - 1) // side * side, side - 1, -side)
    for longest_edge in [spec.longest_edge, *smaller]:
        fitted = _fit(size, longest_edge)
        whole = _whole_tiles(fitted, side)
        if spec.max_tiles is None or _count(whole, side) <= spec.max_tiles:
            break
    return fitted, whole


def _count(whole: Size, side: int) -> int:
    """Tiles with the global view; a single tile needs none."""
    cells = (whole[0] // side) * (whole[1] // side)
    return cells if cells == 1 else cells + 1


# The next two keep the processor's own float arithmetic: another order of operations moves a
# boundary by one pixel for some sizes.


def _fit(size: Size, longest_edge: int) -> Size:
    """Scale the longest edge to `longest_edge`, the other one to an even number, then below MAX_EDGE."""
    width, height = size
    aspect = width / height
    if width >= height:
        width = longest_edge
        height = int(width / aspect)
        height += height % 2
    else:
        height = longest_edge
        width = int(height * aspect)
        width += width % 2
    width, height = max(width, 1), max(height, 1)
    aspect = width / height
    if width >= height and width > MAX_EDGE:
        width, height = MAX_EDGE, int(MAX_EDGE / aspect)
    elif height > width and height > MAX_EDGE:
        width, height = int(MAX_EDGE * aspect), MAX_EDGE
    return max(width, 1), max(height, 1)


def _whole_tiles(size: Size, side: int) -> Size:
    """Round the longest edge up to whole tiles, scale the other one along and round it up too."""
    width, height = size
    aspect = width / height
    if width >= height:
        width = math.ceil(width / side) * side
        height = math.ceil(int(width / aspect) / side) * side
    else:
        height = math.ceil(height / side) * side
        width = math.ceil(int(height * aspect) / side) * side
    return width, height


def normalize(frames: Sequence[Image.Image], size: Size, spec: Pixels) -> np.ndarray:
    """float32 [tiles, 3, H, W] of pictures of that size: (value · rescale_factor − mean) / std.

    A byte has 256 values, so each is computed once, in the processor's precision (float64 product,
    float32 from there on), and looked up.
    """
    values = (np.arange(256, dtype=np.float64) * spec.rescale_factor).astype(np.float32)
    mean, std = (np.array(one, dtype=np.float32)[:, np.newaxis] for one in (spec.mean, spec.std))
    table = (values - mean) / std  # [3, 256]
    pixel_values = np.empty((len(frames), 3, size[1], size[0]), dtype=np.float32)
    for one, out in zip(frames, pixel_values):
        pixels = np.asarray(one)
        for channel in range(3):
            out[channel] = table[channel][pixels[:, :, channel]]
    return pixel_values
