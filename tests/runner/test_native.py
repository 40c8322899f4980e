"""Pictures at their own resolution: sizes, patches, windows and positions are transformers' own."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from edgevlm_runner import native, positions
from edgevlm_runner.contract import BundleError, NativeSpec, sides
from edgevlm_runner.errors import ImageError
from hypothesis import example, given
from hypothesis import strategies as st
from PIL import Image

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

SPEC = NativeSpec(14, 2, 2, 56, 3136, 200_000, None, 3, 1 / 255, (0.5,) * 3, (0.25, 0.5, 0.3))
lengths = st.integers(1, 900)
counts = st.integers(1, 12)


@given(height=lengths, width=lengths)
@example(height=70, width=42)
@example(height=14, width=2800)
def test_sizes_are_those_of_smart_resize(height: int, width: int) -> None:
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize

    if max(height, width) > 200 * min(height, width):
        with pytest.raises(ImageError, match="200 times"):
            native.fitted((height, width), SPEC)
        return
    theirs = smart_resize(height, width, SPEC.cell, SPEC.min_pixels, SPEC.max_pixels)
    assert native.fitted((height, width), SPEC) == theirs
    assert np.prod(native.cells(theirs, SPEC)) <= native.most_cells(SPEC) or max(theirs) == SPEC.cell * 200


@pytest.mark.parametrize(("patch", "size"), [(14, (61, 95)), (14, (300, 40)), (16, (100, 100))])
def test_pixels_are_those_of_the_image_processor(patch: int, size: tuple[int, int]) -> None:
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    spec = dataclasses.replace(SPEC, patch_size=patch)
    processor = Qwen2VLImageProcessorPil(
        patch_size=patch,
        size={"shortest_edge": spec.min_pixels, "longest_edge": spec.max_pixels},
        image_mean=list(spec.mean),
        image_std=list(spec.std),
    )
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8))
    theirs = processor(images=picture, return_tensors="np")
    ours = native.resized(picture, spec)
    assert np.array_equal(native.patches(ours, spec), theirs["pixel_values"])
    rows, cols = native.cells(ours.shape[2:], spec)
    assert theirs["image_grid_thw"].tolist() == [[1, 2 * rows, 2 * cols]]


@given(rows=counts, cols=counts)
def test_layout_is_that_of_transformers(rows: int, cols: int) -> None:
    from transformers import vision_utils

    grid = torch.tensor([[1, 2 * rows, 2 * cols]])
    size = (rows * SPEC.cell, cols * SPEC.cell)
    ours = native.layout(size, SPEC)
    order, ends = vision_utils.get_vision_window_index(grid, 2, SPEC.window_size, SPEC.patch_size)
    places = vision_utils.get_vision_position_ids(grid, 2)
    assert ours["cell_order"].tolist() == order.tolist()
    assert np.array_equal(
        ours["patch_positions"].reshape(-1, 4, 2), places.numpy().reshape(-1, 4, 2)[order.numpy()]
    )
    assert np.cumsum(ours["window_mask"].sum(1)).tolist() == ends[1:].tolist()
    seen = ours["windows"][ours["window_mask"] == 1]
    assert np.array_equal(seen, np.arange(4 * rows * cols))
    assert np.array_equal(ours["windows"].reshape(-1)[ours["window_places"]], seen)
    assert np.array_equal(ours["cell_order"][ours["cell_places"]], np.arange(rows * cols))
    shapes = native.signature(SPEC)
    assert {name: array.ndim for name, array in ours.items()} == {
        name: len(shape) for name, shape in shapes.items() if name != "pixel_values"
    }
    assert ours["windows"].shape[1] == shapes["windows"][1]


@given(rows=counts, cols=counts)
def test_the_table_is_stretched_as_by_transformers(rows: int, cols: int) -> None:
    from transformers import vision_utils

    spec = dataclasses.replace(SPEC, window_size=0, table_side=7)
    ours = native.layout((rows * SPEC.cell, cols * SPEC.cell), spec)
    places, weights = vision_utils.get_vision_interpolation_indices_and_weights(
        torch.tensor([[1, 2 * rows, 2 * cols]]), 7, align_corners=True, spatial_merge_size=2
    )
    assert np.array_equal(ours["table_rows"], places.numpy())
    assert np.array_equal(ours["table_weights"], weights.numpy())
    assert set(native.signature(spec)) - {"pixel_values"} == set(ours)


def test_layout_without_windows() -> None:
    assert set(native.layout((56, 84), dataclasses.replace(SPEC, window_size=0))) == {"patch_positions"}


@given(rows=counts, cols=counts, before=st.integers(0, 5), after=st.integers(1, 5))
def test_positions_are_those_of_get_rope_index(rows: int, cols: int, before: int, after: int) -> None:
    from types import SimpleNamespace

    from transformers import Qwen2VLModel

    places = np.zeros((1, before + rows * cols + after), np.int64)
    places[0, before : before + rows * cols] = 1
    rule = SimpleNamespace(
        config=SimpleNamespace(vision_config=SimpleNamespace(spatial_merge_size=2, tokens_per_second=2)),
        get_vision_position_ids=lambda *given, **named: Qwen2VLModel.get_vision_position_ids(
            None, *given, **named
        ),
    )
    theirs, delta = Qwen2VLModel.get_rope_index(
        rule,
        torch.from_numpy(places),
        mm_token_type_ids=torch.from_numpy(places),
        image_grid_thw=torch.tensor([[1, 2 * rows, 2 * cols]]),
    )
    ours = positions.of_prompt(places == 1, (rows, cols))
    assert np.array_equal(ours, theirs.numpy())
    context = positions.Positions(positions.ROWS)
    assert np.array_equal(context.take(places.shape[1], ours), ours)
    following = places.shape[1] + int(delta)
    assert context.take(2)[:, 0].tolist() == 3 * [[following, following + 1]]
    context.reset()
    assert context.take(1).max() == 0


def test_words_alone_stand_one_after_the_other() -> None:
    assert positions.of_prompt(np.zeros((1, 4), bool), None).tolist() == 3 * [[[0, 1, 2, 3]]]
    assert positions.Positions(1).take(3).tolist() == [[0, 1, 2]]


def test_one_size_for_all() -> None:
    fixed = dataclasses.replace(SPEC, size=(56, 84))
    picture = Image.new("RGB", (300, 100))
    assert native.resized(picture, fixed).shape == (1, 3, 56, 84)
    assert sides(fixed) == (56, 84)
    assert native.most_cells(fixed) == 6
    with pytest.raises(BundleError, match="only ONNX Runtime"):
        sides(SPEC)
