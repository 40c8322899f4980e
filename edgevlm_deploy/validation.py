"""From a bundle to a verdict: run it, judge it, seal it if it passed, write the report."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgevlm_runner import features
from edgevlm_runner.bundle import Bundle
from edgevlm_runner.contract import FEATURES, REFERENCE_FEATURES, Answer, DualEncoderSpec, read_jsonl
from edgevlm_runner.features import Features
from edgevlm_runner.measure import read_evidence

from edgevlm_deploy import bundle, device, metrics, roofline, verdict
from edgevlm_deploy.artifacts import write_text_atomic
from edgevlm_deploy.config import Frozen
from edgevlm_deploy.device import Device
from edgevlm_deploy.errors import BundleError
from edgevlm_deploy.metrics import Estimate, Metrics, dual
from edgevlm_deploy.metrics.dual import scored
from edgevlm_deploy.metrics.dual.tables import DualMetrics
from edgevlm_deploy.progress import Watcher
from edgevlm_deploy.recipe import Evaluation, Gate
from edgevlm_deploy.target import Target
from edgevlm_deploy.verdict import Verdict

DUAL_METRICS = "dual_metrics.json"
NOT_DEPLOYABLE = "Not deployable: sealed on request although not all gates passed."


@dataclass(frozen=True)
class Validation:
    """What became of one bundle on the machine that its evidence names."""

    bundle: Path
    verdict: Verdict
    metrics: Metrics
    evidence: dict[str, Any]
    directory: Path
    """evidence.json, answers.jsonl, metrics.json, verdict.json; of a dual encoder dual_metrics.json and
    perhaps features.npz"""
    report: Path
    sealed: bool

    def to_json(self) -> dict[str, Any]:
        return {
            "bundle": str(self.bundle),
            "outcome": self.verdict.outcome.value,
            "deployable": self.verdict.deployable and self.sealed,
            "sealed": self.sealed,
            "verdict": self.verdict.model_dump(mode="json"),
            "evidence": str(self.directory),
            "report": str(self.report),
        }


def validate(
    path: Path, allow_failing: bool, watch: Watcher, to: Device | None = None, emulate: bool = False
) -> Validation:
    """Run the bundle in a process of its own, here or on the device `to`; judge it, seal it if it passed.

    `allow_failing` seals it anyway, marked as not deployable. `emulate` runs a TensorRT bundle by ONNX
    Runtime: its gates on latency and memory are then skipped, so that it cannot pass.
    Raises BundleError, DeviceError and what the runner raises.
    """
    watch.begin("Open bundle")
    opened = bundle.open_bundle(path)
    directory = path.with_suffix(".evidence")
    if to is None:
        watch.begin("Evidence", len(opened.items))
        # A process of its own: what is measured is the runner, not the compiler.
        command = [sys.executable, "-m", "edgevlm_runner", str(path), "--out", str(directory)]
        device.follow([*command, *(["--emulate"] if emulate else [])], watch)
    else:
        device.gather(to, opened, directory, watch)
    watch.begin("Verdict")
    judged = judge(opened, path, directory)
    sealed = judged.verdict.deployable or allow_failing
    if sealed:
        outcome = "passed" if judged.verdict.deployable else judged.verdict.outcome.value
        statement = _passed(judged.evidence) if judged.verdict.deployable else NOT_DEPLOYABLE
        bundle.seal(path, directory, outcome, judged.verdict.deployable, statement)
        opened = bundle.open_bundle(path)
    report = path.with_suffix(".html")
    write_report(opened, directory, report)
    return Validation(path, judged.verdict, judged.metrics, judged.evidence, directory, report, sealed)


def _passed(evidence: Mapping[str, Any]) -> str:
    """What the seal says: on which machine, with which runtime."""
    machine, runtime = evidence["machine"], evidence["runtime"]
    return f"All gates passed on {machine['cpu']} ({machine['platform']}) with {runtime['name']}."


@dataclass(frozen=True)
class Judged:
    verdict: Verdict
    metrics: Metrics
    evidence: dict[str, Any]


def judge(opened: Bundle, path: Path, directory: Path) -> Judged:
    """Judge the evidence in `directory`, which may come from another machine, and write
    `metrics.json` and `verdict.json` beside it; of a dual encoder `dual_metrics.json` too, from all scores.

    Raises BundleError when the evidence is not this bundle's.
    """
    evidence = read_evidence(directory, opened.digest)
    recipe = bundle.recipe(opened)
    answers = read_jsonl(directory / "answers.jsonl", Answer)
    reference = read_jsonl(opened.path("reference.jsonl"), Answer)
    measured = metrics.compute(opened.items, reference, answers, recipe.evaluation, opened.certainty)
    measurements = {"bundle_bytes": size(path), **_measured(opened, evidence, answers)}
    gates = [Gate.model_validate(one) for one in json.loads(opened.path("gates.json").read_text())]
    floor = Estimate.model_validate(opened.manifest["reference"]["noise_floor"])
    if isinstance(opened.model, DualEncoderSpec):
        found = _dual(opened, reference, answers, recipe.evaluation, measured, directory)
        write_text_atomic(directory / DUAL_METRICS, found.model_dump_json(indent=1) + "\n")
        measured = dual.merged(measured, found)
    decided = verdict.judge(
        gates, measured, measurements, noise_floor=floor, emulated=bool(evidence["emulated"])
    )
    write_text_atomic(directory / "metrics.json", measured.model_dump_json(indent=1) + "\n")
    write_text_atomic(directory / "verdict.json", decided.model_dump_json(indent=1) + "\n")
    return Judged(decided, measured, evidence)


def _dual(
    opened: Bundle,
    reference: Sequence[Answer],
    answers: Sequence[Answer],
    evaluation: Evaluation,
    measured: Metrics,
    directory: Path,
) -> DualMetrics:
    """What the scores of all classes tell beside the answers, and the embeddings, where they were kept."""
    spec, items = opened.model, opened.items
    assert isinstance(spec, DualEncoderSpec)
    scores = scored.of(spec, items, reference, answers)
    found = dual.compute(scores, evaluation, measured, opened.certainty)
    kept: list[Features | None] = [None, None]
    if spec.feature_items:
        files = (opened.path(REFERENCE_FEATURES), directory / FEATURES)
        kept = [features.read(file, items, spec) for file in files]
    return dual.added(found, spec, items, kept[0], kept[1], evaluation.confidence_level)


def _measured(opened: Bundle, evidence: dict[str, Any], answers: Sequence[Answer]) -> dict[str, Any]:
    """Latency and memory of the device; without one, why there are none."""
    if not evidence["emulated"]:
        # On a Jetson both lie in the same chips, and on a card of its own the model would not fit without.
        peak = evidence["peak_rss_bytes"] + evidence.get("device_bytes", 0)
        return {**evidence["latency"], "peak_rss_bytes": peak}
    tokens = sum(len(answer.token_ids) for answer in answers) / max(len(answers), 1)
    target = _read(Target, opened.path("target.json"))
    return {"reasons": roofline.reasons(opened.manifest, opened.model.graphs, target, tokens)}


def report_of(path: Path, out: Path | None) -> Path:
    """Write the report of a bundle that was validated before, from its seal or from beside it."""
    opened = bundle.open_bundle(path)
    directory = bundle.evidence_of(opened, path)
    report = out or path.with_suffix(".html")
    write_report(opened, directory, report)
    return report


def write_report(opened: Bundle, directory: Path, out: Path) -> None:
    from edgevlm_deploy.report import html

    html.render(
        opened,
        read_evidence(directory, opened.digest),
        read_jsonl(directory / "answers.jsonl", Answer),
        _read(Metrics, directory / "metrics.json"),
        _read(Verdict, directory / "verdict.json"),
        out,
        _read(DualMetrics, directory / DUAL_METRICS) if (directory / DUAL_METRICS).is_file() else None,
    )


def size(path: Path) -> int:
    """Bytes of a zip, or of the files of a folder."""
    if path.is_file():
        return path.stat().st_size
    return sum(one.stat().st_size for one in path.rglob("*") if one.is_file())


def _read(cls: Any, path: Path) -> Any:
    """A frozen object from a JSON file. Raises BundleError when it is not one."""
    assert issubclass(cls, Frozen)
    try:
        return cls.model_validate_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BundleError(f"{path}: not a readable {cls.__name__} ({error}).") from error
