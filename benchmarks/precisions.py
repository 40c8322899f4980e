"""Every metric at every precision: `python -m benchmarks.precisions`.

The demo is compiled once per precision with otherwise the same recipe, answered by the runner and judged.
One column a precision, one row a metric: what each rounding costs, and which metric sees it. Every second
scene is crowded, so that the model has something to get wrong on clean pictures.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from benchmarks import conditions, page, side_by_side
from benchmarks.process import run, say
from benchmarks.rounds import REPOSITORY
from edgevlm_deploy import __version__, resources
from edgevlm_deploy.artifacts import stage
from edgevlm_deploy.demo import dataset
from edgevlm_deploy.demo.scenes import Split
from edgevlm_deploy.metrics.tables import Metrics
from edgevlm_deploy.report.quantity import Unit, quantity

BUILD = REPOSITORY / "build" / "benchmarks" / "precisions"
Settings = dict[str, Any]

QUESTIONS_PER_PICTURE = 4
CALIBRATION_PICTURES = 500
"""What calibrates, and what the Selector and the temperature are learnt on."""

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

    @property
    def outcomes(self) -> dict[str, str]:
        """Gate → outcome, and the verdict."""
        gates = {gate["metric"]: gate["outcome"] for gate in self.verdict["gates"]}
        return {**gates, "verdict": self.verdict["outcome"]}


def arguments(given: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.precisions", description=__doc__)
    parser.add_argument("--recipe", type=Path, default=REPOSITORY / "benchmarks" / "precisions.yaml")
    parser.add_argument("--precisions", nargs="+", choices=list(PRECISIONS), default=list(PRECISIONS))
    parser.add_argument("--reuse", action="store_true", help="keep what an earlier run judged")
    parser.add_argument("--markdown", type=Path, help="write the tables, e.g. to docs/precisions-results.md")
    return parser.parse_args(given)


def scenes(recipe: Path) -> Path:
    """Folder with evaluation.jsonl, as many questions as the recipe asks, and calibration.jsonl."""
    asked = resources.recipe(str(recipe)).evaluation
    repainted, pictures = (
        -(-n // QUESTIONS_PER_PICTURE) for n in (asked.background_items, asked.clean_items)
    )

    def render(folder: Path) -> None:
        dataset.samples(Split.EVALUATION, pictures, QUESTIONS_PER_PICTURE, folder, repainted, crowds=True)
        dataset.samples(Split.CALIBRATION, CALIBRATION_PICTURES, QUESTIONS_PER_PICTURE, folder, crowds=True)

    sizes = {"evaluation": pictures, "repainted": repainted, "calibration": CALIBRATION_PICTURES}
    return stage(BUILD / "stages", "crowded-scenes", {**sizes, "version": __version__}, render)


def judge(precision: str, recipe: Path, data: Path, reuse: bool) -> Judged:
    """Compile, answer and judge the demo with the recipe's evidence and gates at this precision."""
    name = precision.lower().replace(" ", "-")
    bundle = BUILD / f"demo-host-cpu-{name}.edgevlm"
    evidence = bundle.with_suffix(".evidence")
    if not (reuse and (evidence / "verdict.json").is_file()):
        say(precision)
        written = BUILD / f"{name}.yaml"
        settings = {**yaml.safe_load(recipe.read_text()), **PRECISIONS[precision], "name": name}
        written.write_text(yaml.safe_dump(settings, sort_keys=False))
        order = ["compile", "demo", "--target", "host-cpu", "--recipe", str(written), "--out", str(BUILD)]
        order += ["--data", str(data / "evaluation.jsonl")]
        order += ["--calibration", str(data / "calibration.jsonl"), "--json"]
        # 0, 3 and 4 are verdicts.
        run("-m", "edgevlm_deploy.cli", *order, accepted=(0, 3, 4))
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


def sizes(judged: Sequence[Judged]) -> page.Table:
    row = ("graphs", *(quantity(one.graph_bytes, Unit.BYTES) for one in judged))
    return page.Table("Size", ("", *(one.precision for one in judged)), (row,), words=1)


def main() -> None:
    given = arguments()
    data = scenes(given.recipe)
    judged = [judge(one, given.recipe, data, given.reuse) for one in given.precisions]
    recipe, first = resources.recipe(str(given.recipe)), judged[0].metrics
    said = [
        "Written by `python -m benchmarks.precisions --markdown docs/precisions-results.md`. "
        "[How to read it](precisions.md).",
        "The demo model; vision encoder W8A8 and embedding and head int8 in every column but FP16, the "
        "decoder as the column says. Every second scene is crowded, which the demo never learnt. "
        f"{first.clean_items:,} clean, {first.corrupted_items:,} corrupted and {first.perturbed_items:,} "
        f"perturbed items on {first.images:,} pictures; {first.level:.0%} intervals. Answers by ONNX Runtime "
        f"on this machine. Gates and suites: `benchmarks/precisions.yaml` ({len(recipe.gates)} gates).",
        "Bold: the interval of the paired change against the FP16 reference leaves out no change (for the "
        "Selector: against MaxProb). With an accuracy, the change is that of the same items. Intervals are "
        "not adjusted for their number.",
        page.machine(conditions.machine()),
    ]
    found = [
        side_by_side.gates({one.precision: one.outcomes for one in judged}),
        *side_by_side.tables({one.precision: one.metrics for one in judged}),
        sizes(judged),
    ]
    text = page.document("Every metric at every precision", said, found)
    print(text)
    if given.markdown:
        given.markdown.write_text(text)


if __name__ == "__main__":
    main()
