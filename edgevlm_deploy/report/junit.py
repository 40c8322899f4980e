"""The verdict as JUnit XML, so that a build server shows gates the way it shows tests."""

from __future__ import annotations

import re
from pathlib import Path
from xml.etree import ElementTree

from edgevlm_deploy.artifacts import write_bytes_atomic
from edgevlm_deploy.report.quantity import limit
from edgevlm_deploy.verdict import GateResult, Outcome, Verdict

_NOT_IN_XML = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def render(verdict: Verdict, out: Path) -> None:
    """Write one test case a gate: an inconclusive gate is a failure too, a gate without data is skipped.

    Raises StorageError when `out` cannot be written.
    """
    outcomes = [gate.outcome for gate in verdict.gates]
    suite = ElementTree.Element(
        "testsuite",
        name="edgevlm gates",
        tests=str(len(outcomes)),
        failures=str(outcomes.count(Outcome.FAIL) + outcomes.count(Outcome.INCONCLUSIVE)),
        errors="0",
        skipped=str(outcomes.count(Outcome.SKIPPED)),
    )
    for gate in verdict.gates:
        suite.append(_case(gate))
    ElementTree.SubElement(suite, "system-out").text = _clean(verdict.note)
    root = ElementTree.Element("testsuites")
    root.append(suite)
    ElementTree.indent(root)
    write_bytes_atomic(out, ElementTree.tostring(root, encoding="utf-8", xml_declaration=True) + b"\n")


def _case(gate: GateResult) -> ElementTree.Element:
    case = ElementTree.Element(
        "testcase", classname="edgevlm.gates", name=f"{gate.metric.value} {limit(gate)}"
    )
    message = _clean(gate.explanation)
    if gate.outcome is Outcome.SKIPPED:
        ElementTree.SubElement(case, "skipped", message=message)
    elif gate.outcome is not Outcome.PASS:
        failure = ElementTree.SubElement(case, "failure", type=gate.outcome.value, message=message)
        failure.text = _clean(gate.reason) or None
    else:
        ElementTree.SubElement(case, "system-out").text = message
    return case


def _clean(text: str) -> str:
    """XML 1.0 has no place for most control characters, not even escaped."""
    return _NOT_IN_XML.sub("�", text)
