"""What is to be compiled for what, as options: one list for every command that takes an order."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

import typer

if TYPE_CHECKING:
    from edgevlm_deploy.pipeline import Order


def _order(
    model: Annotated[str, typer.Argument(help="Checkpoint folder, hub id, `demo` or `demo-clip`.")],
    target: Annotated[str, typer.Option(help="Name of a target, or a YAML file.")],
    recipe: Annotated[
        str | None, typer.Option(help="Name of a recipe, or a YAML file; the target's own by default.")
    ] = None,
    data: Annotated[Path | None, typer.Option(help="Evaluation items: JSONL, VQAv2, POPE or folder.")] = None,
    calibration: Annotated[
        Path | None, typer.Option(help="Calibration samples; without it they are split off --data.")
    ] = None,
    images: Annotated[Path | None, typer.Option(help="Folder of the pictures that the data name.")] = None,
    ood: Annotated[
        Path | None, typer.Option(help="Questions of another kind, which the model should be less sure of.")
    ] = None,
    revision: Annotated[str | None, typer.Option(help="Hub revision (branch, tag or commit).")] = None,
    offline: Annotated[
        bool, typer.Option("--offline", help="Take hub models from the local cache only.")
    ] = False,
    out: Annotated[Path, typer.Option(help="Folder for results, bundles and finished stages.")] = Path(
        "build"
    ),
) -> Order:
    from edgevlm_deploy.pipeline import Order

    return Order(
        model=model,
        target=target,
        recipe=recipe,
        data=data,
        calibration=calibration,
        images=images,
        ood=ood,
        revision=revision,
        offline=offline,
        out=out,
    )


def takes_order(command: Callable[..., None]) -> Callable[..., None]:
    """`command(order, …)` as Typer sees it: with the options of an order in place of its first parameter."""
    shared = inspect.signature(_order).parameters
    _, *own = inspect.signature(command).parameters.values()
    # The pipeline is imported when a command runs: until then `Order` is no name.
    types = {
        name: type_
        for function in (_order, command)
        for name, type_ in get_type_hints(function, localns={"Order": object}, include_extras=True).items()
    }

    @functools.wraps(command)
    def ordered(**given: Any) -> None:
        command(_order(**{name: given.pop(name) for name in shared}), **given)

    parameters = [one.replace(annotation=types[one.name]) for one in (*shared.values(), *own)]
    ordered.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    ordered.__annotations__ = {one.name: one.annotation for one in parameters}
    return ordered
