"""What the command line prints."""

from __future__ import annotations

import dataclasses
import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from edgevlm_deploy import bundle as bundles
from edgevlm_deploy.metrics import Metrics
from edgevlm_deploy.recipe import Gate, GateName
from edgevlm_deploy.report import terminal
from edgevlm_deploy.verdict import Verdict, judge


@dataclass(frozen=True)
class Judged:
    bundle: Path
    verdict: Verdict
    metrics: Metrics
    evidence: dict[str, Any]
    sealed: bool
    report: Path


def test_one_line_a_gate_and_no_colour_in_a_pipe(small_case: Any) -> None:
    text = terminal.verdict_table(_judged(small_case, small_case.verdict, sealed=False))
    lines = text.splitlines()
    assert "\x1b" not in text
    assert lines[0].split() == ["gate", "measured", "limit", "status"]
    for gate, line in zip(small_case.verdict.gates, lines[1:], strict=False):
        assert line.startswith(gate.metric.value)
        assert gate.outcome.value in line
    assert lines[-2:] == ["bundle  build/demo.edgevlm", "report  build/demo.report.html"]


@pytest.mark.parametrize(
    ("gate", "beginning"),
    [
        (
            Gate(metric=GateName.ACCURACY, min=0.01),
            "Deployable: 1 of 1 gates passed at 95% confidence. Sealed.",
        ),
        (Gate(metric=GateName.ACCURACY, max=0.01), "Not deployable: of 1 gates 1 failed (accuracy)."),
        (
            Gate(metric=GateName.BUNDLE_BYTES, max=1),
            "Inconclusive: of 1 gates 1 without data (bundle size).",
        ),
    ],
)
def test_the_outcome_in_one_sentence(small_case: Any, gate: Gate, beginning: str) -> None:
    verdict = judge([gate], small_case.metrics)
    lines = terminal.verdict_table(_judged(small_case, verdict, sealed=verdict.deployable)).splitlines()
    assert lines[-3].startswith(beginning)
    assert lines[-3].endswith(" Sealed." if verdict.deployable else " Not sealed.")


def test_summary_is_json_and_sizes_add_up(small_case: Any) -> None:
    summary = json.loads(json.dumps(terminal.summary(small_case.bundle)))
    assert summary["seal"] is None
    assert summary["precision"]["decoder"] == "w4a16_g64 (gptq)"
    files = small_case.bundle.manifest["files"]
    assert summary["bytes"] == sum(summary["sizes"].values()) == sum(one["bytes"] for one in files.values())
    assert summary["sizes"]["decoder"] == 304_000, "the graph and the weights beside it"
    assert list(summary["sizes"])[:3] == ["vision_encoder", "embedding", "decoder"]
    text = terminal.summary_text(summary)
    assert "not validated yet" in text and "304 kB" in text and "\x1b" not in text
    assert text.count("max_abs_difference") == 2


def test_summary_of_a_sealed_bundle(small_case: Any, tmp_path: Path) -> None:
    folder = tmp_path / "bundle"
    shutil.copytree(small_case.bundle.root, folder)
    evidence = tmp_path / "evidence"
    evidence.mkdir()
    (evidence / "evidence.json").write_text("{}")
    bundles.seal(folder, evidence, "fail", False, "Not deployable: allowed by hand.")
    summary = terminal.summary(bundles.open_bundle(folder))
    assert summary["seal"] == {
        "outcome": "fail",
        "deployable": False,
        "statement": "Not deployable: allowed by hand.",
        "evidence": ["evidence.json"],
    }
    assert "fail – Not deployable: allowed by hand." in terminal.summary_text(summary)


def _judged(case: Any, verdict: Verdict, sealed: bool) -> Judged:
    return Judged(
        bundle=Path("build/demo.edgevlm"),
        verdict=verdict,
        metrics=case.metrics,
        evidence=case.evidence,
        sealed=sealed,
        report=Path("build/demo.report.html"),
    )


def test_throttling_is_said_below_the_verdict(small_case: Any) -> None:
    judged = _judged(small_case, small_case.verdict, sealed=False)
    assert "throttled" not in terminal.verdict_table(judged)
    board = {"throttled": True, "throttled_by": ["gpu-throttle-alert"]}
    hot = dataclasses.replace(judged, evidence={**judged.evidence, "board": board})
    warning = terminal.verdict_table(hot).splitlines()[-3]
    assert warning.startswith("The machine throttled while it was measured (gpu-throttle-alert)")
