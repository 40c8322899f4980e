"""The report: one HTML page that needs no network and runs no script but its own."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgevlm_runner.bundle import Bundle
from edgevlm_runner.contract import DUAL_ENCODER, Answer, read_jsonl
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from edgevlm_deploy.artifacts import write_text_atomic
from edgevlm_deploy.errors import DataError
from edgevlm_deploy.metrics.abstention import GATED_RISK
from edgevlm_deploy.metrics.dual.tables import DualMetrics
from edgevlm_deploy.metrics.estimates import undefined
from edgevlm_deploy.metrics.statistics import Estimate
from edgevlm_deploy.metrics.tables import Metrics
from edgevlm_deploy.recipe import GateName
from edgevlm_deploy.report import charts, gallery, heat_map, inventory, outcome
from edgevlm_deploy.report.names import CATEGORIES, EMPTY, MEANINGS, REPORT, WORDS
from edgevlm_deploy.report.quantity import (
    TITLES,
    UNITS,
    Unit,
    estimated,
    interval,
    items,
    limit,
    measured,
    quantity,
)
from edgevlm_deploy.verdict import Verdict

_HERE = Path(__file__).parent
HEADLINES = (
    ("Accuracy, clean", "reference_accuracy", "accuracy", Unit.SHARE),
    ("Accuracy, corrupted", "reference_corrupted_accuracy", "corrupted_accuracy", Unit.SHARE),
    ("Relative robustness", "reference_relative_robustness", "relative_robustness", Unit.RATIO),
    ("Calibration error (ECE)", "reference_ece", "ece", Unit.SHARE),
    ("Brier score", "reference_brier", "brier", Unit.RATIO),
    ("Mean confidence", "reference_mean_confidence", "mean_confidence", Unit.SHARE),
)
"""(title, metric of the reference, metric of the artifact, unit)."""

CHANGES = (
    ("Accuracy drop", "accuracy_drop", Unit.POINTS),
    ("Diverging answers", "divergence_rate", Unit.SHARE),
    ("Right → wrong", "negative_flip_rate", Unit.SHARE),
    ("Wrong → right", "positive_flip_rate", Unit.SHARE),
    ("Diverging answers, corrupted", "corrupted_divergence_rate", Unit.SHARE),
    ("Right → wrong, corrupted", "corrupted_negative_flip_rate", Unit.SHARE),
    ("Diverging answers, perturbed", "perturbed_divergence_rate", Unit.SHARE),
    ("Robustness gap", "robustness_gap", Unit.POINTS),
    ("Mean corruption error (reference = 1)", "mce", Unit.RATIO),
)

DURATIONS = (
    ("Vision encoder", "vision_ms", None),
    ("Time to first token", "time_to_first_token_ms", GateName.TIME_TO_FIRST_TOKEN_MS_P95),
    ("Each further token", "per_token_ms", None),
    ("Whole answer", "latency_ms", GateName.LATENCY_MS_P95),
    ("Preprocessing", "preprocess_ms", None),
)
"""(title, key in evidence["latency"], gate on its 95th percentile)."""


def render(
    bundle: Bundle,
    evidence: Mapping[str, Any],
    answers: Sequence[Answer],
    metrics: Metrics,
    verdict: Verdict,
    out: Path,
    dual: DualMetrics | None = None,
) -> None:
    """Write the page to `out`.

    Raises DataError when the evidence is of another bundle, BundleError when the bundle's recipe cannot
    be read, ImageError when a picture cannot, StorageError when `out` cannot be written.
    """
    if evidence["bundle"] != bundle.digest:
        raise DataError(
            f"the evidence was gathered on bundle {evidence['bundle']}, this one is {bundle.digest}; "
            "validate this bundle first."
        )
    reference = read_jsonl(bundle.path("reference.jsonl"), Answer)
    style, script = inline("style.css"), inline("page.js")
    page = (
        environment()
        .get_template("page.html.j2")
        .render(
            style=style,
            script=script,
            policy=content_policy(style, script),
            bundle=bundle,
            manifest=bundle.manifest,
            evidence=evidence,
            metrics=metrics,
            verdict=verdict,
            headline=outcome.headline(verdict),
            why=outcome.why(verdict),
            remarks=outcome.remarks(evidence),
            headlines=[row for row in HEADLINES if metrics.estimates[row[2]].value is not None],
            changes=[row for row in CHANGES if metrics.estimates[row[1]].value is not None],
            noise_floor=Estimate.model_validate(bundle.manifest["reference"]["noise_floor"]),
            heat=heat_map.build(metrics),
            names=REPORT,
            words=WORDS[bundle.model.kind],
            class_scores=_class_scores(dual),
            bands=dual.spectral.bands if dual and dual.spectral else (),
            group_bars=charts.interval_bars([row.comparison.accuracy_drop for row in metrics.groups]),
            probed=bool(
                metrics.negation or metrics.blind or metrics.background_items or metrics.foreign_items
            ),
            probe_bars=charts.interval_bars(_probe_drops(metrics)),
            reliability=_reliability(metrics),
            risk_curves=_risk_curves(metrics),
            abstaining=outcome.abstaining(metrics),
            selector=metrics.selector[-1] if metrics.selector else None,
            selector_curves=_selector_curves(metrics),
            durations=_durations(evidence, verdict, bundle.model.kind),
            sizes=inventory.sizes(bundle),
            precision=inventory.precision(bundle),
            facts={
                name: inventory.facts(bundle.manifest.get(name, {}))
                for name in (
                    "verification",
                    "quantization",
                    "calibration",
                    "reference",
                    "source",
                    "certainty",
                )
            },
            machine=inventory.facts({**evidence["machine"], **_board(evidence)}),
            packages=inventory.facts({**bundle.manifest["packages"], **evidence["runtime"]["versions"]}),
            gallery=gallery.build(bundle, reference, answers, metrics),
        )
    )
    write_text_atomic(out, page)


def _class_scores(dual: DualMetrics | None) -> list[tuple[str, Estimate, Estimate, Estimate]]:
    """(metric, reference, artifact, change for the worse) of what a dual encoder's scores give."""
    found = dual.estimates if dual else {}
    rows = []
    for name, one in found.items():
        before = found.get(f"reference_{name}")
        change = found.get(f"{name}_drop") or found.get(f"{name}_increase") or undefined("")
        if before is not None and one.value is not None:
            rows.append((name.replace("_", " "), before, one, change))
    return rows


