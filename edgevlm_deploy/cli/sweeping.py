"""Many compilations at once."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from edgevlm_deploy.cli.application import AsJson, app, show, table


class Engine(str, Enum):
    """The same values as `sweep.Engine`, which is imported when it runs."""

    LOCAL = "local"
    RAY = "ray"


@app.command(
    epilog="Example: edgevlm sweep grid.yaml --out build. Finished cells are kept: the same command goes on "
    "after the last one. The exit code is 27 when some cells failed."
)
def sweep(
    file: Annotated[Path, typer.Argument(help="A sweep: models, recipes, corruptions, severities (YAML).")],
    out: Annotated[
        Path, typer.Option(help="Folder for the results, the bundles and finished stages.")
    ] = Path("build"),
    engine: Annotated[
        Engine, typer.Option(help="local: processes on this machine; ray: an existing Ray cluster.")
    ] = Engine.LOCAL,
    workers: Annotated[
        int,
        typer.Option(
            help="Cells at a time on this machine; with more than one, latency means little.", min=1
        ),
    ] = 1,
    address: Annotated[
        str | None, typer.Option(help="Of the Ray cluster; $RAY_ADDRESS or this machine's by default.")
    ] = None,
    cpus: Annotated[float, typer.Option(help="CPUs that a cell reserves on the cluster.", min=0.1)] = 1.0,
    as_json: AsJson = False,
) -> None:
    """Compile, run and judge every model with every recipe of FILE; results as Parquet and a page."""
    from edgevlm_deploy import sweep as sweeps
    from edgevlm_deploy.errors import SweepError
    from edgevlm_deploy.progress import Progress
    from edgevlm_deploy.sweep.table import HEAD, summary

    with Progress(quiet=as_json) as progress:
        done = sweeps.run(
            sweeps.load(file), out, progress, sweeps.Engine(engine.value), workers, address, cpus
        )
    lines = [line.cells() for line in summary(done.results)]
    text = table(HEAD, lines) if lines else "No cell was finished."
    told = [f"{name}  failed: {why}" for name, why in done.results.failed.items()]
    show(
        done.to_json(),
        as_json,
        "\n".join([text, *told, "", f"results  {done.parquet}", f"report   {done.report}"]),
    )
    if done.results.failed:
        names = ", ".join(done.results.failed)
        raise SweepError(f"{len(told)} of the cells failed: {names}. The same command tries them again.")
