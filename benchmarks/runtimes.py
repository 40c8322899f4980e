"""ONNX Runtime, LiteRT and PyTorch with the same recipes: `python -m benchmarks.runtimes`.

On the demo: every item answered, so accuracy, flips, size, time and memory. On SmolVLM-256M's shape (random
weights): size, time and memory beside PyTorch's, in turns as `python -m benchmarks` takes them.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import shlex
import shutil
import statistics
import sys
from pathlib import Path
from typing import Any

from benchmarks import compilation, conditions, page, summary
from benchmarks.process import run, say
from benchmarks.rounds import REPOSITORY, Engine, Heat, compete
from benchmarks.workload import OUTPUTS

BUILD = REPOSITORY / "build" / "benchmarks" / "runtimes"
RECIPES = {"fp32": "fp16 stored, fp32 computed", "int8": "w8", "default": "w4 decoder, w8 rest"}
BACKENDS = {"onnxruntime": "ONNX Runtime", "litert": "LiteRT"}
RATES = ("accuracy", "divergence_rate", "negative_flip_rate")
CLEAN_ITEMS, ITEMS_PER_CONDITION = 1200, 20


@dataclasses.dataclass(frozen=True)
class Answered:
    """All items of the demo by one runtime."""

    recipe: str
    runtime: str
    bytes: int | None
    """Graphs and tokenizer as they are shipped; None for PyTorch, which ships none."""
    metrics: dict[str, Any]
    evidence: dict[str, Any]


def arguments(given: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.runtimes", description=__doc__)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=3, help="turns of each engine on SmolVLM-256M's shape")
    parser.add_argument("--only", choices=("demo", "shape"), help="one of the two models")
    parser.add_argument("--recipes", nargs="+", choices=tuple(RECIPES), default=list(RECIPES))
    parser.add_argument("--reuse", action="store_true", help="keep graphs and answers of earlier runs")
    parser.add_argument("--markdown", type=Path, help="write the tables, e.g. to benchmarks/RUNTIMES.md")
    return parser.parse_args(given)


def demo(recipes: list[str], threads: int, reuse: bool) -> list[Answered]:
    """Compile the demo for both backends with the same threads, then let all three runtimes answer."""
    out = BUILD / "demo"
    if not reuse:
        shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True, exist_ok=True)
    found = []
    for recipe in recipes:
        written = _recipe(recipe, out)
        for backend, title in BACKENDS.items():
            target = _target(backend, threads, out)
            bundle = out / f"demo-{target.stem}-{written.stem}.edgevlm"
            table = out / f"{bundle.stem}.table"
            if not bundle.exists():
                say(f"demo: compiling {recipe} for {title}")
                before = set(out.glob("stages/quantized-*"))
                order = ["compile", "demo", "--target", str(target), "--recipe", str(written)]
                run("-m", "edgevlm_deploy.cli", *order, "--no-evidence", "--out", str(out))
                made = set(out.glob("stages/quantized-*")) - before
                table.write_text("".join(one.name for one in made))  # LiteRT may take ONNX Runtime's
            evidence = bundle.with_suffix(".evidence")
            if not (reuse and _is_answered(bundle, evidence)):
                say(f"demo: {title} answers, {recipe}")
                run("-m", "edgevlm_runner", str(bundle), "--out", str(evidence))
            found.append(_judged(recipe, title, bundle, evidence))
            if backend == "onnxruntime":
                torch = out / f"torch-{recipe}.evidence"
                if not (reuse and _is_answered(bundle, torch)):
                    say(f"demo: PyTorch answers, {recipe}")
                    quantized = out / "stages" / table.read_text()
                    order = [str(bundle), str(quantized), str(torch), str(threads)]
                    run("-m", "benchmarks.torch_evidence", *order)
                answered = _judged(recipe, "PyTorch", bundle, torch)
                found.append(dataclasses.replace(answered, bytes=None))
    return found


def _recipe(name: str, out: Path) -> Path:
    """The shipped recipe with fewer items; `fp32` has the items of int8 and nothing quantised."""
    import yaml

    from edgevlm_deploy import resources

    shipped = resources.recipe("int8" if name == "fp32" else name).model_dump(mode="json")
    shipped |= {"name": name, **({"components": {}} if name == "fp32" else {})}
    shipped["evaluation"] |= {"clean_items": CLEAN_ITEMS, "items_per_condition": ITEMS_PER_CONDITION}
    path = out / f"{name}.yaml"
    path.write_text(yaml.safe_dump(shipped))
    return path


def _target(backend: str, threads: int, out: Path) -> Path:
    import yaml

    from edgevlm_deploy import resources

    shipped = resources.target(compilation.TARGETS[backend]).model_dump(mode="json")
    path = out / f"{backend}.yaml"
    path.write_text(yaml.safe_dump({**shipped, "name": backend, "threads": threads}))
    return path


def _is_answered(bundle: Path, evidence: Path) -> bool:
    from edgevlm_runner.bundle import open_bundle
    from edgevlm_runner.errors import BundleError
    from edgevlm_runner.measure import read_evidence

    try:
        read_evidence(evidence, open_bundle(bundle).digest)
    except BundleError:
        return False
    return True


def _judged(recipe: str, runtime: str, bundle: Path, evidence: Path) -> Answered:
    from edgevlm_runner.bundle import open_bundle

    from edgevlm_deploy import validation
    from edgevlm_deploy.report import inventory

    opened = open_bundle(bundle)
    judged = validation.judge(opened, bundle, evidence)
    size = sum(inventory.sizes(opened)[part] for part in opened.model.graphs)
    return Answered(recipe, runtime, size, judged.metrics.model_dump(mode="json"), judged.evidence)


def demo_table(found: list[Answered], reused: bool) -> page.Table:
    rows = []
    for one in found:
        latency = one.evidence["latency"]
        rates = {
            name: f"{100 * estimate['value']:.2f}"
            for name, estimate in one.metrics["estimates"].items()
            if name.removeprefix("corrupted_") in RATES
        }
        rows.append(
            (
                one.recipe,
                one.runtime,
                *(rates[name] for name in RATES),
                *(rates[f"corrupted_{name}"] for name in RATES),
                "" if one.bytes is None else f"{one.bytes / 1e6:.2f}",
                f"{statistics.median(latency['time_to_first_token_ms']):.1f}",
                f"{1e3 / statistics.median(latency['per_token_ms']):.0f}",
                f"{one.evidence['peak_rss_bytes'] / 1e6:,.0f}",
            )
        )
    columns = (
        "recipe",
        "runtime",
        "accuracy %",
        "DR %",
        "NFR %",
        "corrupted: accuracy %",
        "DR %",
        "NFR %",
        "graphs MB",
        "first token ms",
        "tokens/s",
        "peak RSS MB",
    )
    title = "Demo model, answered by an earlier run" if reused else "Demo model"
    return page.Table(title, columns, tuple(rows))


def shape(recipes: list[str], threads: int, repetitions: int, reuse: bool) -> tuple[Heat, dict[str, Any]]:
    """Compile SmolVLM-256M's shape for both backends, then let them and PyTorch take turns."""
    directory = BUILD / "shape"
    (directory / OUTPUTS).mkdir(parents=True, exist_ok=True)
    if not reuse:
        say("shape: writing a checkpoint of random weights")
        program = "import sys; from benchmarks.shape import main; main(sys.argv[1])"
        run("-c", program, str(directory))
    compiled, lines = {}, []
    for recipe in recipes:
        for backend, title in BACKENDS.items():
            variant = compilation.folder(recipe, backend)
            if not (reuse and (directory / variant / "compiled.json").is_file()):
                say(f"shape: compiling {recipe} for {title}")
                run("-m", "benchmarks.compilation", str(directory), recipe, str(threads), backend)
            compiled[variant] = json.loads((directory / variant / "compiled.json").read_text())
            lines.append(Engine("edgevlm", variant, f"{title}, {recipe}", RECIPES[recipe], sys.executable))
    torch = [Engine("pytorch", kind, "PyTorch", kind, sys.executable) for kind in ("float32", "bfloat16")]
    return compete([*lines, *torch], directory, threads, repetitions, say), compiled


