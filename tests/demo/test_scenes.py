from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from edgevlm_deploy import datasets
from edgevlm_deploy.artifacts import tree_digest
from edgevlm_deploy.demo.backgrounds import GROUNDS
from edgevlm_deploy.demo.dataset import CROWDED, samples
from edgevlm_deploy.demo.scenes import (
    CELL,
    COLOURS,
    COLUMNS,
    CROWD,
    MOST_OBJECTS,
    SHAPES,
    SIDE,
    SIZES,
    TEXTURES,
    Split,
    crowded,
    scene,
)


def test_a_scene_is_the_same_on_every_call() -> None:
    first, again = scene(Split.EVALUATION, 5), scene(Split.EVALUATION, 5)
    assert first.things == again.things
    assert np.array_equal(first.pixels, again.pixels)


def test_pixels_and_layout() -> None:
    for index in range(50):
        one = scene(Split.TUNING, index)
        assert one.pixels.shape == (SIDE, SIDE, 3)
        assert one.pixels.dtype == np.uint8
        assert 2 <= len(one.things) <= MOST_OBJECTS
        columns = [thing.column for thing in one.things]
        assert columns == sorted(set(columns))


def test_a_crowd_has_a_cell_for_each() -> None:
    """And comes from left to right, like every scene."""
    counts: Counter[int] = Counter()
    for index in range(60):
        one = crowded(Split.TUNING, index)
        cells = [(thing.column, thing.row) for thing in one.things]
        assert cells == sorted(set(cells)) and max(map(max, cells)) < COLUMNS
        assert not np.array_equal(one.pixels, scene(Split.TUNING, index).pixels)
        counts[len(cells)] += 1
    assert set(counts) == set(range(CROWD[0], CROWD[1] + 1))


def test_no_picture_is_in_two_splits() -> None:
    """By content, not only by seed."""
    seen = {split: {scene(split, index).pixels.tobytes() for index in range(100)} for split in Split}
    assert len(set().union(*seen.values())) == 100 * len(Split)


@pytest.mark.parametrize(
    ("attribute", "values"),
    [("shape", SHAPES), ("colour", COLOURS), ("size", SIZES), ("texture", TEXTURES)],
)
def test_attributes_are_spread_evenly(attribute: str, values: tuple[str, ...]) -> None:
    things = [thing for index in range(300) for thing in scene(Split.EVALUATION, index).things]
    counts = Counter(getattr(thing, attribute) for thing in things)
    assert set(counts) == set(values)
    for value in values:
        assert counts[value] / len(things) == pytest.approx(1 / len(values), abs=0.06)


def test_an_object_is_visible_where_the_scene_says() -> None:
    """Its cell differs more from the empty cells than they do from each other."""
    cell = SIDE // COLUMNS
    distances: dict[bool, list[float]] = {True: [], False: []}
    for index in range(100):
        one = scene(Split.EVALUATION, index)
        occupied = {(thing.row, thing.column) for thing in one.things}
        cells = one.pixels.reshape(COLUMNS, cell, COLUMNS, cell, 3).astype(float)
        median = np.median(one.pixels.reshape(-1, 3), axis=0)
        for row in range(COLUMNS):
            for column in range(COLUMNS):
                middle = cells[row, 6:-6, column, 6:-6]
                distances[(row, column) in occupied].append(float(np.abs(middle - median).mean()))
    assert np.median(distances[True]) > 3 * np.median(distances[False])


def test_the_data_set_on_disk(tmp_path: Path) -> None:
    evaluation = samples(Split.EVALUATION, 12, 4, tmp_path / "a")
    assert len(evaluation) == 48
    assert evaluation[-1].id == "evaluation-000011-3"
    assert samples(Split.EVALUATION, 12, 4, tmp_path / "b") != evaluation  # other paths, same content:
    assert tree_digest(tmp_path / "a") == tree_digest(tmp_path / "b")
    assert datasets.load(tmp_path / "a") == evaluation
    calibration = samples(Split.CALIBRATION, 12, 4, tmp_path / "c")
    datasets.check_disjoint(calibration, evaluation)


def test_on_another_ground_all_else_stays() -> None:
    """Objects are painted over the ground, so that their own pixels do not know it."""
    moved, kept = [], []
    for index in range(20):
        plain = scene(Split.EVALUATION, index)
        for ground in GROUNDS:
            other = scene(Split.EVALUATION, index, ground=ground)
            assert other.things == plain.things and not np.array_equal(other.pixels, plain.pixels)
            assert np.array_equal(other.pixels, scene(Split.EVALUATION, index, ground=ground).pixels)
            change = np.abs(other.pixels.astype(int) - plain.pixels).max(axis=2)
            moved.append(np.mean(change > 3))
            kept += [
                change[y, x]
                for thing in plain.things
                if thing.size == "large" and thing.shape in ("ball", "cube")
                for y, x in [(thing.row * CELL + CELL // 2, thing.column * CELL + CELL // 2)]
            ]
    assert min(moved) > 0.5 and len(kept) > 10 and max(kept) <= 1


def test_repainted_scenes_are_counterfactual_rows(tmp_path: Path) -> None:
    found = samples(Split.EVALUATION, 3, 2, tmp_path, repainted=2)
    plain, swapped = datasets.separate(found)
    assert [one.id for one in plain] == [
        one.id for one in samples(Split.EVALUATION, 3, 2, tmp_path / "again")
    ]
    assert len(plain) == 6 and len(swapped) == 4
    originals = {one.id: one for one in plain}
    for one in swapped:
        original = originals[one.counterfactual_of]
        assert (one.prompt, one.answers, one.group) == (original.prompt, original.answers, original.group)
        assert one.image_id != original.image_id
        assert original.background == "smooth" and one.background in GROUNDS
    assert {one.background for one in swapped} == set(GROUNDS)


def test_every_second_scene_is_crowded(tmp_path: Path) -> None:
    found, plain = (
        samples(Split.EVALUATION, 4, 2, tmp_path / str(crowds), 2, crowds) for crowds in (True, False)
    )
    originals, swapped = datasets.separate(found)
    for number, one in enumerate(originals):
        assert one.group.endswith(CROWDED) == (number // 2 % 2 == 1)
    assert {one.counterfactual_of for one in swapped} == {one.id for one in originals[:4]}
    shared = {one.image_id for one in found} & {one.image_id for one in plain}
    assert shared == {one.image_id for one in found if not one.group.endswith(CROWDED)}
