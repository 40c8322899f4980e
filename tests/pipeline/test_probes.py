"""Probes from recipe to report: every kind of item is answered by the source model and by the runtime."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from pathlib import Path

import pytest
from edgevlm_runner.contract import Answer, Kind, read_jsonl

from edgevlm_deploy import comparison, pipeline, validation
from edgevlm_deploy.comparison import Part
from edgevlm_deploy.progress import Silent

PROBES = """  negation: {items: 3}
  blind_items: 4
  grey_items: 4
  background_items: 8
  ood_items: 3
gates:
"""


@pytest.fixture(scope="module")
def validated(
    checkpoint: Path, recipe: Path, compiled: Path, tmp_path_factory: pytest.TempPathFactory
) -> validation.Validation:
    """The small bundle with probes. Its graphs are those that are there already."""
    out = tmp_path_factory.mktemp("probes")
    shutil.copytree(compiled.parent / "stages", out / "stages")
    asking = out / "small.yaml"
    asking.write_text(recipe.read_text().replace("gates:\n", PROBES))
    foreign = out / "foreign.jsonl"
    questions = ("Who painted this?", "What does the sign say?", "Which year was it?")
    foreign.write_text("".join(json.dumps({"image": None, "question": one}) + "\n" for one in questions))
    order = pipeline.Order(model=str(checkpoint), target="host-cpu", recipe=str(asking), out=out, ood=foreign)
    return validation.validate(pipeline.compile(order, Silent()), False, Silent())


def test_every_kind_of_item_is_answered(validated: validation.Validation) -> None:
    answers = read_jsonl(validated.directory / "answers.jsonl", Answer)
    kinds = Counter(answer.item_id.partition("@")[2].partition(":")[0] for answer in answers)
    assert kinds["ood"] == 3 and kinds["blind"] == 8 and kinds["negated"] == kinds["negated-blind"] > 6
    found = validated.metrics
    assert (found.clean_items, found.background_items, found.foreign_items) == (12, 8, 3)
    assert [row.condition for row in found.blind] == ["blind", "blind:grey"]
    for name in ("prior_bias", "background_gap", "ood_auroc_drop"):
        assert found.estimates[name].value is not None
    assert 'id="probes"' in validated.report.read_text(encoding="utf-8")


def test_a_comparison_leaves_out_what_tells_nothing(validated: validation.Validation) -> None:
    compared = comparison.compare(*comparison.open_sides("reference", str(validated.bundle)))
    parts = {row.part for row in compared.differences.rows}
    assert {Part.CLEAN, Part.NEGATED, Part.FORM, Part.BACKGROUND, Part.GROUND} <= parts
    grounds = [row.name for row in compared.differences.of(Part.GROUND)]
    assert sorted(grounds) == ["checks", "waves"]
    kinds = {item.kind for item in compared.b.bundle.items} - {Kind.TEMPERATURE, Kind.OOD}
    unseen = [item for item in compared.b.bundle.items if item.unseen]
    assert {Kind.BLIND, Kind.NEGATED_BLIND} < kinds and len(unseen) > 10
    assert compared.differences.items == sum(
        item.kind in kinds and not item.unseen for item in compared.b.bundle.items
    )
    assert compared.left_out == (0, 0)