def _board(evidence: Mapping[str, Any]) -> dict[str, Any]:
    """What was read from the board, without what it did not tell."""
    board = evidence.get("board") or {}
    return (
        {"board": {name: value for name, value in board.items() if value not in (None, [])}} if board else {}
    )


def environment() -> Environment:
    """Escapes everything; a name that is missing is an error."""
    environment = Environment(
        loader=FileSystemLoader(_HERE),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "quantity": quantity,
        "estimate": estimated,
        "commas": "{:,}".format,
        "items": items,
    }
    environment.globals |= {
        "Unit": Unit,
        "TITLES": TITLES,
        "UNITS": UNITS,
        "interval": interval,
        "limit": limit,
        "measured": measured,
        "gate_bar": charts.gate_bar,
        "DIRECTIONS": gallery.DIRECTIONS,
        "STAYED_WRONG": gallery.STAYED_WRONG,
        "CATEGORIES": CATEGORIES,
        "MEANINGS": MEANINGS,
        "EMPTY": EMPTY,
        "BAR": charts.BAR_WIDTH,
        "HISTOGRAM": (charts.HISTOGRAM_WIDTH, charts.HISTOGRAM_HEIGHT),
        "SIDE": charts.RELIABILITY_SIDE,
        "COUNTS": charts.COUNTS_HEIGHT,
    }
    return environment


def inline(name: str) -> Markup:
    """Our own file as it is: nothing in it comes from a bundle."""
    return Markup((_HERE / name).read_text(encoding="utf-8"))


def content_policy(style: str, script: str) -> str:
    """Content security policy: nothing is loaded, and only the page's own style and script count."""
    return (
        f"default-src 'none'; img-src data:; style-src {_hash(style)}; script-src {_hash(script)}; "
        "base-uri 'none'; form-action 'none'"
    )


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode('ascii')}'"


def _probe_drops(metrics: Metrics) -> list[Estimate]:
    """One a form, and last their mean; nothing in metrics without probes."""
    drops = [row.comparison.accuracy_drop for row in metrics.negation]
    return [*drops, metrics.estimates["negation_success_drop"]] if drops else []


def _reliability(metrics: Metrics) -> dict[str, tuple[charts.ReliabilityPoint, ...]]:
    most = max(one.n for bins in metrics.reliability.values() for one in bins)
    return {
        whose: charts.reliability(metrics.reliability[whose], most, series)
        for series, whose in enumerate(("reference", "artifact"))
    }


def _risk_curves(metrics: Metrics) -> charts.RiskCurves | None:
    """None in metrics from before there was selective prediction."""
    curves = {whose: one.curve for whose, one in metrics.selective.items()}
    return charts.risk_curves(curves, GATED_RISK) if curves else None


def _selector_curves(metrics: Metrics) -> charts.RiskCurves | None:
    """MaxProb in the reference's colour, the Selector in the artifact's; None without a Selector."""
    if not metrics.selector:
        return None
    one = metrics.selector[-1]
    return charts.risk_curves({"reference": one.max_prob.curve, "artifact": one.selector.curve}, GATED_RISK)


@dataclass(frozen=True)
class Duration:
    title: str
    n: int
    p50: float
    p95: float
    longest: float
    limit: float | None
    histogram: charts.Histogram


def _durations(evidence: Mapping[str, Any], verdict: Verdict, kind: str) -> list[Duration]:
    limits = {gate.metric: gate.max for gate in verdict.gates if gate.max is not None}
    rows = []
    # A classifier's first token is its whole answer.
    wanted = [row for row in DURATIONS if kind != DUAL_ENCODER or row[1] != "time_to_first_token_ms"]
    for title, key, gate in wanted:
        samples = [float(one) for one in evidence["latency"].get(key, ())]
        if samples:
            bound = limits.get(gate) if gate else None
            rows.append(
                Duration(
                    title=title,
                    n=len(samples),
                    p50=charts.percentile(samples, 0.5),
                    p95=charts.percentile(samples, 0.95),
                    longest=max(samples),
                    limit=bound,
                    histogram=charts.histogram(samples, bound),
                )
            )
    return rows
