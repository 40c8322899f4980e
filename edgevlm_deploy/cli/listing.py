"""What edgevlm knows: targets, recipes, and the schemas of their files."""

from __future__ import annotations

import json
from enum import Enum
from typing import Annotated

import typer

from edgevlm_deploy.cli.application import AsJson, app, show, table


class Described(str, Enum):
    """What `schema` describes."""

    RECIPE = "recipe"
    TARGET = "target"
    SWEEP = "sweep"


@app.command(epilog="Example: edgevlm targets")
def targets(as_json: AsJson = False) -> None:
    """List the device tiers that edgevlm knows."""
    from edgevlm_deploy import resources

    found = [resources.target(name) for name in resources.names("targets")]
    rows = [(one.name, one.backend.value, one.recipe, one.description) for one in found]
    show(
        [one.model_dump(mode="json") for one in found],
        as_json,
        table(("target", "backend", "recipe", ""), rows),
    )


@app.command(epilog="Example: edgevlm recipes")
def recipes(as_json: AsJson = False) -> None:
    """List the recipes that ship with edgevlm."""
    from edgevlm_deploy import resources

    found = [resources.recipe(name) for name in resources.names("recipes")]
    rows = [(one.name, f"{len(one.gates)} gates", one.description) for one in found]
    show([one.model_dump(mode="json") for one in found], as_json, table(("recipe", "", ""), rows))


@app.command(epilog="Example: edgevlm schema recipe > recipe.schema.json")
def schema(of: Annotated[Described, typer.Argument(help="What to describe.")]) -> None:
    """Print the JSON Schema of a recipe, target or sweep file."""
    from pydantic import BaseModel

    from edgevlm_deploy.recipe import Recipe
    from edgevlm_deploy.sweep.grid import Sweep
    from edgevlm_deploy.target import Target

    classes: dict[Described, type[BaseModel]] = {
        Described.RECIPE: Recipe,
        Described.TARGET: Target,
        Described.SWEEP: Sweep,
    }
    described = classes[of]
    typer.echo(json.dumps(described.model_json_schema(), indent=2))
