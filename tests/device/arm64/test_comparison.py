"""The comparison of two machines can fail, and a thinned bundle is a whole one. Nothing is emulated here."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
from device.arm64.comparison import Run, differ, problems
from device.arm64.thin import kept, thin
from edgevlm_runner.bundle import open_bundle
from edgevlm_runner.contract import CLEAN, Answer, Item, write_jsonl
from small_bundle import MODEL, listing, stored

from edgevlm_deploy.errors import BundleError


def item(number: int, condition: str = CLEAN) -> Item:
    suffix = "" if condition == CLEAN else f":{condition}"
    return Item(f"{number}{suffix}", str(number), "", condition, "", "", "How many?", ("2",))


CONDITIONS = ("fog/1", "fog/2")
ITEMS = [item(number) for number in range(100)]
ITEMS += [item(number, condition) for condition in CONDITIONS for number in range(50, 60)]


def run(text: str = "2", logprob: float = -0.5, flipped: int = 0, gates: str = "pass") -> Run:
    """Answers of one machine; the first `flipped` items are answered differently."""
    said = {one.id: Answer(one.id, text, (7, 1), (logprob, -0.1), True) for one in ITEMS}
    for one in ITEMS[:flipped]:
        said[one.id] = dataclasses.replace(said[one.id], text="3", token_ids=(8, 1))
    return Run(said, {}, {"divergence_rate ≤ 0.05": gates})


def test_log_probabilities_are_compared_token_by_token() -> None:
    found = differ(ITEMS, run(), run(logprob=-0.7))
    assert found.items == {"clean": 100, "corrupted": 20}
    assert found.flips == {"clean": 0, "corrupted": 0} and found.other_tokens == 0
    assert found.logprobs.shape == (240,)
    assert found.logprobs.max() == pytest.approx(0.2) and found.logprobs.min() == 0.0
    assert problems(run(), run(logprob=-0.7), found, ()) == []


@pytest.mark.parametrize(("flipped", "reported"), [(1, False), (2, True)])
def test_flips_above_the_limit_are_a_problem(flipped: int, reported: bool) -> None:
    found = differ(ITEMS, run(), run(flipped=flipped))
    assert found.flips["clean"] == flipped and found.other_tokens == flipped
    assert bool(problems(run(), run(), found, ())) is reported


def test_other_pixels_and_a_gate_that_fails_there_alone_are_problems() -> None:
    same = differ(ITEMS, run(), run())
    assert problems(run(), run(), same, ("fog/1",)) == ["pixels differ in fog/1"]
    (sentence,) = problems(run(), run(gates="fail"), same, ())
    assert "divergence_rate ≤ 0.05 fails on arm64 but is pass on x86-64" in sentence
    assert problems(run(gates="fail"), run(gates="fail"), same, ()) == []


def test_every_condition_keeps_items_and_every_item_its_clean_one() -> None:
    some = kept(ITEMS, 5)
    assert [one.id for one in some if one.condition == CLEAN] == [str(number) for number in range(0, 100, 5)]
    assert [one.base_id for one in some if one.condition == "fog/1"] == ["50", "55"]
    few = kept(ITEMS, 1000)
    assert [one.id for one in few] == ["0", "50", "50:fog/1", "50:fog/2"]


def test_a_thinned_bundle_is_whole_and_another_one(tmp_path: Path) -> None:
    folder = tmp_path / "bundle"
    (folder / "graphs").mkdir(parents=True)
    (folder / "graphs" / "decoder.onnx").write_bytes(b"graph")
    (folder / "model.json").write_text(json.dumps(dataclasses.asdict(MODEL)))
    write_jsonl(folder / "items.jsonl", ITEMS)
    write_jsonl(folder / "reference.jsonl", list(run().answers.values()))
    listing(folder)
    original = open_bundle(folder)
    made = open_bundle(thin(stored(folder, tmp_path / "demo.edgevlm"), 5, tmp_path / "thin"))
    assert made.digest != original.digest and made.seal is None
    assert list(made.items) == kept(ITEMS, 5)
    (made.root / "items.jsonl").write_text("")
    with pytest.raises(BundleError):
        open_bundle(made.root)
