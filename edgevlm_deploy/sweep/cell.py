"""One cell of a sweep: compile, run, judge. A finished cell is a stage like any other.

`python -m edgevlm_deploy.sweep.cell OUT` runs the cell that stands on standard input as JSON, in a process
of its own: a cell that is killed for its memory takes no other with it. The last line that it prints is the
stage's folder.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import yaml
from pydantic import TypeAdapter

from edgevlm_deploy import __version__, pipeline, validation
from edgevlm_deploy import bundle as bundles
from edgevlm_deploy.artifacts import pretty_json, stage, write_text_atomic
from edgevlm_deploy.config import Frozen
from edgevlm_deploy.errors import EdgeVlmError
from edgevlm_deploy.pipeline.data import identities
from edgevlm_deploy.pipeline.job import compilers, prepare
from edgevlm_deploy.progress import Silent
from edgevlm_deploy.report import charts
from edgevlm_deploy.sweep.grid import Cell
from edgevlm_deploy.sweep.rows import Row, of_conditions

ROWS = "rows.json"
_ROWS = TypeAdapter(tuple[Row, ...])


class Work(Frozen):
    """What a cell's process reads."""

    cell: Cell
    alone: bool


def run(work: Work, out: Path) -> Path:
    """The folder with the cell's rows, below `out`/stages. Raises any of the host's errors."""
    cell = work.cell
    order = _order(cell, out)
    job = prepare(order, Silent())
    inputs = {
        "model": job.source.digest,
        "plan": job.plan.digest,
        "samples": [identities(one) for one in (job.samples.all, job.samples.tuning)],
        "packages": compilers(job.plan),
    }

    def produce(folder: Path) -> None:
        bundle = pipeline.compile(order, Silent())
        done = validation.validate(bundle, False, Silent(), emulate=pipeline.needs_emulation(order))
        rows = of_conditions(done.metrics, {**_facts(cell, done), "alone": work.alone})
        (folder / ROWS).write_text(pretty_json([dict(row) for row in rows]), encoding="utf-8")

    return stage(job.cache, "cell", inputs, produce)


def read(folder: Path, cell: Cell) -> tuple[Row, ...]:
    """The rows of a finished cell, under the names that it has now: a stage knows content only."""
    rows = _ROWS.validate_json((folder / ROWS).read_text(encoding="utf-8"))
    names = {"sweep": cell.sweep, "model": cell.model.name}
    return tuple(row.model_copy(update=names) for row in rows)


def _order(cell: Cell, out: Path) -> pipeline.Order:
    """With the cell's recipe as a file, because that is what an order takes."""
    folder = out / "recipes"
    folder.mkdir(parents=True, exist_ok=True)
    recipe = folder / f"{cell.recipe.name}.yaml"
    write_text_atomic(recipe, yaml.safe_dump(cell.recipe.model_dump(mode="json"), sort_keys=False))
    model = cell.model
    return pipeline.Order(
        model=model.model,
        target=cell.target,
        recipe=str(recipe),
        out=out,
        data=model.data,
        calibration=model.calibration,
        images=model.images,
        revision=model.revision,
        offline=model.offline,
    )


def _facts(cell: Cell, done: validation.Validation) -> dict[str, Any]:
    opened = bundles.open_bundle(done.bundle)
    files = opened.manifest["files"]
    evidence, emulated = done.evidence, bool(done.evidence["emulated"])
    latency = {} if emulated else evidence["latency"]

    def percentile(name: str, quantile: float) -> float | None:
        samples = [float(one) for one in latency.get(name, ())]
        return charts.percentile(samples, quantile) if samples else None

    return {
        "sweep": cell.sweep,
        "model": cell.model.name,
        "recipe": cell.recipe.name,
        "target": opened.manifest["target"]["name"],
        "latency_ms_p50": percentile("latency_ms", 0.5),
        "latency_ms_p95": percentile("latency_ms", 0.95),
        "time_to_first_token_ms_p95": percentile("time_to_first_token_ms", 0.95),
        "peak_rss_bytes": None if emulated else int(evidence["peak_rss_bytes"]),
        "model_bytes": sum(int(one["bytes"]) for name, one in files.items() if name.startswith("graphs/")),
        "bundle_bytes": validation.size(done.bundle),
        "outcome": done.verdict.outcome.value,
        "cpu": str(evidence["machine"]["cpu"]),
        "bundle": opened.digest,
        "edgevlm_version": __version__,
    }


def main() -> None:
    """Entry point of the process: errors become one message and the exit code of their cause."""
    work = Work.model_validate_json(sys.stdin.read())
    try:
        folder = run(work, Path(sys.argv[1]))
    except EdgeVlmError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    print(folder)


if __name__ == "__main__":
    main()
