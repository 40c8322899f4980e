from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from edgevlm_runner.contract import Answer, Item

from benchmarks import page, side_by_side
from edgevlm_deploy.metrics import Estimate, Metrics, compute, dual
from edgevlm_deploy.metrics.dual.scored import Head, Scored
from edgevlm_deploy.recipe import Evaluation, GateName
from edgevlm_deploy.report.quantity import Unit

ITEMS = tuple(
    Item(f"{n}{suffix}", str(n), "count", condition, f"{n}.png", f"picture {n}", "How many?", ("2",))
    for n in range(60)
    for suffix, condition in (("", "clean"), (" fog", "fog/3"))
)


def answers(wrong: int) -> list[Answer]:
    """The last `wrong` of the items answered with "3" and unsure, the others rightly."""
    right = Answer("", "2", (1, 2), (math.log(0.9), 0.0), True)
    poor = replace(right, text="3", token_logprobs=(math.log(0.4), 0.0))
    kept = len(ITEMS) - wrong
    return [replace(right if place < kept else poor, item_id=one.id) for place, one in enumerate(ITEMS)]


@pytest.fixture(scope="module")
def columns() -> dict[str, Metrics]:
    evaluation = Evaluation(bootstrap_resamples=200)
    return {
        name: compute(ITEMS, answers(10), answers(wrong), evaluation)
        for name, wrong in (("FP16", 10), ("W3", 60))
    }


def class_scores() -> dict[str, Estimate]:
    """What a dual encoder has besides: the estimates from the scores of six classes."""
    cosines, empty = np.eye(60, 6), ("",) * 60
    given = Scored(
        classes=tuple("abcdef"),
        labels=np.arange(60) % 7 - 1,
        image_ids=tuple(map(str, range(60))),
        conditions=("clean",) * 60,
        groups=empty,
        splits=empty,
        reference=cosines,
        artifact=cosines,
        reference_head=Head(10.0),
        artifact_head=Head(10.0),
    )
    return dual.estimates(given, Evaluation(bootstrap_resamples=100))


def found(tables: list[page.Table], name: str) -> tuple[str, ...]:
    rows = [row for table in tables for row in table.rows if row[0] == name]
    assert len(rows) == 1, name
    return rows[0][1:]


def test_a_change_is_bold_where_its_interval_leaves_out_zero(columns: dict[str, Metrics]) -> None:
    tables = side_by_side.tables(columns)
    same, worse = found(tables, "accuracy_drop, pp")
    assert same.startswith("0.00 [−") and worse.startswith("**41.67 [")
    same, worse = found(tables, "accuracy, count, %")
    assert same.startswith("91.67 [") and worse.startswith("**50.00 [")
    same, worse = found(tables, "mce")
    assert same == "1.000 [1.000, 1.000]" and worse.startswith("**6.000")
    # A share that is no change is never bold, however far from zero.
    assert not any(cell.startswith("**") for cell in found(tables, "mean_accuracy_drop, pp"))


def test_every_metric_with_a_value_has_one_row(columns: dict[str, Metrics]) -> None:
    tables = side_by_side.tables(columns)
    assert [table.title for table in tables] == [
        *("Accuracy and flips", "Confidence", "Answering only when sure", "Corruption"),
    ]
    for name, one in columns["W3"].estimates.items():
        names = [row[0].split(",")[0] for table in tables for row in table.rows]
        wanted = one.value is not None and not name.startswith("reference_")
        assert name in names if wanted else name not in names


def test_metrics_of_no_group_come_last(columns: dict[str, Metrics]) -> None:
    one = columns["W3"]
    more = one.model_copy(update={"estimates": {**one.estimates, "retrieval_drop": one.estimates["ece"]}})
    last = side_by_side.tables({"A": one, "B": more})[-1]
    assert last.title == side_by_side.OTHER
    assert [row[:2] for row in last.rows] == [("retrieval_drop, pp", "–")]


def test_groups_name_metrics_once_and_hold_every_gate_on_answers(columns: dict[str, Metrics]) -> None:
    named = [name for names in side_by_side.GROUPS.values() for name in names]
    assert len(set(named)) == len(named)
    of_scores = {name for name in class_scores() if not name.startswith("reference_")}
    assert of_scores <= set(named) <= {*columns["W3"].estimates, *of_scores}
    device = {"time_to_first_token_ms_p95", "latency_ms_p95", "peak_rss_bytes", "bundle_bytes"}
    foreign = {"ood_auroc", "ood_auroc_drop"}
    assert {gate.value for gate in GateName} & set(columns["W3"].estimates) <= {*named, *device, *foreign}


def test_numbers() -> None:
    one = Estimate(value=-0.001234, low=-0.00004, high=0.1, n=9, clusters=9, method="wilson")
    assert side_by_side.cell(one, Unit.POINTS) == "−0.12 [0.00, 10.00]"
    assert side_by_side.cell(one, Unit.RATIO, bold=True) == "**−0.001 [0.000, 0.100]**"
    assert side_by_side.cell(None, Unit.SHARE) == "–"


def test_gates_end_with_the_verdict() -> None:
    said = {"ece_increase": "pass", "latency_ms_p95": "pass", "verdict": "fail"}
    table = side_by_side.gates({"FP16": said})
    assert table.rows == (("ece_increase", "pass"), ("verdict", "**fail**"))
    text = page.document("Title", [], [table])
    assert "| --- | ---: |" in text
