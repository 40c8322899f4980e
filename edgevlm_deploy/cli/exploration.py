"""Look for a better recipe."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgevlm_deploy.cli.application import AsJson, app, show
from edgevlm_deploy.cli.ordering import takes_order

if TYPE_CHECKING:
    from edgevlm_deploy.pipeline import Order
    from edgevlm_deploy.recipe import Algorithm
    from edgevlm_deploy.search import Knob

NONE = "none"


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
    knob: Annotated[
        list[str] | None,
        typer.Option(
            help="Searched besides schemes and algorithms: tiles, reduction, or none; both by default, where "
            "model and target allow them. May be given again."
        ),
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the sampler.")] = 0,
    as_json: AsJson = False,
) -> None:
    """Find the smallest MODEL that passes every gate, and prove it by compiling it.

    Kept of the recipe: gates, calibration, evaluation. Searched: precision, algorithms, tiles, image tokens.
    """
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
        knobs=_knobs(knob),
    )
    with Progress(quiet=as_json) as progress:
        found = searching.search(order, settings, progress)
    show(found.to_json(), as_json, frontier.text(found.to_json(), order.out / f"search-{order.name}"))
    raise typer.Exit(found.exit_code)


def _knobs(names: list[str] | None) -> tuple[Knob, ...]:
    from edgevlm_deploy.search import Knob

    if not names:
        return tuple(Knob)
    known = [one.value for one in Knob]
    for name in names:
        if name not in (*known, NONE):
            raise typer.BadParameter(
                f"{name!r}: expected one of {', '.join(known)}, {NONE}.", param_hint="--knob"
            )
    if NONE in names and len(set(names)) > 1:
        raise typer.BadParameter(f"{NONE} goes without another knob.", param_hint="--knob")
    return tuple(one for one in Knob if one.value in names)


def _algorithm(name: str) -> Algorithm:
    from edgevlm_deploy.recipe import Algorithm

    try:
        return Algorithm(name)
    except ValueError:
        known = ", ".join(one.value for one in Algorithm)
        raise typer.BadParameter(f"{name!r}: expected one of {known}.", param_hint="--algorithm") from None
