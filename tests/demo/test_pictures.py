"""Pictures and captions of the demo CLIP, and its data set on disk."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from edgevlm_deploy.artifacts import tree_digest
from edgevlm_deploy.demo import clip_dataset
from edgevlm_deploy.demo.captions import Caption, caption, full_caption, truth
from edgevlm_deploy.demo.pictures import (
    CLASSES,
    GROUNDS,
    USUAL_GROUND,
    USUAL_SHARE,
    Picture,
    counterfactual,
    pair_picture,
    training_picture,
    unseen_picture,
)
from edgevlm_deploy.demo.scenes import SHAPES, SIDE, UNSEEN_SHAPES, Split, Thing, generator, scene


def test_the_demo_vlm_s_scenes_are_the_ones_that_it_was_trained_on() -> None:
    """What was added for CLIP must not move a pixel of them."""
    pixels = b"".join(scene(split, index).pixels.tobytes() for split in Split for index in range(20))
    assert hashlib.sha256(pixels).hexdigest()[:16] == "dbe751a4afda1d90"


def test_pictures_are_the_same_on_every_call_and_of_the_scenes_size() -> None:
    for make in (training_picture, pair_picture):
        first, again = make(Split.TUNING, 7), make(Split.TUNING, 7)
        assert np.array_equal(first.pixels, again.pixels)
        assert first.pixels.shape == (SIDE, SIDE, 3)
        assert first.pixels.dtype == np.uint8


def test_training_pictures_stand_mostly_on_their_usual_ground() -> None:
    pictures = [training_picture(Split.TRAIN, index) for index in range(400)]
    single = [picture for picture in pictures if len(picture.things) == 1]
    assert len(single) == pytest.approx(300, abs=40)
    usual = [picture.ground == USUAL_GROUND[picture.things[0].shape] for picture in single]
    assert np.mean(usual) == pytest.approx(USUAL_SHARE, abs=0.05)
    chance = [training_picture(Split.TRAIN, index, 0.2) for index in range(200)]
    usual = [one.ground == USUAL_GROUND[one.things[0].shape] for one in chance if len(one.things) == 1]
    assert np.mean(usual) == pytest.approx(0.2, abs=0.1)


def test_a_counterfactual_differs_in_its_ground_alone() -> None:
    """Many pixels of the object are the same (blur mixes in the ground), those of the ground are not."""
    y, x = np.mgrid[:SIDE, :SIDE] + 0.5
    inside, outside = [], []
    for index in range(60):
        common, counter = counterfactual(Split.EVALUATION, index)
        assert (common.things, common.places) == (counter.things, counter.places)
        assert common.things[0].name == CLASSES[index % len(CLASSES)]
        assert common.ground == USUAL_GROUND[common.things[0].shape] != counter.ground
        same = np.abs(common.pixels.astype(int) - counter.pixels).max(axis=2) <= 2
        distance = np.hypot(x - common.places[0][0], y - common.places[0][1])
        inside.append(same[distance < common.places[0][2]].mean())
        outside.append(same[distance > 1.5 * common.places[0][2] + 4].mean())
    assert np.mean(inside) > 0.4
    assert np.mean(outside) < 0.01


def test_classes_and_grounds_of_an_evaluation_are_balanced() -> None:
    pairs = [counterfactual(Split.EVALUATION, index) for index in range(240)]
    labels = Counter(common.things[0].name for common, _ in pairs)
    assert set(labels.values()) == {8}
    grounds = Counter(counter.ground for _, counter in pairs)
    assert set(grounds) == set(GROUNDS)
    assert min(grounds.values()) > 30


def test_no_picture_is_in_two_splits() -> None:
    seen = {split: {counterfactual(split, i)[0].pixels.tobytes() for i in range(30)} for split in Split}
    assert len(set().union(*seen.values())) == 30 * len(Split)


def test_unseen_pictures_show_what_no_class_names() -> None:
    kinds = [unseen_picture(Split.EVALUATION, index) for index in range(12)]
    assert [kind for kind, _ in kinds[:6]] == [*UNSEEN_SHAPES, "texture", "noise"]
    assert not set(UNSEEN_SHAPES) & set(SHAPES)
    assert all(not picture.things for kind, picture in kinds if kind in ("texture", "noise"))


def thing(shape: str, colour: str, size: str = "small", texture: str = "plain", column: int = 0) -> Thing:
    return Thing(shape, colour, size, texture, column, 0)


def picture(ground: str, *things: Thing) -> Picture:
    return Picture(things, (), ground, np.zeros((SIDE, SIDE, 3), np.uint8))


def test_truth_golden() -> None:
    pictures = [
        picture("sand", thing("cube", "red"), thing("ball", "blue", "large", column=1)),
        picture("snow", thing("cube", "red", "large")),
        picture("sand", thing("ball", "blue", "large"), thing("ball", "red", column=1)),
    ]
    #               size, texture, colour, shape; −1 leaves open
    red_cube, large_ball, red = (-1, -1, 0, 0), (1, -1, -1, 1), (-1, -1, 0, -1)
    captions = [
        Caption("a red cube", (red_cube,), -1),
        Caption("a red cube and a large ball", (red_cube, large_ball), -1),
        Caption("a large ball and a red cube on sand", (large_ball, red_cube), 2),
        Caption("a red thing on snow", (red,), 3),
        Caption("two red things", (red, red), -1),
    ]
    assert truth(pictures, captions).T.tolist() == [
        [True, True, False],
        [True, False, False],
        [True, False, False],
        [False, True, False],
        [False, False, False],
    ]


def test_a_caption_is_true_of_its_own_picture() -> None:
    pictures = [training_picture(Split.TRAIN, index) for index in range(80)]
    captions = [caption(one, generator(Split.TRAIN, i, 99)) for i, one in enumerate(pictures)]
    found = truth(pictures, captions)
    assert found.diagonal().all()
    assert 1.0 < found.sum(axis=1).mean() < 8.0
    full = [full_caption(one) for one in pictures]
    assert truth(pictures, full).diagonal().all()
    assert (truth(pictures, full).sum() <= found.sum()).all()


def test_captions_in_words() -> None:
    one = picture("sand", thing("cube", "red"), thing("ball", "blue", "large", "striped", column=1))
    assert full_caption(one).text == (
        "a photo of a small plain red cube and a large striped blue ball on sand"
    )
    words = {caption(one, np.random.default_rng(seed)).text for seed in range(50)}
    assert len(words) > 20
    assert all("cube" in text or "ball" in text for text in words)


def test_the_data_set_on_disk(tmp_path: Path) -> None:
    table = clip_dataset.write(Split.EVALUATION, 4, 6, tmp_path / "a")
    rows = [json.loads(line) for line in table.read_text().splitlines()]
    assert len(rows) == len({row["id"] for row in rows}) == 14
    assert rows[0]["split"] == "common" and rows[1]["split"] == "counter"
    assert rows[0]["label"] == rows[1]["label"] == CLASSES[0]
    assert rows[1]["group"] == f"cube on {rows[1]['background']}"
    assert [row["group"] for row in rows[8:]] == [*UNSEEN_SHAPES, "texture", "noise"]
    assert all("label" not in row for row in rows if row.get("ood"))
    assert all((tmp_path / "a" / row["image"]).is_file() for row in rows)
    clip_dataset.write(Split.EVALUATION, 4, 6, tmp_path / "b")
    assert tree_digest(tmp_path / "a") == tree_digest(tmp_path / "b")
