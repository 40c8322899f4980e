"""The one place where a recipe meets a target and a model. All problems are reported at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from edgevlm_deploy import reduction
from edgevlm_deploy.artifacts import digest
from edgevlm_deploy.errors import PlanError
from edgevlm_deploy.quantize.request import DATA_FREE, ModuleRequest, Request
from edgevlm_deploy.quantize.request import resolve as resolve_precision
from edgevlm_deploy.recipe import (
    AbstainBy,
    Algorithm,
    Component,
    Composition,
    Gate,
    GateName,
    ObserverName,
    Quantizer,
    Recipe,
    Scheme,
)
from edgevlm_deploy.source.model import AnyArchitecture, Architecture, EncoderDecoderArchitecture
from edgevlm_deploy.target import Backend, Target

_FOR_ENCODER_DECODERS = (Algorithm.RTN, Algorithm.HQQ, Algorithm.GPTQ)
"""The others fold scales into a norm in front of a layer; text layers here have theirs behind them."""
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

    @property
    def gates(self) -> tuple[Gate, ...]:
        """The recipe's gates, and the target's budgets where the recipe sets no limit of its own."""
        own = self.recipe.gates
        if self.recipe.target_budgets == "report":
            return own
        limited = {gate.metric for gate in own}
        reason = f"Budget of the target {self.target.name}."
        budgets = [
            Gate(metric=GateName(name), max=value, reason=reason)
            for name, value in self.target.budgets
            if value is not None and GateName(name) not in limited
        ]
        return (*own, *budgets)

    def summary(self) -> dict[str, Any]:
        """Modules per component, scheme and algorithm."""
        counts: dict[str, dict[str, int]] = {}
        for wanted in self.request.values():
            kinds = counts.setdefault(wanted.component.value, {})
            kind = f"{wanted.scheme.value} {wanted.algorithm.value}"
            kinds[kind] = kinds.get(kind, 0) + 1
        fewer = self.recipe.image.reduction
        reduced = {} if fewer is None else {"reduction": fewer.model_dump(mode="json", exclude_none=True)}
        return {"quantizer": self.recipe.quantizer.value, "modules": counts, **reduced}


def resolve(
    recipe: Recipe,
    target: Target,
    modules: Mapping[str, Sequence[str]],
    architecture: AnyArchitecture | None = None,
) -> Plan:
    """Bring a recipe, a target and a model together.

    modules: component → names of its weight matrices
    architecture: the model's numbers, where known

    Raises PlanError that lists everything that does not fit.
    """
    problems = []
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
    problems += reduction.problems(recipe.image.reduction, target, architecture)
    if isinstance(architecture, Architecture):
        problems += _pictures(recipe, target, architecture, request)
    problems += _idle_observer(recipe, request)
    problems += _unseen_parts(recipe.calibration.composition, request)
    if isinstance(architecture, EncoderDecoderArchitecture):
        problems += _not_for_encoder_decoders(recipe, request)
    if problems:
        raise PlanError("\n".join([f"Recipe {recipe.name} does not fit target {target.name}:", *problems]))
    return Plan(recipe, target, request)


def _pictures(recipe: Recipe, target: Target, model: Architecture, request: Request) -> list[str]:
    """Settings of pictures that the model has no use for, or that the backend cannot do without."""
    wanted = recipe.image
    problems: list[str] = []
    if not model.cell:
        sizes = {"max_pixels": wanted.max_pixels, "resolution": wanted.resolution}
        return [
            f"image.{name}: this model cuts pictures into squares of {model.image_size} pixels; leave it out."
            for name, given in sizes.items()
            if given is not None
        ]
    problems += [
        f"image.{name}: this model cuts no tiles, it keeps a picture's own resolution. Bound it by "
        "image.max_pixels."
        for name in ("max_tiles", "reference_tiles", "usual_tiles")
        if getattr(wanted, name) is not None
    ]
    if wanted.resolution is not None and any(side % model.cell for side in wanted.resolution):
        problems.append(
            f"image.resolution: {' × '.join(map(str, wanted.resolution))} pixels; an image token covers "
            f"{model.cell} × {model.cell} of them. Give multiples of {model.cell}."
        )
    if wanted.max_pixels is not None and wanted.max_pixels < model.cell**2:
        problems.append(f"image.max_pixels: an image token covers {model.cell**2}; give at least as many.")
    if wanted.resolution is None and target.backend is not Backend.ONNXRUNTIME:
        problems.append(
            f"image.resolution: graphs for {target.backend.value} have one size, and the model takes any "
            f"picture's. Give height and width, e.g. [{16 * model.cell}, {16 * model.cell}]."
        )
    seeing = {one.algorithm for one in request.values() if one.component is Component.VISION_ENCODER}
    if Algorithm.AUTOROUND in seeing:
        problems.append(
            "components.vision_encoder: autoround learns from batches of equal pictures; this model takes "
            "each at its own resolution. Take gptq, awq or rtn there."
        )
    return problems


def _unsupported_formats(request: Request, target: Target) -> list[str]:
    needed: dict[str, Scheme] = {}
    for wanted in request.values():
        needed.setdefault(_FORMAT_OF_BITS[wanted.format.bits], wanted.scheme)
    return [
        f"{scheme.value} needs {name}; {target.name} ({target.soc}) executes {', '.join(target.formats)}."
        for name, scheme in needed.items()
        if name not in target.formats
    ]


def _idle_observer(recipe: Recipe, request: Request) -> list[str]:
    """An observer that would change nothing is a mistake in the recipe."""
    wanted = recipe.calibration.observer
    if wanted is ObserverName.MINMAX:
        return []
    if recipe.quantizer is not Quantizer.NEURAL_COMPRESSOR:
        return [
            f"calibration.observer {wanted.value} is offered by `quantizer: neural-compressor`; use minmax."
        ]
    if any(one.format.static_activation for one in request.values()):
        return []
    return [
        f"calibration.observer {wanted.value}: no module has calibrated int8 inputs here; they come with "
        "w8a8 on onnxruntime and tensorrt. Leave it out or choose such a scheme."
    ]


_UNSEEN = {
    Composition.TEXT_ONLY: {Component.VISION_ENCODER: "pictures", Component.PROJECTOR: "pictures"},
    Composition.IMAGE_ONLY: {Component.TEXT_ENCODER: "texts"},
}


def _is_calibrated(wanted: ModuleRequest) -> bool:
    inputs = wanted.format.static_activation or wanted.format.graph_activation_bits is not None
    return inputs or wanted.algorithm not in DATA_FREE


def _unseen_parts(composition: Composition, request: Request) -> list[str]:
    """What would be calibrated on a part of the samples that is not shown."""
    unseen = _UNSEEN.get(composition, {})
    calibrated = dict.fromkeys(one.component for one in request.values() if _is_calibrated(one))
    problems = [
        f"calibration.composition {composition.value} shows no {unseen[component]}, and {component.value} is "
        "calibrated on them. Use mixed, or rtn or hqq with a weight-only scheme."
        for component in calibrated
        if component in unseen
    ]
    if composition is not Composition.MIXED and Algorithm.MBQ in {one.algorithm for one in request.values()}:
        problems.append("mbq weighs pictures against answers; it needs calibration.composition mixed.")
    return problems


def _not_for_encoder_decoders(recipe: Recipe, request: Request) -> list[str]:
    """What needs a decoder that reads the prompt itself, norms in front of its layers, or no picture."""
    negation, abstain = recipe.evaluation.negation, recipe.abstain
    found = {
        "quantizer: tensorrt": recipe.quantizer is not Quantizer.NEURAL_COMPRESSOR,
        "abstain.by: selector": abstain is not None and abstain.by is AbstainBy.SELECTOR,
    }
    problems = [
        f"{key} is offered for decoders that read picture and question; take {mending}."
        for (key, wanted), mending in zip(found.items(), ("neural-compressor", "maxprob"), strict=True)
        if wanted
    ]
    without_picture = {
        "calibration.composition: text_only": recipe.calibration.composition is Composition.TEXT_ONLY,
        "evaluation.blind_items": recipe.evaluation.blind_items > 0,
        "evaluation.negation.blind": negation is not None and negation.blind,
    }
    problems += [
        f"{key}: an encoder–decoder always reads a picture; leave it out (grey_items asks about a grey one)."
        for key, wanted in without_picture.items()
        if wanted
    ]
    problems += [
        f"image.{name}: this model sees one square of its own size; leave it out."
        for name in ("max_pixels", "resolution")
        if getattr(recipe.image, name) is not None
    ]
    used = dict.fromkeys(one.algorithm for one in request.values())
    return problems + [
        f"{algorithm.value} is not offered for encoder–decoders; "
        f"take {', '.join(one.value for one in _FOR_ENCODER_DECODERS)}."
        for algorithm in used
        if algorithm not in _FOR_ENCODER_DECODERS
    ]
