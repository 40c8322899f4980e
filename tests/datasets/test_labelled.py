"""Pictures with a class, for models that are asked no question."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tiny_dual

from edgevlm_deploy import datasets, resources
from edgevlm_deploy.errors import DataError
from edgevlm_deploy.samples import gather

RECIPE = resources.recipe("zero-shot-classifier")


def rows(folder: Path, *rows: dict[str, Any]) -> Path:
    for number in range(len(rows)):
        tiny_dual.picture("disc", number).save(folder / f"{number}.png")
    path = folder / "items.jsonl"
    path.write_text("\n".join(json.dumps({"image": f"{n}.png", **row}) for n, row in enumerate(rows)))
    return path


def test_a_folder_needs_no_question(tmp_path: Path) -> None:
    found = datasets.load(tiny_dual.labelled(tmp_path, each=2), labelled=True)
    assert [one.answers for one in found[:3]] == [("disc",), ("disc",), ("square",)]
    assert not any(one.prompt for one in found)
    with pytest.raises(DataError, match=r"question\.txt"):
        datasets.load(tmp_path)


def test_backgrounds_splits_and_strangers(tmp_path: Path) -> None:
    path = rows(
        tmp_path,
        {"label": "disc", "background": "night", "split": "counter"},
        {"label": "square", "group": "mine"},
        {"ood": True},
    )
    first, second, stranger = datasets.load(path, labelled=True)
    assert (first.background, first.split, first.answers, first.ood) == ("night", "counter", ("disc",), False)
    assert (second.group, second.background) == ("mine", "")
    assert stranger.ood and stranger.answers == () and stranger.prompt == ""


@pytest.mark.parametrize(
    ("row", "sentence"),
    [
        ({"label": "disc", "split": "both"}, 'split: expected "common" or "counter"'),
        ({"label": "disc", "ood": 1}, "ood: expected true or false"),
        ({"label": "disc", "ood": True}, "none when it is marked `ood`"),
        ({"label": "disc", "answer": "x"}, "more than one of"),
        ({"label": "disc", "image": None}, "no picture to classify"),
        ({"question": "What?", "answer": "disc"}, "asks a question"),
    ],
)
def test_bad_rows_are_named(tmp_path: Path, row: dict[str, Any], sentence: str) -> None:
    with pytest.raises(DataError, match=r"items\.jsonl:1") as error:
        datasets.load(rows(tmp_path, row), labelled=True)
    assert sentence in str(error.value)


def test_the_class_is_the_group_and_strangers_never_calibrate(tmp_path: Path) -> None:
    described = [{"label": name} for name in tiny_dual.CLASSES * 6] + [{"ood": True}] * 4
    samples = gather(rows(tmp_path, *described), None, None, RECIPE, tmp_path, labelled=True)
    assert samples.labels == tuple(sorted(tiny_dual.CLASSES))
    assert {one.group for one in samples.evaluation} <= set(tiny_dual.CLASSES)
    assert len(samples.ood) == 4 and not any(one.ood for one in (*samples.calibration, *samples.evaluation))


def test_a_dual_encoder_without_data_is_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="one sub-folder per class"):
        gather(None, None, None, RECIPE, tmp_path, labelled=True)
