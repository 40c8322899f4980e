"""Frozen configuration objects and the one way to read them from YAML."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from edgevlm_deploy.errors import ConfigError


class Frozen(BaseModel):
    """An illegal configuration cannot exist: immutable, unknown keys refused, no silent coercion of types."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


ConfigT = TypeVar("ConfigT", bound=Frozen)

Share = Annotated[float, Field(ge=0.0, le=1.0)]
"""Of a whole: between 0 and 1."""


def load_yaml(path: Path, cls: type[ConfigT]) -> ConfigT:
    """Read one YAML mapping into `cls`.

    Raises ConfigError that names the file and the key path of every problem at once.
    """
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read ({error}).") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: not valid YAML.\n{error}") from error
    if not isinstance(data, dict):
        raise ConfigError(f"{path}: expected a mapping of keys to values, got {type(data).__name__}.")
    try:
        return cls.model_validate(data)
    except ValidationError as error:
        raise ConfigError(_explain(path, cls, error)) from error


def _explain(path: Path, cls: type[Frozen], error: ValidationError) -> str:
    lines = [f"{path}: not a valid {cls.__name__.lower()}."]
    for problem in error.errors():
        key = ".".join(str(part) for part in problem["loc"]) or "(top level)"
        if problem["type"] == "extra_forbidden":
            lines.append(f"  {key}: unknown key. `edgevlm schema {cls.__name__.lower()}` lists the keys.")
        else:
            lines.append(f"  {key}: {problem['msg']} (got {problem['input']!r})")
    return "\n".join(lines)
