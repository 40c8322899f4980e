"""The one place where a recipe meets a target and a model. All problems are reported at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from edgevlm_deploy.artifacts import digest
from edgevlm_deploy.errors import PlanError
from edgevlm_deploy.quantize.request import Request
from edgevlm_deploy.quantize.request import resolve as resolve_precision
from edgevlm_deploy.recipe import Recipe, Scheme
from edgevlm_deploy.target import Backend, Target

AVAILABLE_BACKENDS = frozenset({Backend.ONNXRUNTIME, Backend.LITERT})

_FORMAT_OF_BITS = {8: "int8", 4: "int4-weights", 3: "int4-weights"}


@dataclass(frozen=True)
class Plan:
    recipe: Recipe
    target: Target
    request: Request
    """Precision per module; what is not in it stays fp16."""

    @property
    def digest(self) -> str:
        return digest({"recipe": self.recipe, "target": self.target, "request": dict(self.request)})


def resolve(recipe: Recipe, target: Target, modules: Mapping[str, Sequence[str]]) -> Plan:
    """Bring a recipe, a target and a model's modules (component → names of weight matrices) together.

    Raises PlanError that lists everything that does not fit.
    """
    problems = [sentence] if (sentence := missing_backend(target)) else []
    request: Request = {}
    try:
        request = resolve_precision(
            recipe.components,
            recipe.modules,
            modules,
            recipe.quantizer,
            target.backend,
            target.accelerator,
        )
    except PlanError as error:
        problems.append(str(error))
    problems += _unsupported_formats(request, target)
    if problems:
        raise PlanError("\n".join([f"Recipe {recipe.name} does not fit target {target.name}:", *problems]))
    return Plan(recipe, target, request)


def missing_backend(target: Target) -> str | None:
    """One sentence when this version cannot compile for the target, else None."""
    if target.backend in AVAILABLE_BACKENDS:
        return None
    return (
        f"Target {target.name} needs the {target.backend.value} backend, which this version of edgevlm does "
        "not have yet; `--target host-cpu` compiles the same integers for ONNX Runtime."
    )


def _unsupported_formats(request: Request, target: Target) -> list[str]:
    needed: dict[str, Scheme] = {}
    for wanted in request.values():
        needed.setdefault(_FORMAT_OF_BITS[wanted.format.bits], wanted.scheme)
    return [
        f"{scheme.value} needs {name}; {target.name} ({target.soc}) executes {', '.join(target.formats)}."
        for name, scheme in needed.items()
        if name not in target.formats
    ]
