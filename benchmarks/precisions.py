"""Every metric at every precision: `python -m benchmarks.precisions`.

A demo model is compiled once per precision with otherwise the same recipe, answered by the runner and judged.
One column a precision, one row a metric: what each rounding costs, and which metric sees it. Every second
scene of the VLM is crowded, so that it has something to get wrong on clean pictures.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from benchmarks import conditions, embeddings, page, side_by_side
from benchmarks.process import run, say
from benchmarks.rounds import REPOSITORY
from edgevlm_deploy import __version__, plan, resources, source
from edgevlm_deploy.artifacts import stage
from edgevlm_deploy.demo import dataset
from edgevlm_deploy.demo.scenes import Split
from edgevlm_deploy.errors import PlanError
from edgevlm_deploy.metrics.tables import Metrics
from edgevlm_deploy.pipeline.job import DEMO, DEMOS
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


def encoders(scheme: str, algorithm: str = "rtn") -> Settings:
    """Both encoders of a dual encoder; what joins them, and its embedding, stays int8."""
    one = {"scheme": scheme, "algorithm": algorithm}
    return {"components": {"vision_encoder": one, "text_encoder": one, "projector": INT8, "embedding": INT8}}


CLIP_PRECISIONS: Mapping[str, Settings] = {
    "FP16": {"components": {}},
    "W8A8": encoders("w8a8"),
    "W4 RTN": encoders("w4a16_g64"),
    "W4 AWQ": encoders("w4a16_g64", "awq"),
    "W4 GPTQ": encoders("w4a16_g64", "gptq"),
    "W4 HQQ": encoders("w4a16_g64", "hqq"),
    "W4 MBQ": encoders("w4a16_g64", "mbq"),
    "W3 RTN": encoders("w3a16_channel"),
}


@dataclass(frozen=True)
class Subject:
    """A demo model: its precisions, the recipe that they are filled into, the page that shows them and the
    page that says what they mean.
    """

    precisions: Mapping[str, Settings]
    recipe: Path
    page: str
    reading: str
    said: str


SUBJECTS: Mapping[str, Subject] = {
    "demo": Subject(
        PRECISIONS,
        REPOSITORY / "benchmarks" / "precisions.yaml",
        "docs/precisions-results.md",
        "precisions.md",
        "The demo model; vision encoder W8A8 and embedding and head int8 in every column but FP16, the "
        "decoder as the column says. Every second scene is crowded, which the demo never learnt.",
    ),
    "demo-clip": Subject(
        CLIP_PRECISIONS,
        REPOSITORY / "benchmarks" / "precisions_clip.yaml",
        "docs/precisions-clip-results.md",
        "dual-encoder-metrics.md#what-rounding-moves",
        "The demo CLIP; both encoders as the column says (W4: groups of 64, W3: per channel), projections "
        "and embedding int8 in every column but FP16. Each object stands on its usual ground and on another. "
        "It abstains by MaxProb.",
    ),
}


@dataclass(frozen=True)
class Judged:
    """One precision's evidence."""

    precision: str
    bundle: Path
    metrics: Metrics
    verdict: Mapping[str, Any]
    graph_bytes: int

    @property
    def outcomes(self) -> dict[str, str]:
        """Gate on answers → outcome, and the verdict on these: what else runs here decides about latency."""
        gates = {gate["metric"]: gate["outcome"] for gate in self.verdict["gates"]}
        found = {name: outcome for name, outcome in gates.items() if name not in side_by_side.TIMED}
        worst = next((one for one in ("fail", "inconclusive") if one in found.values()), "pass")
        return {**found, "verdict": worst}


