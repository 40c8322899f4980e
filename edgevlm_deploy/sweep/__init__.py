"""Model × recipe × corruption × severity: every cell compiled, run and judged, in one table."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgevlm_deploy.progress import Watcher
from edgevlm_deploy.sweep import engines, page, rows, table
from edgevlm_deploy.sweep.engines import Engine
from edgevlm_deploy.sweep.grid import Sweep, load
from edgevlm_deploy.sweep.rows import Results

__all__ = ["Done", "Engine", "Sweep", "load", "run"]


@dataclass(frozen=True)
class Done:
    results: Results
    parquet: Path
    report: Path

    def to_json(self) -> dict[str, Any]:
        return {
            "sweep": self.results.sweep,
            "cells": [one.to_json() for one in table.summary(self.results)],
            "failed": dict(self.results.failed),
            "parquet": str(self.parquet),
            "report": str(self.report),
        }


def run(
    sweep: Sweep,
    out: Path,
    watch: Watcher,
    engine: Engine = Engine.LOCAL,
    workers: int = 1,
    address: str | None = None,
    cpus: float = 1.0,
) -> Done:
    """Run every cell that is not finished yet; write `OUT/NAME.parquet` and `OUT/NAME.html`.

    A cell that fails is named in both, and the others go on. Raises ConfigError, NotFoundError,
    MissingExtraError and DeviceError before anything is computed.
    """
    todo = sweep.cells()
    rows.require_parquet()
    out = out.absolute()
    out.mkdir(parents=True, exist_ok=True)
    watch.begin("Cells", len(todo))
    ran = (
        engines.on_ray(todo, out, address, cpus)
        if engine is Engine.RAY
        else engines.locally(todo, out, workers)
    )
    finished = {}
    for one in ran:
        finished[one.cell.name] = one
        watch.advance()
    # In the order of the file, however they ended.
    ordered = [finished[cell.name] for cell in todo]
    results = Results(
        sweep.name,
        tuple(row for one in ordered for row in one.rows),
        {one.cell.name: one.failure for one in ordered if one.failure},
    )
    done = Done(results, out / f"{sweep.name}.parquet", out / f"{sweep.name}.html")
    rows.write(results, done.parquet)
    page.render(rows.read(done.parquet), done.report)
    return done
