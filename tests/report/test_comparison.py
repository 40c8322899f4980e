"""What `edgevlm diff` shows: the page, the table, the JSON."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from edgevlm_runner.contract import Answer, Item, Kind, read_jsonl
from report.test_html import Page

from edgevlm_deploy import comparison
from edgevlm_deploy.comparison import WHOLE, Compared, Part, Side
from edgevlm_deploy.errors import DataError
from edgevlm_deploy.report import comparison as page
from edgevlm_deploy.report import outcome, terminal


def sides(case: Any) -> tuple[Side, Side]:
    reference = read_jsonl(case.bundle.path("reference.jsonl"), Answer)
    return (
        Side("FP16 reference", case.bundle, tuple(reference), None),
        Side("demo-host-cpu", case.bundle, case.answers, case.evidence),
    )


def with_items(side: Side, items: Any, **manifest: Any) -> Side:
    changed = {**side.bundle.manifest, **manifest}
    return dataclasses.replace(
        side, bundle=dataclasses.replace(side.bundle, items=tuple(items), manifest=changed)
    )


@pytest.fixture(scope="module")
def compared(small_case: Any) -> Compared:
    return comparison.compare(*sides(small_case))


@pytest.fixture(scope="module")
def text(compared: Compared, tmp_path_factory: pytest.TempPathFactory) -> str:
    out = tmp_path_factory.mktemp("diff") / "diff.html"
    page.render(compared, out)
    return out.read_text(encoding="utf-8")


def test_the_page_has_every_changed_item_and_loads_nothing(compared: Compared, text: str) -> None:
    read = Page(text)
    assert len(read.all("article")) == len(compared.differences.changed) > 20
    for _, attributes in read.tags:
        for name, value in attributes.items():
            assert not name.startswith("on") and name != "style", name
            if name in ("src", "href"):
                assert value is not None and value.startswith(("#", "data:"))
    assert "http:" not in text and "https:" not in text
    assert "<img src=x" not in text, "what a model says stays text"
    assert len(read.all("caption")) == len(read.all("table")) == 5
    assert all(attributes.get("scope") for attributes in read.all("th"))
    ids = [attributes["id"] for _, attributes in read.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    targets = {str(one["href"])[1:] for one in read.all("a")}
    assert targets <= set(ids) and "corruption" in targets


def test_the_page_says_what_the_json_says(compared: Compared, text: str) -> None:
    said = json.loads(json.dumps(compared.to_json()))
    assert outcome.changes(compared.differences).replace("'", "&#39;") in text
    assert said["a"]["name"] == "FP16 reference" and said["a"]["recipe"] is None
    assert said["b"]["recipe"] == "default" and said["b"]["emulated"] is False
    assert len(said["changed"]) == len(compared.metrics.flips)
    (whole,) = [row for row in said["rows"] if row["part"] == "corrupted"]
    parts = [row for row in said["rows"] if row["part"] == "corruption"]
    for name in ("negative", "positive", "still_wrong", "still_right", "risen", "fallen"):
        assert whole[name] == sum(row[name] for row in parts)


def test_the_sentence_counts_every_changed_answer(compared: Compared) -> None:
    found = compared.differences
    rows = found.of(*WHOLE)
    counted = sum(row.negative + row.positive + row.still_wrong + row.still_right for row in rows)
    assert counted == len(found.changed)
    assert outcome.changes(found).startswith(f"B answers {counted:,} of {found.items:,} items differently")


def test_the_table_has_a_line_for_each_part(compared: Compared) -> None:
    lines = terminal.comparison_table(compared).splitlines()
    assert lines[:2] == ["A    FP16 reference", "B    demo-host-cpu"]
    for row in compared.differences.rows:
        shown = row.name or ("not named" if row.part is Part.GROUP else row.part.value)
        (line,) = [one for one in lines if one.split("   ")[0].strip() == shown]
        counts = (row.comparison.n, row.negative, row.positive, row.still_wrong)
        assert line.replace(shown, "", 1).split()[:4] == [f"{count:,}" for count in counts]
    first = next(place for place, line in enumerate(lines) if line.startswith("changed"))
    assert lines[first + 1].startswith("right → wrong")
    assert lines[-1] == outcome.changes(compared.differences)
    assert "\x1b" not in "\n".join(lines)


def test_equal_answers(small_case: Any, tmp_path: Path) -> None:
    _, b = sides(small_case)
    same = comparison.compare(b, b)
    assert outcome.changes(same.differences).startswith("B gives A's answer to each of")
    assert terminal.comparison_table(same).splitlines()[-1] == outcome.changes(same.differences)
    page.render(same, tmp_path / "same.html")
    text = (tmp_path / "same.html").read_text(encoding="utf-8")
    assert not Page(text).all("article") and "No item that kept its answer moved that far." in text


def counted(items: Sequence[Item]) -> int:
    """Without the items whose answers tell nothing in a comparison."""
    return sum(not item.unseen and item.kind is not Kind.OOD for item in items)


def test_items_that_only_one_has_are_counted_and_left_out(small_case: Any) -> None:
    a, b = sides(small_case)
    items = a.bundle.items
    fewer = [item for item in items if item.base_id != items[0].base_id]
    compared = comparison.compare(with_items(a, fewer), b)
    missing = counted(items) - counted(fewer)
    assert compared.left_out == (0, missing) and compared.differences.items == counted(fewer)
    assert compared.to_json()["only_in_b"] == missing
    assert f"Left out: 0 items that only A has and {missing} that only B has." in (
        terminal.comparison_table(compared)
    )


def test_other_pixels_are_other_items(small_case: Any, tmp_path: Path) -> None:
    a, b = sides(small_case)
    other = with_items(a, a.bundle.items, seeds={"evaluation": 1, "calibration": 0})
    compared = comparison.compare(other, b)
    parts = {row.part for row in compared.differences.rows}
    assert Part.CORRUPTED not in parts and Part.PERTURBED not in parts and Part.CLEAN in parts
    found = small_case.metrics
    assert compared.differences.items == found.clean_items + found.probed_items + found.background_items
    assert "different seeds" in terminal.comparison_table(compared)
    page.render(compared, tmp_path / "clean.html")
    text = (tmp_path / "clean.html").read_text(encoding="utf-8")
    assert "different seeds" in text and 'id="corruption"' not in text


def test_what_fits_the_temperature_is_no_item_of_either(small_case: Any) -> None:
    a, b = sides(small_case)
    first = a.bundle.items[0]
    extra = dataclasses.replace(first, id="t@temperature", base_id="t@temperature", condition="temperature")
    compared = comparison.compare(with_items(a, [*a.bundle.items, extra]), b)
    assert compared.left_out == (0, 0)
    assert all(one.condition != "temperature" for one in compared.differences.changed)


def test_another_checkpoint_and_an_emulation_are_named(small_case: Any) -> None:
    a, b = sides(small_case)
    source = {**b.bundle.manifest["source"], "id": "another"}
    other = with_items(
        dataclasses.replace(b, evidence={**small_case.evidence, "emulated": True}),
        b.bundle.items,
        source=source,
    )
    remarks = outcome.comparability(comparison.compare(a, other))
    assert remarks[0] == "A and B were compiled from different checkpoints."
    assert remarks[1].startswith("B: Emulated")
    assert not outcome.comparability(comparison.compare(a, b))


def test_nothing_in_common_is_said(small_case: Any) -> None:
    a, b = sides(small_case)
    others = [dataclasses.replace(item, prompt=f"{item.prompt} Really?") for item in a.bundle.items]
    with pytest.raises(DataError, match="no item is in both") as raised:
        comparison.compare(with_items(a, others), b)
    assert raised.value.exit_code == 14
