"""The device's pixels against transformers' own image processors, bit for bit."""

from __future__ import annotations

import dataclasses
import io
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from edgevlm_runner.contract import ImageSpec
from edgevlm_runner.errors import ImageError
from edgevlm_runner.preprocess import MAX_PIXELS, Tiles, load_image, tiles
from PIL import Image

SPEC = ImageSpec(
    tile_size=32,
    longest_edge=128,
    split=True,
    max_tiles=None,
    resample=1,
    rescale_factor=1 / 255,
    mean=(0.5, 0.4, 0.3),
    std=(0.5, 0.25, 0.2),
)
SIZES = [
    (1, 1),
    (1, 7),
    (3, 500),
    (500, 3),
    (32, 32),
    (33, 31),
    (100, 130),
    (511, 513),
    (640, 480),
    (2049, 1000),
]


def picture(width: int, height: int, seed: int = 0) -> Image.Image:
    """Smooth colours and noise: a shifted pixel or another filter changes it."""
    rng = np.random.default_rng(seed)
    ramp = np.linspace(0, 200, width)[None, :, None] + np.linspace(0, 40, height)[:, None, None]
    noise = rng.integers(0, 16, (height, width, 3))
    return Image.fromarray((ramp + noise).astype(np.uint8))


def processor(spec: ImageSpec, family: str = "idefics3") -> Any:
    pytest.importorskip("transformers")
    if family == "idefics3":
        from transformers.models.idefics3.image_processing_pil_idefics3 import (
            Idefics3ImageProcessorPil as Pil,
        )
    else:
        from transformers.models.smolvlm.image_processing_pil_smolvlm import SmolVLMImageProcessorPil as Pil
    return Pil(
        size={"longest_edge": spec.longest_edge},
        max_image_size={"longest_edge": spec.tile_size},
        do_image_splitting=spec.split,
        resample=spec.resample,
        rescale_factor=spec.rescale_factor,
        image_mean=list(spec.mean),
        image_std=list(spec.std),
    )


def assert_same(ours: Tiles, theirs: Any) -> None:
    assert (ours.rows, ours.cols) == (theirs["rows"][0][0], theirs["cols"][0][0])
    expected = np.asarray(theirs["pixel_values"])[0]
    assert ours.pixel_values.dtype == np.float32 and ours.pixel_values.flags.c_contiguous
    assert ours.pixel_values.shape == expected.shape
    assert np.array_equal(ours.pixel_values, expected.astype(np.float32))
    assert np.asarray(theirs["pixel_attention_mask"]).all()


@pytest.mark.parametrize("family", ["idefics3", "smolvlm"])
@pytest.mark.parametrize("split", [True, False])
@pytest.mark.parametrize("size", SIZES)
def test_tiles_equal_transformers(size: tuple[int, int], split: bool, family: str) -> None:
    spec = dataclasses.replace(SPEC, split=split)
    image = picture(*size)
    assert_same(tiles(image, spec), processor(spec, family)(image, return_row_col_info=True))


@pytest.mark.parametrize("resample", [0, 1, 2, 3])
@pytest.mark.parametrize("longest_edge", [32, 50, 100])
def test_other_filters_and_sizes(resample: int, longest_edge: int) -> None:
    spec = dataclasses.replace(SPEC, resample=resample, longest_edge=longest_edge)
    image = picture(97, 61)
    assert_same(tiles(image, spec), processor(spec)(image, return_row_col_info=True))


@pytest.mark.parametrize("size", [(97, 31), (31, 97)])
def test_longest_edge_above_the_processors_limit(size: tuple[int, int]) -> None:
    spec = dataclasses.replace(SPEC, resample=0, longest_edge=5000, tile_size=1500)
    image = picture(*size)
    assert_same(tiles(image, spec), processor(spec)(image, return_row_col_info=True))