def arguments(given: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.precisions", description=__doc__)
    parser.add_argument("--model", choices=list(SUBJECTS), default="demo")
    parser.add_argument("--recipe", type=Path, help="instead of the model's own in benchmarks/")
    parser.add_argument("--precisions", nargs="+", help="some of the columns")
    parser.add_argument("--reuse", action="store_true", help="keep what an earlier run judged")
    parser.add_argument("--markdown", type=Path, help="write the tables, e.g. to docs/precisions-results.md")
    found = parser.parse_args(given)
    columns = SUBJECTS[found.model].precisions
    found.recipe = found.recipe or SUBJECTS[found.model].recipe
    found.precisions = found.precisions or list(columns)
    unknown = [one for one in found.precisions if one not in columns]
    if unknown:
        parser.error(f"{unknown[0]!r} is no column of {found.model}; it has {', '.join(columns)}")
    return found


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


def written(model: str, precision: str, recipe: Path) -> Path:
    """The recipe with the column's precision filled in."""
    name = precision.lower().replace(" ", "-")
    settings = {**yaml.safe_load(recipe.read_text()), **SUBJECTS[model].precisions[precision], "name": name}
    path = BUILD / f"{name}.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(settings, sort_keys=False))
    return path


def refusal(model: str, recipe: Path) -> str:
    """Why the plan refuses the recipe, "" when it does not."""
    modules = source.inspect(DEMOS[model]).modules
    try:
        plan.resolve(resources.recipe(str(recipe)), resources.target("host-cpu"), modules)
    except PlanError as error:
        return str(error).splitlines()[-1].strip()
    return ""


def judge(model: str, precision: str, recipe: Path, options: Sequence[str], reuse: bool) -> Judged:
    """Compile, answer and judge the model with the recipe's evidence and gates. options: its data."""
    bundle = BUILD / f"{model}-host-cpu-{recipe.stem}.edgevlm"
    evidence = bundle.with_suffix(".evidence")
    if not (reuse and (evidence / "verdict.json").is_file()):
        say(precision)
        order = ["compile", model, "--target", "host-cpu", "--recipe", str(recipe), "--out", str(BUILD)]
        # 0, 3 and 4 are verdicts.
        run("-m", "edgevlm_deploy.cli", *order, *options, "--json", accepted=(0, 3, 4))
    return Judged(
        precision=precision,
        bundle=bundle,
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
    subject, options = SUBJECTS[given.model], []
    if given.model == DEMO:
        data = scenes(given.recipe)
        options += ["--data", str(data / "evaluation.jsonl")]
        options += ["--calibration", str(data / "calibration.jsonl")]
    judged, refused = [], {}
    for precision in given.precisions:
        recipe = written(given.model, precision, given.recipe)
        refused[precision] = refusal(given.model, recipe)
        if not refused[precision]:
            judged.append(judge(given.model, precision, recipe, options, given.reuse))
    gates, first = resources.recipe(str(given.recipe)).gates, judged[0].metrics
    said = [
        f"Written by `python -m benchmarks.precisions --model {given.model} --markdown {subject.page}`. "
        f"[How to read it]({subject.reading}).",
        f"{subject.said} "
        f"{first.clean_items:,} clean, {first.corrupted_items:,} corrupted and {first.perturbed_items:,} "
        f"perturbed items on {first.images:,} pictures; {first.level:.0%} intervals. Answers by ONNX Runtime "
        f"on this machine. Gates and suites: `benchmarks/{given.recipe.name}` ({len(gates)} gates).",
        "Bold: the interval of the paired change against the FP16 reference leaves out no change (for the "
        "Selector: against MaxProb). With an accuracy, the change is that of the same items. Intervals are "
        "not adjusted for their number.",
        *(f"{precision} is refused: {why}" for precision, why in refused.items() if why),
        page.machine(conditions.machine()),
    ]
    outcomes = {one.precision: one.outcomes for one in judged}
    found = [
        side_by_side.gates({one: outcomes.get(one, {"verdict": "refused"}) for one in given.precisions}),
        *side_by_side.tables({one.precision: one.metrics for one in judged}),
    ]
    if given.model != DEMO:
        found += embeddings.tables({one.precision: one.bundle for one in judged})
    text = page.document("Every metric at every precision", said, [*found, sizes(judged)])
    print(text)
    if given.markdown:
        given.markdown.write_text(text)


if __name__ == "__main__":
    main()