def shape_tables(heat: Heat, compiled: dict[str, Any]) -> list[page.Table]:
    made = tuple(
        (
            variant,
            f"{one['quantize_seconds']:.0f} s",
            f"{one['export_seconds']:.0f} s",
            f"{one['peak_rss_bytes'] / 1e6:,.0f}",
            f"{one['graph_bytes'] / 1e6:,.0f}",
            f"{one['verification']['logits_difference']:.0e}",
            *(
                f"{one['verification'][count]:,.0f}" if count in one["verification"] else "not counted"
                for count in ("exact_modules", "exact_integers")
            ),
        )
        for variant, one in compiled.items()
    )
    columns = (
        "graphs",
        "quantise",
        "export, verify",
        "peak MB",
        "graphs MB",
        "logits vs torch",
        "modules read back",
        "integers read back",
    )
    rows = list(summary.rows(heat, BUILD / "shape"))
    return [page.Table("SmolVLM-256M's shape: compilation", columns, made), page.engines(heat, rows)]


def main() -> None:
    given = arguments()
    before = conditions.now()
    tables = []
    if given.only != "shape":
        tables.append(demo_table(demo(given.recipes, given.threads, given.reuse), given.reuse))
    if given.only != "demo":
        tables += shape_tables(*shape(given.recipes, given.threads, given.rounds, given.reuse))
    after = conditions.now()
    command = shlex.join(["python", "-m", "benchmarks.runtimes", *sys.argv[1:]])
    text = page.document(
        "ONNX Runtime, LiteRT and PyTorch",
        [
            "Written by `--markdown`. [How to read it](README.md#runtimes).",
            f"`{command}`, {(after.wall - before.wall) / 60:.0f} minutes. "
            + page.company(conditions.other_cores(before, after), conditions.machine()["cores"]),
            page.machine(conditions.machine()),
        ],
        tables,
    )
    print(text)
    if given.markdown:
        given.markdown.write_text(text)


if __name__ == "__main__":
    main()
