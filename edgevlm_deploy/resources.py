"""Where the data files live: targets, recipes and the demo checkpoint.

An installed wheel carries targets and recipes under `_data/`; an editable install does not see
force-included files, so the checkout is the fallback.
"""

from __future__ import annotations

from pathlib import Path

from edgevlm_deploy.config import ConfigT, load_yaml
from edgevlm_deploy.errors import NotFoundError
from edgevlm_deploy.recipe import Recipe
from edgevlm_deploy.target import Target

_PACKAGE = Path(__file__).resolve().parent
DEMO_CHECKPOINT = _PACKAGE / "demo" / "checkpoint"
DEMO_CLIP = _PACKAGE / "demo" / "clip_checkpoint"


def folder(kind: str) -> Path:
    """The folder of "targets" or "recipes"."""
    installed = _PACKAGE / "_data" / kind
    return installed if installed.is_dir() else _PACKAGE.parent / kind


def names(kind: str) -> tuple[str, ...]:
    """Names without suffix, sorted."""
    return tuple(sorted(path.stem for path in folder(kind).glob("*.yaml")))


def target(name: str) -> Target:
    """A shipped target by name, or a YAML file by path."""
    return _load("targets", name, Target)


def recipe(name: str) -> Recipe:
    """A shipped recipe by name, or a YAML file by path."""
    return _load("recipes", name, Recipe)


def _load(kind: str, name: str, cls: type[ConfigT]) -> ConfigT:
    """A path is what ends in .yaml/.yml or has a separator; everything else is a shipped name."""
    given = Path(name)
    if given.suffix in (".yaml", ".yml") or len(given.parts) > 1:
        if not given.is_file():
            raise NotFoundError(f"{name}: no such file. Shipped {kind}: {', '.join(names(kind))}.")
        return load_yaml(given, cls)
    path = folder(kind) / f"{name}.yaml"
    if not path.is_file():
        known = ", ".join(names(kind))
        raise NotFoundError(
            f"{name!r} is not one of the {kind} ({known}). Give one of these or the path of a YAML file."
        )
    return load_yaml(path, cls)
