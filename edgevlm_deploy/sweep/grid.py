"""A sweep file: models × recipes on one target, all judged on one table of items."""

from __future__ import annotations

from collections import Counter
from enum import Enum
from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, ValidationError, model_validator

from edgevlm_deploy import resources
from edgevlm_deploy.config import Frozen, load_yaml
from edgevlm_deploy.errors import ConfigError, NotFoundError
from edgevlm_deploy.recipe import (
    EDGE_SUITE,
    SENSOR_SUITE,
    Calibration,
    Component,
    Corruption,
    Evaluation,
    Precision,
    Quantizer,
    Recipe,
)

Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]*$")]


class Suite(str, Enum):
    """Corruptions by the name of their suite."""

    EDGE = "edge"
    IMAGENET_C = "imagenet-c"
    SENSOR = "sensor"
    ALL = "all"

    @property
    def corruptions(self) -> tuple[Corruption, ...]:
        return {
            Suite.EDGE: EDGE_SUITE,
            Suite.IMAGENET_C: tuple(one for one in Corruption if one not in SENSOR_SUITE),
            Suite.SENSOR: SENSOR_SUITE,
            Suite.ALL: tuple(Corruption),
        }[self]


class Model(Frozen):
    """What `edgevlm compile` takes. Paths are as seen from where the sweep is started."""

    model: str
    """Checkpoint folder, hub id, `demo` or `demo-clip`."""
    revision: str | None = None
    offline: bool = False
    data: Path | None = None
    """Evaluation items; without them the demo's scenes, of `demo-clip` its pictures."""
    calibration: Path | None = None
    images: Path | None = None

    @property
    def name(self) -> str:
        return Path(self.model).name


class Variant(Frozen):
    """A recipe, and what is different about it here."""

    recipe: str
    """Name of a recipe, or a YAML file."""
    name: Name | None = None
    """What it is called in the results; the recipe's own name by default, which must then be unique."""
    quantizer: Quantizer | None = None
    components: dict[Component, Precision] = {}
    """In place of the recipe's, component by component."""
    calibration: Calibration | None = None

    def resolve(self, evaluation: Evaluation) -> Recipe:
        """The whole recipe. Raises NotFoundError, or ConfigError when the parts do not make one."""
        base = resources.recipe(self.recipe)
        changed: dict[str, Any] = {
            "name": self.name or base.name,
            "components": {**base.components, **self.components},
            "evaluation": evaluation,
        }
        if self.quantizer is not None:
            changed["quantizer"] = self.quantizer
        if self.calibration is not None:
            changed["calibration"] = self.calibration
        try:
            return Recipe.model_validate({**dict(base), **changed})
        except ValidationError as error:
            raise ConfigError(f"recipe {changed['name']!r} of the sweep is not valid: {error}") from error


def _named(field: str) -> BeforeValidator:
    """A bare string is the mapping with that one key."""
    return BeforeValidator(lambda value: {field: value} if isinstance(value, str) else value)


class Sweep(Frozen):
    name: Name
    target: str
    """Name of a target, or a YAML file."""
    models: Annotated[tuple[Annotated[Model, _named("model")], ...], Field(min_length=1)]
    recipes: Annotated[tuple[Annotated[Variant, _named("recipe")], ...], Field(min_length=1)]
    suite: Suite | None = None
    """Corruptions by suite, in place of `evaluation.corruptions`."""
    evaluation: Evaluation = Evaluation()
    """The items of every cell: corruptions, severities, items per condition."""

    @model_validator(mode="after")
    def _corruptions_are_given_once_and_fit(self) -> Sweep:
        if self.suite is not None and "corruptions" in self.evaluation.model_fields_set:
            raise ValueError("give `suite` or `evaluation.corruptions`, not both")
        try:
            _ = self.items
        except ValidationError as error:
            raise ValueError(error.errors()[0]["msg"]) from error
        return self

    @model_validator(mode="after")
    def _models_have_names_of_their_own(self) -> Sweep:
        _refuse_repeated("models", [one.name for one in self.models])
        return self

    @property
    def items(self) -> Evaluation:
        """`evaluation` with the suite's corruptions."""
        if self.suite is None:
            return self.evaluation
        return Evaluation.model_validate(
            {**self.evaluation.model_dump(), "corruptions": self.suite.corruptions}
        )

    def cells(self) -> tuple[Cell, ...]:
        """Every model with every recipe. Raises ConfigError and NotFoundError before anything is computed."""
        target = resources.target(self.target)
        recipes = [variant.resolve(self.items) for variant in self.recipes]
        _refuse_repeated("recipes", [one.name for one in recipes], "give each a `name`")
        models = [_located(model) for model in self.models]
        where = str(Path(self.target).absolute()) if target.name != self.target else self.target
        return tuple(
            Cell(sweep=self.name, model=model, target=where, recipe=recipe)
            for model in models
            for recipe in recipes
        )


class Cell(Frozen):
    """One compilation and its evidence."""

    sweep: str
    model: Model
    target: str
    recipe: Recipe

    @property
    def name(self) -> str:
        return f"{self.model.name} × {self.recipe.name}"


def load(path: Path) -> Sweep:
    """Raises NotFoundError when there is no such file, ConfigError when it is no sweep."""
    if not path.is_file():
        raise NotFoundError(f"{path}: no such file. A sweep is a YAML file; docs/sweep.md describes it.")
    return load_yaml(path, Sweep)


def _refuse_repeated(what: str, names: list[str], mend: str = "rename the folder of one") -> None:
    repeated = [name for name, times in Counter(names).items() if times > 1]
    if repeated:
        raise ConfigError(f"{what}: {repeated[0]!r} is there twice, and its results would be mixed; {mend}.")


def _located(model: Model) -> Model:
    """With absolute paths, for processes that run elsewhere."""

    def absolute(path: Path | None) -> Path | None:
        return None if path is None else path.absolute()

    folder = Path(model.model).expanduser()
    return model.model_copy(
        update={
            "model": str(folder.absolute()) if folder.is_dir() else model.model,
            "data": absolute(model.data),
            "calibration": absolute(model.calibration),
            "images": absolute(model.images),
        }
    )
