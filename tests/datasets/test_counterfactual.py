"""Rows that repeat another one on another background."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from edgevlm_deploy import datasets, resources, samples
from edgevlm_deploy.errors import DataError
from edgevlm_deploy.recipe import Gate, GateName

COW = {"id": "cow", "image": "grass.png", "question": "What is it?", "answer": "cow", "background": "grass"}
BEACH = {
    "id": "cow-beach",
    "image": "beach.png",
    "question": "What is it?",
    "counterfactual_of": "cow",
    "background": "beach",
}


def written(folder: Path, *rows: dict[str, Any], name: str = "items.jsonl") -> Path:
    for row in rows:
        grey = sum(map(ord, row["image"])) % 256
        Image.new("RGB", (8, 6), (grey, grey, 0)).save(folder / row["image"])
    path = folder / name
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_a_counterfactual_takes_what_it_leaves_out_from_its_original(tmp_path: Path) -> None:
    loaded = datasets.load(written(tmp_path, {**COW, "group": "animal"}, BEACH))
    plain, swapped = datasets.separate(loaded)
    assert [one.id for one in plain] == ["cow"] and [one.id for one in swapped] == ["cow-beach"]
    assert (swapped[0].answers, swapped[0].group, swapped[0].background) == (("cow",), "animal", "beach")
    assert datasets.separate(plain) == (plain, ())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"counterfactual_of": "calf"}, "cow-beach: no row has the id 'calf'"),
        ({"question": "What was it?"}, "expected the question of cow, 'What is it"),
        ({"image": "grass.png"}, "needs a picture of its own"),
        ({"id": "self", "counterfactual_of": "self"}, "or it is a counterfactual itself"),
    ],
)
def test_pairs_that_are_none_are_refused(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        datasets.separate(datasets.load(written(tmp_path, COW, {**BEACH, **change})))


def test_a_counterfactual_goes_with_its_original_and_foreign_pictures_stay_apart(tmp_path: Path) -> None:
    """Half the originals end up in calibration: their counterfactuals are not judged."""
    rows = []
    for number in range(40):
        rows.append({**COW, "id": f"q{number}", "image": f"{'i' * number}grass.png"})
        rows.append(
            {
                **BEACH,
                "id": f"b{number}",
                "image": f"{'i' * number}beach.png",
                "counterfactual_of": f"q{number}",
            }
        )
    data = written(tmp_path, *rows)
    away = tmp_path / "away"
    away.mkdir()
    foreign = written(away, {"id": "f", "image": "sea.png", "question": "What is it?"})
    recipe = resources.recipe("default")
    found = samples.gather(data, None, None, recipe, tmp_path, foreign)
    judged = {one.id for one in found.evaluation}
    assert len(found.calibration) + len(judged) == 40 and 0 < len(judged) < 40
    assert {one.counterfactual_of for one in found.counterfactuals} == judged
    assert [one.id for one in found.ood] == ["f"] and len(found.all) == 40 + len(judged) + 1
    gate = Gate(metric=GateName.OOD_AUROC, min=0.9)
    with pytest.raises(DataError, match="the gate on ood_auroc needs questions of another distribution"):
        samples.gather(data, None, None, recipe.model_copy(update={"gates": (gate,)}), tmp_path)
    with pytest.raises(DataError, match="pictures are in the calibration and in the evaluation data"):
        samples.gather(data, None, None, recipe, tmp_path, written(tmp_path, COW, name="same.jsonl"))
