"""Which module gets which precision: the recipe's components and overrides, spelled out per module."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from edgevlm_deploy.errors import PlanError
from edgevlm_deploy.quantize.schemes import WeightFormat, weight_format
from edgevlm_deploy.recipe import Algorithm, Component, ModuleOverride, Precision, Quantizer, Scheme


@dataclass(frozen=True)
class ModuleRequest:
    component: Component
    scheme: Scheme
    algorithm: Algorithm

    @property
    def format(self) -> WeightFormat:
        return weight_format(self.scheme, self.component)


Request = Mapping[str, ModuleRequest]
"""Module name in the source model → what is asked for. fp16 modules are not in it."""


def resolve(
    components: Mapping[Component, Precision],
    overrides: Sequence[ModuleOverride],
    modules: Mapping[str, Sequence[str]],
    quantizer: Quantizer,
) -> dict[str, ModuleRequest]:
    """Precision per module; later overrides win.

    modules: component → names of its weight matrices (linear layers, or the embedding).
    Raises PlanError with every problem at once: a component the model does not have, an override that
    matches nothing, a scheme or algorithm that `quantizer` does not offer for a component.
    """
    problems = [
        f"components.{component.value}: this model has no such component (it has {', '.join(modules)})."
        for component in components
        if component.value not in modules
    ]
    request: dict[str, ModuleRequest] = {}
    for component_name, names in modules.items():
        component = Component(component_name)
        precision = components.get(component, Precision())
        for name in names:
            request[name] = ModuleRequest(component, precision.scheme, precision.algorithm)
    for override in overrides:
        matches = [name for name in request if fnmatchcase(name, override.pattern)]
        if not matches:
            example = next(iter(request), "(none)")
            problems.append(
                f"modules: `{override.pattern}` matches no module; a name looks like `{example}`."
            )
        for name in matches:
            request[name] = ModuleRequest(request[name].component, override.scheme, override.algorithm)
    request = {name: wanted for name, wanted in request.items() if wanted.scheme is not Scheme.FP16}
    problems += _unsupported(request, quantizer)
    if problems:
        raise PlanError("The recipe's precision cannot be met:\n  " + "\n  ".join(problems))
    return request


def check_columns(request: Request, columns: Mapping[str, int]) -> None:
    """Groups that do not divide a module's K columns: rounding to nearest and GPTQ end with a short group,
    AWQ's search cannot (it reshapes the matrix to rows of one group).

    Raises PlanError that names every such module.
    """
    problems = [
        f"{name}: AWQ with groups of {wanted.format.group} needs a multiple of that many columns, "
        f"it has {columns[name]}. Override it with `algorithm: rtn` or a per-channel scheme."
        for name, wanted in request.items()
        if wanted.algorithm is Algorithm.AWQ
        and wanted.format.group is not None
        and columns[name] % wanted.format.group
    ]
    if problems:
        raise PlanError("Group sizes do not fit:\n  " + "\n  ".join(problems))


def _unsupported(request: Request, quantizer: Quantizer) -> list[str]:
    """One sentence per distinct (component, scheme, algorithm) that cannot be had."""
    reason = _neural_compressor_reason if quantizer is Quantizer.NEURAL_COMPRESSOR else _modelopt_reason
    problems = []
    for wanted in dict.fromkeys(request.values()):
        sentence = _embedding_reason(wanted) or reason(wanted)
        if sentence:
            asked = f"{wanted.component.value} {wanted.scheme.value}/{wanted.algorithm.value}"
            problems.append(f"{asked}: {sentence}")
    searched = {w.algorithm for w in request.values() if w.component is Component.DECODER} - {Algorithm.RTN}
    if quantizer is Quantizer.NEURAL_COMPRESSOR and len(searched) > 1:
        names = " and ".join(sorted(algorithm.value for algorithm in searched))
        problems.append(f"decoder: {names} cannot be mixed in one decoder; keep one of them besides rtn.")
    return problems


def _embedding_reason(wanted: ModuleRequest) -> str:
    is_offered = wanted.scheme is Scheme.W8A16 and wanted.algorithm is Algorithm.RTN
    if wanted.component is Component.EMBEDDING and not is_offered:
        return "an embedding can be fp16 or w8a16 with algorithm rtn."
    return ""


def _neural_compressor_reason(wanted: ModuleRequest) -> str:
    if wanted.algorithm is Algorithm.SMOOTHQUANT:
        return "smoothquant is offered by `quantizer: tensorrt`."
    if wanted.format.static_activation and wanted.component not in (
        Component.VISION_ENCODER,
        Component.PROJECTOR,
    ):
        return "static activations are offered for vision_encoder and projector, or by `quantizer: tensorrt`."
    if wanted.algorithm is Algorithm.RTN:
        return ""
    if wanted.component is not Component.DECODER:
        return "gptq and awq are offered for the decoder; use rtn."
    if wanted.format.bits == 8:
        return "8-bit weights are rounded to nearest; use rtn."
    if wanted.algorithm is Algorithm.AWQ and wanted.format.bits != 4:
        return "Intel Neural Compressor's AWQ searches at 4 bits only; use gptq or rtn."
    return ""


def _modelopt_reason(wanted: ModuleRequest) -> str:
    if wanted.algorithm is Algorithm.GPTQ:
        return "gptq is offered by `quantizer: neural-compressor`."
    if wanted.algorithm is Algorithm.SMOOTHQUANT and wanted.scheme is not Scheme.W8A8:
        return "smoothquant goes with w8a8."
    if wanted.algorithm is Algorithm.AWQ and (wanted.format.bits != 4 or wanted.format.group is None):
        return "awq goes with 4-bit groups (w4a16_g32, w4a16_g64, w4a16_g128)."
    return ""
