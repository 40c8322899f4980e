"""Every Jetson target without a Jetson: `python -m benchmarks.jetson`.

The demo is compiled for each, answered by ONNX Runtime in TensorRT's place and judged; SmolVLM-256M's shape
(random weights) is compiled, linted and verified. Nothing is timed on a board: what the memory bandwidth
allows is a bound, no measurement.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from benchmarks import compilation, conditions, page
from benchmarks.process import run, say
from benchmarks.rounds import REPOSITORY
from edgevlm_deploy import resources, roofline
from edgevlm_deploy.target import Backend, Target

BUILD = REPOSITORY / "build" / "benchmarks" / "jetson"
MEGABYTE = 1e6


def arguments(given: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.jetson", description=__doc__)
    parser.add_argument("--only", choices=("demo", "shape"), help="one of the two models")
    parser.add_argument("--targets", nargs="+", default=[one.name for one in targets()])
    parser.add_argument("--reuse", action="store_true", help="keep what an earlier run compiled")
    parser.add_argument("--markdown", type=Path, help="write the tables, e.g. to docs/jetson-results.md")
    return parser.parse_args(given)


def targets() -> list[Target]:
    found = (resources.target(name) for name in resources.names("targets"))
    return [one for one in found if one.backend is Backend.TENSORRT]


def demo(wanted: list[Target], reuse: bool) -> page.Table:
    """One row a target: what was verified, and the emulated verdict."""
    columns = (
        "target",
        "TensorRT",
        "recipe",
        "logits vs torch",
        "tokens equal",
        "integers read back",
        "accuracy drop",
        "DR",
        "corrupted DR",
        "gates",
    )
    rows = [_demo_row(target, reuse) for target in wanted]
    return page.Table("Demo model, answered by ONNX Runtime in TensorRT's place", columns, tuple(rows))


def _demo_row(target: Target, reuse: bool) -> tuple[str, ...]:
    bundle = BUILD / "demo" / f"demo-{target.name}.edgevlm"
    if not (reuse and bundle.with_suffix(".evidence").is_dir()):
        say(f"demo for {target.name}")
        order = ["compile", "demo", "--target", target.name, "--out", str(bundle.parent), "--json"]
        # 0, 3 and 4 are verdicts; without a board 4 is the best there is.
        run("-m", "edgevlm_deploy.cli", *order, accepted=(0, 3, 4))
    evidence = bundle.with_suffix(".evidence")
    verdict = json.loads((evidence / "verdict.json").read_text())
    estimates = json.loads((evidence / "metrics.json").read_text())["estimates"]
    checked = inspected(bundle)["verification"]
    outcomes = [gate["outcome"] for gate in verdict["gates"]]
    counts = {one: outcomes.count(one) for one in ("pass", "fail", "inconclusive", "skipped")}
    return (
        target.name,
        target.software["tensorrt"],
        target.recipe,
        f"{checked['logits_difference']:.0e}",
        f"{checked['tokens']:,}",
        f"{checked['exact_integers']:,}",
        f"{100 * estimates['accuracy_drop']['value']:.2f} pp",
        f"{100 * estimates['divergence_rate']['value']:.2f} %",
        f"{100 * estimates['corrupted_divergence_rate']['value']:.2f} %",
        ", ".join(f"{count} {name}" for name, count in counts.items() if count),
    )


def inspected(bundle: Path) -> dict[str, Any]:
    """The bundle's manifest."""
    from edgevlm_runner.bundle import open_bundle

    return dict(open_bundle(bundle).manifest)


def shape(wanted: list[Target], reuse: bool) -> page.Table:
    """One row a target: SmolVLM-256M's shape, compiled and verified."""
    columns = (
        "target",
        "recipe",
        "seconds",
        "graphs MB",
        "logits vs torch",
        "tokens equal",
        "integers read back",
        "memory estimate MB",
        "MB/token",
        "tokens/s at most",
    )
    BUILD.mkdir(parents=True, exist_ok=True)
    if not (reuse and (BUILD / compilation.CHECKPOINT).is_dir()):
        say("writing a checkpoint of random weights")
        run("-c", "import sys; from benchmarks.shape import main; main(*sys.argv[1:])", str(BUILD))
    rows = [_shape_row(target, reuse) for target in wanted]
    return page.Table("SmolVLM-256M's shape", columns, tuple(rows))


def _shape_row(target: Target, reuse: bool) -> tuple[str, ...]:
    written = BUILD / compilation.folder(target.recipe, target.name) / "compiled.json"
    if not (reuse and written.is_file()):
        say(f"SmolVLM-256M for {target.name}")
        run("-m", "benchmarks.compilation", str(BUILD), target.recipe, "2", target.name)
    made = json.loads(written.read_text())
    checked = made["verification"]
    assert target.memory_bandwidth_gb_s is not None
    token_ms = roofline.first_token_ms(0, made["weight_bytes_per_token"], target.memory_bandwidth_gb_s)
    return (
        target.name,
        target.recipe,
        f"{made['quantize_seconds'] + made['export_seconds']:.0f}",
        f"{made['graph_bytes'] / MEGABYTE:,.0f}",
        f"{checked['logits_difference']:.0e}",
        f"{checked['tokens']:,}",
        f"{checked['exact_integers']:,}",
        f"{checked['estimated_memory_bytes'] / MEGABYTE:,.0f}",
        f"{made['weight_bytes_per_token'] / MEGABYTE:.0f}",
        f"{1000 / token_ms:,.0f}",
    )


def main() -> None:
    given = arguments()
    wanted = [resources.target(name) for name in given.targets]
    made = []
    if given.only != "shape":
        made.append(demo(wanted, given.reuse))
    if given.only != "demo":
        made.append(shape(wanted, given.reuse))
    said = [
        "Written by `python -m benchmarks.jetson --markdown docs/jetson-results.md`. **No Jetson and "
        "no TensorRT took part**: graphs are linted by the rules of the target's TensorRT, read back "
        "integer by integer, and computed by ONNX Runtime. *Logits vs torch*: largest difference to "
        "the fake-quantised torch model, fp16 widened to fp32. *Tokens equal*: greedy tokens "
        "compared, all equal. *Tokens/s at most*: the target's memory bandwidth over the weights that "
        "one token reads; a bound, not a measurement. DR: divergence rate. Skipped gates are latency "
        "and memory.",
        page.machine(conditions.machine()),
    ]
    text = page.document("Every Jetson target, without a Jetson", said, made)
    print(text)
    if given.markdown:
        given.markdown.write_text(text)


if __name__ == "__main__":
    main()
