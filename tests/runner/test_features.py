"""Embeddings as a file of the evidence: what is kept, and what is no such file."""

from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path

import numpy as np
import pytest
from edgevlm_runner import features
from edgevlm_runner.contract import Item
from edgevlm_runner.errors import BundleError
from edgevlm_runner.features import Features
from small_dual import SPEC, words

KEEPING = dataclasses.replace(SPEC, feature_items=3)


def item(number: int, condition: str = "clean", caption: str = "") -> Item:
    name = f"q{number}"
    return Item(name, name, "", condition, f"{name}.png", name, "", ("cat",), caption=caption)


ITEMS = (
    item(0, caption="a cat"),
    item(1, "fog/3", caption="one dog"),
    item(2, caption="a cat"),
    item(3),
    item(4, caption="a dog"),
)
KEPT = Features(np.ones((3, 3), np.float32), np.ones((1, 3), np.float32), np.ones((2, 3), np.float32))


def test_the_first_clean_items_are_watched_and_captions_counted_once() -> None:
    kept = features.watched(ITEMS, KEEPING)
    assert [one.id for one in kept] == ["q0", "q2", "q3"]
    assert features.captions(kept) == ("a cat",) and features.captions(ITEMS) == ("a cat", "one dog", "a dog")
    assert features.watched(ITEMS, SPEC) == []


def test_what_is_gathered() -> None:
    """Texts become the sum of their tokens' numbers here, pictures their item's."""

    def encode_text(rows: np.ndarray) -> np.ndarray:
        return np.repeat(rows.sum(axis=1, keepdims=True), 3, axis=1).astype(np.float32)

    kept = features.watched(ITEMS, KEEPING)
    found = features.gather(
        kept, lambda one: np.full(3, int(one.id[1:]), np.float32), encode_text, KEEPING, words()
    )
    assert found.images[:, 0].tolist() == [0, 2, 3] and found.captions[:, 0].tolist() == [0 + 2 + 9 + 9]
    np.testing.assert_allclose(np.linalg.norm(found.classes, axis=1), 1.0, atol=1e-6)
    without = [dataclasses.replace(one, caption="") for one in kept]
    silent = features.gather(without, lambda one: np.zeros(3, np.float32), encode_text, KEEPING, words())
    assert silent.captions.shape == (0, 3)


def test_the_same_numbers_are_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a.npz", "b.npz"):
        features.write(tmp_path / name, KEPT)
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()
    back = features.read(tmp_path / "a.npz", ITEMS, KEEPING)
    for one in dataclasses.fields(Features):
        np.testing.assert_array_equal(getattr(back, one.name), getattr(KEPT, one.name))


def test_other_files_are_refused(tmp_path: Path) -> None:
    wrong = (
        {"images": np.ones((2, 3), np.float32)},
        {"classes": np.ones((2, 3), np.float64)},
        {"captions": np.full((1, 3), np.nan, np.float32)},
    )
    for number, change in enumerate(wrong):
        features.write(tmp_path / f"{number}.npz", dataclasses.replace(KEPT, **change))
    (tmp_path / "3.npz").write_bytes(b"no zip")
    with (tmp_path / "4.npz").open("wb") as out:
        np.savez(out, images=np.array([{"pickled": 1}], dtype=object))
    for number in itertools.chain(range(5), [9]):
        with pytest.raises(BundleError, match=r"images 3 × 3, captions 1 × 3, classes 2 × 3"):
            features.read(tmp_path / f"{number}.npz", ITEMS, KEEPING)
