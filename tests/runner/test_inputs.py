"""What an item's condition makes of its picture, and which kind of item a condition means."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from edgevlm_runner.contract import GREY, Item, Kind, from_json, to_json
from edgevlm_runner.errors import BundleError
from edgevlm_runner.inputs import picture_of
from PIL import Image

ITEM = Item("q", "q", "", "clean", "a.png", "a", "What is it?", ("dog",), "grass")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    Image.radial_gradient("L").resize((40, 24)).convert("RGB").save(tmp_path / "a.png")
    return tmp_path


@pytest.mark.parametrize(
    ("condition", "kind", "form", "change"),
    [
        ("clean", Kind.CLEAN, "", None),
        ("temperature", Kind.TEMPERATURE, "", None),
        ("fog/3", Kind.CORRUPTED, "", ("fog", 3)),
        ("cifar-c:fog/1", Kind.CORRUPTED, "fog/1", ("cifar-c:fog", 1)),
        ("perturbed:small_shift/2", Kind.PERTURBED, "small_shift/2", ("perturbed:small_shift", 2)),
        ("negated:is_not", Kind.NEGATED, "is_not", None),
        ("negated-blind:is_not", Kind.NEGATED_BLIND, "is_not", None),
        ("blind", Kind.BLIND, "", None),
        ("blind:grey", Kind.BLIND, "grey", None),
        ("background", Kind.BACKGROUND, "", None),
        ("ood", Kind.OOD, "", None),
    ],
)
def test_a_condition_has_one_kind(
    condition: str, kind: Kind, form: str, change: tuple[str, int] | None, root: Path
) -> None:
    item = dataclasses.replace(ITEM, condition=condition)
    assert (item.kind, item.form, item.corruption) == (kind, form, change)
    assert item.unseen == condition.startswith(("blind", "negated-blind"))
    seen, clean = picture_of(item, root, 0), picture_of(ITEM, root, 0)
    assert seen is not None and clean is not None
    altered = change is not None or condition == GREY
    assert (seen.tobytes() != clean.tobytes()) == altered


def test_a_grey_picture_has_the_size_of_the_one_that_it_hides(root: Path) -> None:
    grey = picture_of(dataclasses.replace(ITEM, condition=GREY), root, 0)
    assert grey is not None and grey.size == (40, 24) and grey.getcolors() == [(40 * 24, (128, 128, 128))]
    assert picture_of(dataclasses.replace(ITEM, condition="blind", image=""), root, 0) is None


def test_items_without_a_background_are_read() -> None:
    written = to_json(ITEM)
    assert from_json(Item, written, "items") == ITEM
    del written["background"]
    assert from_json(Item, written, "items") == dataclasses.replace(ITEM, background="")
    del written["answers"]
    with pytest.raises(BundleError, match=r"lacks \['answers'\]"):
        from_json(Item, written, "items")
