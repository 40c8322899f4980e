"""Look for a better recipe."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgevlm_deploy.cli.application import AsJson, app, show
from edgevlm_deploy.cli.ordering import takes_order
from edgevlm_deploy.errors import EXIT_GATES_FAILED, EXIT_PASSED

if TYPE_CHECKING:
    from edgevlm_deploy.pipeline import Order
    from edgevlm_deploy.recipe import Algorithm


@app.command(epilog="Example: edgevlm search demo --target host-cpu --recipe default --trials 60")
@takes_order
def search(
    order: Order,
    search_data: Annotated[
        Path | None,
        typer.Option(help="Questions to search with; by default calibration samples that are left over."),
    ] = None,
    trials: Annotated[int, typer.Option(help="Candidates to judge in all.", min=1)] = 60,
    budget: Annotated[
        float | None, typer.Option(help="Start no trial after so many minutes.", min=0.0)
    ] = None,
    share: Annotated[
        float, typer.Option(help="Items per candidate, as a share of the recipe's.", min=0.01, max=1.0)
    ] = 0.5,
    finalists: Annotated[int, typer.Option(help="Compile at most so many mixtures.", min=1)] = 4,
    algorithm: Annotated[
        list[str] | None,
        typer.Option(help="Besides rtn, e.g. gptq; by default those of the recipe. May be given again."),
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the sampler.")] = 0,
    as_json: AsJson = False,
) -> None:
    """Find the smallest precision of MODEL that passes every gate; prove it by compiling it."""
    from edgevlm_deploy import search as searching
    from edgevlm_deploy.progress import Progress
    from edgevlm_deploy.report import frontier

    settings = searching.Settings(
        trials=trials,
        minutes=budget,
        share=share,
        finalists=finalists,
        algorithms=tuple(_algorithm(one) for one in algorithm or ()),
        seed=seed,
        questions=search_data,
    )
    with Progress(quiet=as_json) as progress:
        found = searching.search(order, settings, progress)
    show(found.to_json(), as_json, frontier.text(found.to_json(), order.out / f"search-{order.name}"))
    raise typer.Exit(EXIT_GATES_FAILED if found.winner is None else EXIT_PASSED)


def _algorithm(name: str) -> Algorithm:
    from edgevlm_deploy.recipe import Algorithm

    try:
        return Algorithm(name)
    except ValueError:
        known = ", ".join(one.value for one in Algorithm)
        raise typer.BadParameter(f"{name!r}: expected one of {known}.", param_hint="--algorithm") from None