def test_sizes_over_many_aspect_ratios() -> None:
    """The processor's float arithmetic decides the grid; nearest-neighbour makes it cheap to compare."""
    spec = dataclasses.replace(SPEC, resample=0, tile_size=8, longest_edge=40)
    reference = processor(spec)
    for width in range(1, 60, 3):
        for height in range(1, 60, 2):
            image = picture(width, height)
            assert_same(tiles(image, spec), reference(image, return_row_col_info=True))


@pytest.mark.parametrize("model", ["SmolVLM-256M-Instruct", "SmolVLM2-500M-Video-Instruct"])
@pytest.mark.parametrize("split", [True, False])
@pytest.mark.parametrize("size", [(3, 500), (511, 513), (1600, 900)])
def test_published_preprocessors(real_data: Path, model: str, size: tuple[int, int], split: bool) -> None:
    assert_same(*_published(real_data, model, size, split))


@pytest.mark.slow
def test_huge_picture(real_data: Path) -> None:
    assert_same(*_published(real_data, "SmolVLM-256M-Instruct", (6000, 4000), True))


def _published(real_data: Path, model: str, size: tuple[int, int], split: bool) -> tuple[Tiles, Any]:
    transformers = pytest.importorskip("transformers")
    reference = transformers.AutoImageProcessor.from_pretrained(real_data / "configs" / model)
    spec = ImageSpec(512, 2048, split, None, 1, 1 / 255, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    image = picture(*size)
    return tiles(image, spec), reference(image, do_image_splitting=split, return_row_col_info=True)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("bound", [1, 2, 4, 5, 7, 13, 17])
def test_max_tiles_bounds_and_takes_the_largest_edge(size: tuple[int, int], bound: int) -> None:
    image = picture(*size)
    cut = tiles(image, dataclasses.replace(SPEC, max_tiles=bound))
    assert len(cut.pixel_values) <= bound
    allowed = [tiles(image, dataclasses.replace(SPEC, longest_edge=edge)) for edge in (32, 64, 96, 128)]
    best = max(
        (one for one in allowed if len(one.pixel_values) <= bound), key=lambda one: len(one.pixel_values)
    )
    assert np.array_equal(cut.pixel_values, best.pixel_values)
    assert (cut.rows, cut.cols) == (best.rows, best.cols)


def test_max_tiles_of_one_is_a_single_global_tile() -> None:
    cut = tiles(picture(300, 100), dataclasses.replace(SPEC, max_tiles=1))
    assert cut.pixel_values.shape == (1, 3, 32, 32)
    assert (cut.rows, cut.cols) == (0, 0)


def test_max_tiles_none_is_the_processors_own() -> None:
    assert len(tiles(picture(300, 300), SPEC).pixel_values) == 17


def test_tiles_want_rgb() -> None:
    with pytest.raises(ImageError, match="RGB"):
        tiles(Image.new("L", (4, 4)), SPEC)


# ── decoding ──────────────────────────────────────────────────────────────────────────────────────


def encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def sixteen_bit(kind: str) -> bytes:
    values = np.linspace(0, 65535, 40 * 30).reshape(30, 40).astype(np.uint16)
    return encoded(Image.fromarray(values), kind)


def rotated(orientation: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encoded(picture(40, 30), "JPEG", exif=exif, quality=95)


def palette(**options: Any) -> bytes:
    return encoded(picture(40, 30).quantize(16), "PNG", **options)


def encodings() -> dict[str, bytes]:
    image = picture(40, 30)
    with_alpha = image.convert("RGBA")
    with_alpha.putalpha(Image.linear_gradient("L").resize(image.size))
    one_colour = image.getpixel((3, 4))
    grey = image.convert("L")
    return {
        "rgb": encoded(image),
        "grey": encoded(grey),
        "grey with alpha": encoded(with_alpha.convert("LA")),
        "grey, one transparent level": encoded(grey, transparency=grey.getpixel((3, 4))),
        "rgba": encoded(with_alpha),
        "rgb, one transparent colour": encoded(image, transparency=one_colour),
        "palette": palette(),
        "palette, one transparent entry": palette(transparency=3),
        "palette with alphas": palette(transparency=bytes(range(0, 160, 10))),
        "bilevel": encoded(image.convert("1")),
        "cmyk": encoded(image.convert("CMYK"), "JPEG"),
        "gif": encoded(image, "GIF"),
        "bmp": encoded(image, "BMP"),
        "webp": encoded(image, "WEBP", lossless=True),
        "16 bit png": sixteen_bit("PNG"),
        "16 bit tiff": sixteen_bit("TIFF"),
        "32 bit tiff": encoded(Image.fromarray(np.arange(1200, dtype=np.int32).reshape(30, 40)), "TIFF"),
        "float tiff": encoded(Image.fromarray(np.arange(1200, dtype=np.float32).reshape(30, 40)), "TIFF"),
        **{f"exif {orientation}": rotated(orientation) for orientation in range(1, 9)},
    }


@pytest.mark.filterwarnings("ignore:Palette images with Transparency")  # transformers' path lets it through
@pytest.mark.parametrize("name", sorted(encodings()))
def test_decoding_equals_transformers(name: str, tmp_path: Path) -> None:
    image_utils = pytest.importorskip("transformers.image_utils")
    path = tmp_path / "picture"
    path.write_bytes(encodings()[name])
    spec = dataclasses.replace(SPEC, split=False)
    # transformers' own loader, given the open file: from a path it would leave some of them open.
    with Image.open(path) as opened:
        theirs = processor(spec)(image_utils.load_image(opened), return_row_col_info=True)
    for source in (path, str(path), path.read_bytes()):
        image = load_image(source)
        assert image.mode == "RGB" and "transparency" not in image.info
        assert_same(tiles(image, spec), theirs)


def test_decoding_a_palette_does_not_warn() -> None:
    load_image(encodings()["palette with alphas"])


def test_orientation_is_applied() -> None:
    assert load_image(rotated(1)).size == (40, 30)
    assert load_image(rotated(6)).size == (30, 40)


def test_sixteen_bits_are_cut_off_not_scaled() -> None:
    pixels = np.asarray(load_image(sixteen_bit("PNG")))
    assert (pixels == 255).mean() > 0.95


def test_truncated_pictures(tmp_path: Path) -> None:
    for kind in ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF"):
        whole = encoded(picture(64, 64), kind)
        path = tmp_path / f"cut.{kind.lower()}"
        for length in (10, len(whole) // 3, len(whole) * 2 // 3):
            path.write_bytes(whole[:length])
            with pytest.raises(ImageError) as caught:
                load_image(path)
            assert path.name in str(caught.value)


@pytest.mark.filterwarnings("ignore")  # Pillow comments on some kinds of damage
def test_damaged_bytes_never_raise_anything_else() -> None:
    rng = np.random.default_rng(0)
    for data in encodings().values():
        for _ in range(20):
            damaged = bytearray(data)
            for position in rng.integers(0, len(data), 8):
                damaged[position] = int(rng.integers(256))
            try:
                load_image(bytes(damaged))
            except ImageError as error:
                assert "Pillow" not in str(error)


def test_a_small_file_of_many_pixels_is_refused_before_decoding(tmp_path: Path) -> None:
    """A header that promises a gigapixel, with next to no data behind it."""
    for side in (8001, 12_000, 30_000):
        header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
        path = tmp_path / "bomb.png"
        path.write_bytes(
            b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", header) + _chunk(b"IDAT", b"") + _chunk(b"IEND", b"")
        )
        assert side * side > MAX_PIXELS
        with pytest.raises(ImageError, match=r"bomb\.png: too large"):
            load_image(path)


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def test_what_is_no_picture(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="no such picture"):
        load_image(tmp_path / "absent.png")
    with pytest.raises(ImageError, match="PNG"):
        load_image(b"plain text")
    with pytest.raises(ImageError, match="0 bytes"):
        load_image(b"")
    with pytest.raises(ImageError):
        load_image(tmp_path)


def test_formats_that_start_other_programs_are_refused() -> None:
    with pytest.raises(ImageError, match="format"):
        load_image(encoded(picture(8, 8), "EPS"))
