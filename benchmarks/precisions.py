"""Every metric at every precision: `python -m benchmarks.precisions`.

A demo model is compiled once per precision with otherwise the same recipe, answered by the runner and judged.
One column a precision, one row a metric: what each rounding costs, and which metric sees it.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from benchmarks import conditions, page
from benchmarks.process import run, say
from benchmarks.rounds import REPOSITORY
from edgevlm_deploy import resources
from edgevlm_deploy.metrics.tables import Metrics
from edgevlm_deploy.recipe import GateName
from edgevlm_deploy.report.quantity import UNITS, Unit, estimated, quantity

BUILD = REPOSITORY / "build" / "benchmarks" / "precisions"
Settings = dict[str, Any]

INT8 = {"scheme": "w8a16"}
STATIC = {"scheme": "w8a8"}


def decoder(scheme: str, algorithm: str = "rtn") -> Settings:
    """Int8 everywhere but in the decoder, so that a column differs from the next in one thing."""
    return {
        "components": {
            "vision_encoder": STATIC,
            "projector": STATIC,
            "embedding": INT8,
            "decoder": {"scheme": scheme, "algorithm": algorithm},
            "head": INT8,
        }
    }


PRECISIONS: Mapping[str, Settings] = {
    "FP16": {"components": {}},
    "W8A8": {**decoder("w8a8"), "quantizer": "tensorrt"},
    "W4 RTN": decoder("w4a16_g64"),
    "W4 AWQ": decoder("w4a16_g64", "awq"),
    "W4 GPTQ": decoder("w4a16_g64", "gptq"),
    "W4 HQQ": decoder("w4a16_g64", "hqq"),
    "W4 MBQ": decoder("w4a16_g64", "mbq"),
    "W3 RTN": decoder("w3a16_channel"),
    "W3 GPTQ": decoder("w3a16_channel", "gptq"),
}


@dataclass(frozen=True)
class Judged:
    """One precision's evidence."""

    precision: str
    metrics: Metrics
    verdict: Mapping[str, Any]
    graph_bytes: int


def arguments(given: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.precisions", description=__doc__)
    parser.add_argument("--recipe", type=Path, default=REPOSITORY / "benchmarks" / "precisions.yaml")
    parser.add_argument("--precisions", nargs="+", choices=list(PRECISIONS), default=list(PRECISIONS))
    parser.add_argument("--reuse", action="store_true", help="keep what an earlier run judged")
    parser.add_argument("--markdown", type=Path, help="write the tables, e.g. to docs/precisions.md")
    return parser.parse_args(given)


def judge(precision: str, recipe: Path, reuse: bool) -> Judged:
    """Compile, answer and judge the demo with the recipe's evidence and gates at this precision."""
    name = precision.lower().replace(" ", "-")
    bundle = BUILD / f"demo-host-cpu-{name}.edgevlm"
    evidence = bundle.with_suffix(".evidence")
    if not (reuse and (evidence / "verdict.json").is_file()):
        say(precision)
        BUILD.mkdir(parents=True, exist_ok=True)
        written = BUILD / f"{name}.yaml"
        settings = {**yaml.safe_load(recipe.read_text()), **PRECISIONS[precision], "name": name}
        written.write_text(yaml.safe_dump(settings, sort_keys=False))
        order = ["compile", "demo", "--target", "host-cpu", "--recipe", str(written), "--out", str(BUILD)]
        # 0, 3 and 4 are verdicts.
        run("-m", "edgevlm_deploy.cli", *order, "--json", accepted=(0, 3, 4))
    return Judged(
        precision=precision,
        metrics=Metrics.model_validate_json((evidence / "metrics.json").read_text()),
        verdict=json.loads((evidence / "verdict.json").read_text()),
        graph_bytes=_graph_bytes(bundle),
    )


def _graph_bytes(bundle: Path) -> int:
    from edgevlm_runner.bundle import open_bundle

    files = open_bundle(bundle).manifest["files"]
    return sum(one["bytes"] for name, one in files.items() if name.startswith("graphs/"))


def metrics_table(judged: Sequence[Judged]) -> page.Table:
    """One row a metric that has a value at some precision; intervals at the recipe's confidence level."""
    names = dict.fromkeys(name for one in judged for name in one.metrics.estimates)
    rows = [
        (name, *(estimated(one.metrics.estimates[name], _unit(name)) for one in judged))
        for name in names
        if any(one.metrics.estimates[name].value is not None for one in judged)
    ]
    rows += [
        (f"risk-coverage AUC × 100, {whose}", *(_auc(one.metrics, whose) for one in judged))
        for whose in ("artifact", "reference")
    ]
    rows.append(("graphs", *(quantity(one.graph_bytes, Unit.BYTES) for one in judged)))
    return page.Table("Metrics", ("metric", *(one.precision for one in judged)), tuple(rows))


def _unit(name: str) -> Unit:
    """Of a gate's metric where it is one; differences of shares in points, other shares in per cent."""
    gated = {gate.value: unit for gate, unit in UNITS.items()}
    if name in gated:
        return gated[name]
    plain = name.removeprefix("reference_")
    if plain in gated:
        return gated[plain]
    if any(word in name for word in ("mce", "brier", "relative", "auroc")):
        return Unit.RATIO
    return Unit.POINTS if any(word in name for word in ("drop", "gap", "increase")) else Unit.SHARE


def _auc(metrics: Metrics, whose: str) -> str:
    return f"{metrics.selective[whose].auc:.2f}" if whose in metrics.selective else "–"


def gates_table(judged: Sequence[Judged]) -> page.Table:
    """One row a gate: what it said at each precision. Latency and memory are left to other benchmarks."""
    timed = {
        GateName.LATENCY_MS_P95,
        GateName.TIME_TO_FIRST_TOKEN_MS_P95,
        GateName.PEAK_RSS_BYTES,
    }
    outcomes = [{gate["metric"]: gate["outcome"] for gate in one.verdict["gates"]} for one in judged]
    rows = [
        (name, *(found.get(name, "–") for found in outcomes))
        for name in outcomes[0]
        if GateName(name) not in timed
    ]
    rows.append(("**verdict**", *(str(one.verdict["outcome"]) for one in judged)))
    return page.Table("Gates", ("gate", *(one.precision for one in judged)), tuple(rows))


def main() -> None:
    given = arguments()
    judged = [judge(one, given.recipe, given.reuse) for one in given.precisions]
    recipe = resources.recipe(str(given.recipe))
    first = judged[0].metrics
    said = [
        "Written by `python -m benchmarks.precisions --markdown docs/precisions.md`. The demo model; vision "
        "encoder W8A8 and embedding and head int8 in every column but FP16, the decoder as the column says. "
        f"{first.clean_items:,} clean, {first.corrupted_items:,} corrupted and {first.perturbed_items:,} "
        f"perturbed items on {first.images:,} pictures; {first.level:.0%} intervals. Answers by ONNX Runtime "
        f"on this machine. Gates and suites: `benchmarks/precisions.yaml` ({len(recipe.gates)} gates).",
        page.machine(conditions.machine()),
    ]
    found = [gates_table(judged), metrics_table(judged)]
    text = page.document("Every metric at every precision", said, found)
    print(text)
    if given.markdown:
        given.markdown.write_text(text)


if __name__ == "__main__":
    main()
