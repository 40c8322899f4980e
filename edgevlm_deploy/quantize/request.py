"""Which module gets which precision: the recipe's components and overrides, spelled out per module."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from edgevlm_deploy.errors import PlanError
from edgevlm_deploy.quantize.schemes import WeightFormat, formats, weight_format
from edgevlm_deploy.recipe import Algorithm, Component, ModuleOverride, Precision, Quantizer, Scheme
from edgevlm_deploy.target import Backend


@dataclass(frozen=True)
class ModuleRequest:
    component: Component
    scheme: Scheme
    algorithm: Algorithm
    format: WeightFormat
    """What the scheme means on the device that the plan is for."""


DATA_FREE = frozenset({Algorithm.RTN, Algorithm.HQQ})
"""They look at one weight matrix at a time, and at nothing else."""

ACTIVATION_AWARE = frozenset({Algorithm.AWQ, Algorithm.MBQ})
"""They search channel scales, and fold them into what precedes a layer."""

STACKS = (Component.DECODER, Component.VISION_ENCODER, Component.TEXT_ENCODER)
"""Components that are a stack of transformer layers, which GPTQ, AWQ and AutoRound go through one by one."""

Request = Mapping[str, ModuleRequest]
"""Module name in the source model → what is asked for. fp16 modules are not in it."""


def resolve(
    components: Mapping[Component, Precision],
    overrides: Sequence[ModuleOverride],
    modules: Mapping[str, Sequence[str]],
    quantizer: Quantizer,
    backend: Backend = Backend.ONNXRUNTIME,
    accelerator: str = "cpu",
) -> dict[str, ModuleRequest]:
    """Precision per module; later overrides win.

    modules: component → names of its weight matrices (linear layers, or the embedding).
    Raises PlanError with every problem at once: a component the model does not have, an override that
    matches nothing, a scheme that the accelerator refuses, a scheme or algorithm that `quantizer` does not
    offer for a component.
    """
    offered = formats(backend, accelerator)
    problems = [
        f"components.{component.value}: this model has no such component (it has {', '.join(modules)})."
        for component in components
        if component.value not in modules
    ]
    wishes: dict[str, tuple[Component, Precision]] = {}
    for component_name, names in modules.items():
        component = Component(component_name)
        precision = components.get(component, Precision())
        for name in names:
            wishes[name] = component, precision
    for override in overrides:
        matches = [name for name in wishes if fnmatchcase(name, override.pattern)]
        if not matches:
            example = next(iter(wishes), "(none)")
            problems.append(
                f"modules: `{override.pattern}` matches no module; a name looks like `{example}`."
            )
        for name in matches:
            precision = Precision(scheme=override.scheme, algorithm=override.algorithm)
            wishes[name] = wishes[name][0], precision
    wishes = {name: wish for name, wish in wishes.items() if wish[1].scheme is not Scheme.FP16}
    problems += _refused(wishes.values(), offered, f"{backend.value} on its {accelerator}")
    request = {
        name: ModuleRequest(
            component,
            precision.scheme,
            precision.algorithm,
            weight_format(precision, component, offered),
        )
        for name, (component, precision) in wishes.items()
        if precision.scheme in offered
    }
    problems += _unsupported(request, quantizer, backend)
    if problems:
        raise PlanError("The recipe's precision cannot be met:\n  " + "\n  ".join(problems))
    return request


def check_columns(request: Request, columns: Mapping[str, int]) -> None:
    """Groups that do not divide a module's K columns: rounding, HQQ and GPTQ end with a short group.
    AWQ's search does not (it reshapes the matrix to groups), and not every runtime stores one.

    Raises PlanError that names every such module.
    """
    problems = []
    for name, wanted in request.items():
        group = wanted.format.group
        if group is None or columns[name] % group == 0:
            continue
        needs = f"groups of {group} need a multiple of that many columns, it has {columns[name]}"
        if wanted.format.whole_groups:
            problems.append(f"{name}: on this target {needs}. Override it with a per-channel scheme.")
        elif wanted.algorithm in ACTIVATION_AWARE:
            mending = "Override it with `algorithm: rtn` or a per-channel scheme."
            problems.append(f"{name}: {wanted.algorithm.value} with {needs}. {mending}")
    if problems:
        raise PlanError("Group sizes do not fit:\n  " + "\n  ".join(problems))


def _refused(
    wishes: Iterable[tuple[Component, Precision]], offered: Mapping[Scheme, WeightFormat], device: str
) -> list[str]:
    """One sentence per (component, scheme) that the accelerator refuses."""
    accepted = ", ".join(scheme.value for scheme in offered)
    refused = dict.fromkeys((part, one.scheme) for part, one in wishes if one.scheme not in offered)
    return [
        f"{part.value} {scheme.value}: {device} refuses it; it accepts {accepted} and fp16."
        for part, scheme in refused
    ]


def _unsupported(request: Request, quantizer: Quantizer, backend: Backend) -> list[str]:
    """One sentence per distinct (component, scheme, algorithm) that cannot be had."""
    reason = _neural_compressor_reason if quantizer is Quantizer.NEURAL_COMPRESSOR else _modelopt_reason
    problems = []
    for wanted in dict.fromkeys(request.values()):
        sentence = _embedding_reason(wanted) or _zero_point_reason(wanted, backend) or reason(wanted)
        if sentence:
            asked = f"{wanted.component.value} {wanted.scheme.value}/{wanted.algorithm.value}"
            problems.append(f"{asked}: {sentence}")
    if {wanted.algorithm for wanted in request.values()} >= ACTIVATION_AWARE:
        problems.append("decoder: awq and mbq cannot be mixed, both fold scales into the same norms.")
    return problems


def _embedding_reason(wanted: ModuleRequest) -> str:
    is_offered = wanted.scheme is Scheme.W8A16 and wanted.algorithm is Algorithm.RTN
    if wanted.component is Component.EMBEDDING and not is_offered:
        return "an embedding can be fp16 or w8a16 with algorithm rtn."
    return ""


def _zero_point_reason(wanted: ModuleRequest, backend: Backend) -> str:
    if wanted.format.symmetric:
        return ""
    if backend is not Backend.ONNXRUNTIME:
        return f"hqq gives zero-points, {backend.value} takes symmetric weights only; use gptq or rtn."
    if wanted.format.static_activation:
        return "hqq gives zero-points, int8 products take symmetric weights only; use rtn."
    return ""


def _neural_compressor_reason(wanted: ModuleRequest) -> str:
    if wanted.algorithm is Algorithm.SMOOTHQUANT:
        return _smoothquant_reason(wanted)
    if wanted.format.static_activation and wanted.component not in (
        Component.VISION_ENCODER,
        Component.TEXT_ENCODER,
        Component.PROJECTOR,
    ):
        return (
            "static activations are offered for vision_encoder, text_encoder and projector, or by "
            "`quantizer: tensorrt`."
        )
    if wanted.algorithm is Algorithm.RTN:
        return ""
    if wanted.format.bits == 8:
        return "8-bit weights are rounded to nearest; use rtn."
    if wanted.algorithm is Algorithm.HQQ:
        return ""
    if wanted.component not in STACKS:
        names = ", ".join(component.value for component in STACKS)
        return f"{wanted.algorithm.value} works on stacks of layers ({names}); use hqq or rtn."
    if wanted.algorithm is Algorithm.MBQ and wanted.component is not Component.DECODER:
        return (
            "mbq balances the gradients of picture and answer tokens inside one stack of layers, and an "
            "encoder sees one of the two; use awq."
        )
    return ""


_SMOOTHQUANT_FORMAT = (
    "smoothquant goes with w8a8 on a target whose inputs are calibrated (onnxruntime, tensorrt)."
)


def _smoothquant_reason(wanted: ModuleRequest) -> str:
    if wanted.component is not Component.VISION_ENCODER:
        return "smoothquant is offered for the vision encoder, or by `quantizer: tensorrt`."
    return "" if wanted.format.static_activation else _SMOOTHQUANT_FORMAT


def _modelopt_reason(wanted: ModuleRequest) -> str:
    if wanted.algorithm not in (Algorithm.RTN, Algorithm.AWQ, Algorithm.SMOOTHQUANT):
        return f"{wanted.algorithm.value} is offered by `quantizer: neural-compressor`."
    if wanted.algorithm is Algorithm.SMOOTHQUANT and not wanted.format.static_activation:
        return _SMOOTHQUANT_FORMAT
    if wanted.algorithm is Algorithm.AWQ and (wanted.format.bits != 4 or wanted.format.group is None):
        return "awq goes with 4-bit groups (w4a16_g32, w4a16_g64, w4a16_g128)."
    return ""
