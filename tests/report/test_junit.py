"""JUnit XML: a build server must see exactly what the verdict says."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from edgevlm_deploy.recipe import Gate, GateName
from edgevlm_deploy.report import junit
from edgevlm_deploy.verdict import Outcome, Verdict, judge


def test_one_case_a_gate(small_case: Any, tmp_path: Path) -> None:
    gates = [
        Gate(metric=GateName.ACCURACY, min=0.01),
        Gate(metric=GateName.CORRUPTED_ACCURACY, min=0.999, reason="bad \x00 & <b>"),
        Gate(metric=GateName.DIVERGENCE_RATE, max=small_case.metrics.estimates["divergence_rate"].value),
        Gate(metric=GateName.PEAK_RSS_BYTES, max=1e9),
    ]
    verdict = judge(gates, small_case.metrics)
    assert [gate.outcome for gate in verdict.gates] == [
        Outcome.PASS,
        Outcome.FAIL,
        Outcome.INCONCLUSIVE,
        Outcome.SKIPPED,
    ]
    suite = _suite(verdict, tmp_path / "junit.xml")
    assert {key: suite.get(key) for key in ("tests", "failures", "errors", "skipped")} == {
        "tests": "4",
        "failures": "2",
        "errors": "0",
        "skipped": "1",
    }
    passed, failed, unclear, skipped = suite.findall("testcase")
    assert passed.find("failure") is None and passed.find("skipped") is None
    failure, open_one = failed.find("failure"), unclear.find("failure")
    assert failure is not None and open_one is not None
    assert (failure.get("type"), open_one.get("type")) == ("fail", "inconclusive")
    assert failure.get("message") == verdict.gates[1].explanation
    assert failure.text == "bad � & <b>"
    assert skipped.find("skipped") is not None
    assert len({one.get("name") for one in suite.findall("testcase")}) == 4


def _suite(verdict: Verdict, out: Path) -> ElementTree.Element:
    junit.render(verdict, out)
    suite = ElementTree.parse(out).getroot().find("testsuite")
    assert suite is not None
    return suite
