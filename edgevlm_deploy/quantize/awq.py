"""Activation-aware weight quantisation (AWQ): channel scales searched per layer, then ranges per group.

For every place where `folding` can move channel scales, s = mean|X_j|^α / √(max·min) with α of 0 to 0.95:
the weights are multiplied by s, rounded as they will be stored, and divided by s again; the α whose block
(attention, MLP, or the layer itself) comes out closest to the float one is folded into the model. Then each
group of weights gets the range, between all and 55 % of it, with the least error of the layer's output. Query
and key keep their range: an error there is multiplied in the scores.

Definition and constants: Lin et al., "AWQ" (MLSys 2024), and its authors' llm-awq. Differences: rounding is
`uniform`'s, the range is judged on all tokens (from their second moments), and the search takes the samples
of `layerwise.inputs`. Layers see what the float model gives them, never rounded inputs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from edgevlm_deploy.errors import QuantizationError
from edgevlm_deploy.quantize import capture, folding, layerwise
from edgevlm_deploy.quantize.capture import Batch
from edgevlm_deploy.quantize.folding import Fold
from edgevlm_deploy.quantize.layerwise import output_of
from edgevlm_deploy.quantize.request import ModuleRequest, Request
from edgevlm_deploy.quantize.rounding import round_to_nearest, weight_of
from edgevlm_deploy.quantize.table import QuantizedLinear
from edgevlm_deploy.quantize.uniform import exact_scale

ALPHAS = tuple(step / 20 for step in range(20))
SMALLEST_SCALE = 1e-4
RANGES = tuple(1 - step / 20 for step in range(10))
KEEP_RANGE = ("q_proj", "k_proj")

Quantized = tuple[dict[str, QuantizedLinear], set[str]]
"""Modules, and the names of the parameters that folding changed."""


@dataclass(frozen=True)
class Loss:
    """Σ over tokens of weight · Σ|difference|^power, between what a block gives and what it gave in floats.

    token_weights: name of the block → float32 [tokens of all samples]; None weighs all tokens alike.
    """

    power: int = 2
    token_weights: Callable[[str], Any] | None = None

    def __call__(self, got: Any, expected: Any, weights: Any) -> float:
        """got, expected [samples, T, D]; weights [samples · T] or None."""
        per_token = (got - expected).abs().pow(self.power).sum(dim=-1).flatten()
        return float((per_token if weights is None else per_token * weights).sum())


@dataclass
class _Inputs:
    """What is kept of the inputs [T, K] of a linear layer."""

    tokens: int = 0
    absolute: Any = None
    """Σ|x| per channel, [K]."""
    moments: Any = None
    """Σ x xᵀ within each group, [groups, block, block]."""

    def add(self, x: Any, block: int) -> None:
        x = x.reshape(-1, x.shape[-1])
        groups = x.reshape(x.shape[0], -1, block).transpose(0, 1)  # [groups, T, block]
        absolute, moments = x.abs().sum(dim=0), groups.transpose(1, 2) @ groups
        self.tokens += x.shape[0]
        self.absolute = absolute if self.absolute is None else self.absolute + absolute
        self.moments = moments if self.moments is None else self.moments + moments

    def divide(self, scale: Any) -> None:
        """By what was folded into the layer before, [K]."""
        self.absolute = self.absolute / scale
        groups = scale.reshape(self.moments.shape[0], -1)
        self.moments = self.moments / (groups[:, :, None] * groups[:, None, :])


@dataclass
class _Seen:
    """One transformer layer while the chosen samples pass through it."""

    inputs: dict[str, _Inputs] = field(default_factory=dict)
    """Requested linear layer → its inputs."""
    calls: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    """Block whose output is judged → arguments per call."""
    outputs: list[Any] = field(default_factory=list)
    """Hidden states behind the layer, per call."""


def quantize(model: Any, request: Request, batches: Iterable[Batch]) -> Quantized:
    """Fold and quantise the requested linear layers of one stack; `model` is changed.

    Raises DataError without samples, QuantizationError when there is no norm to fold into.
    """
    return search(model, request, batches, Loss())


def places(model: Any, request: Request) -> dict[str, list[Fold]]:
    """Transformer layer → the folds in it that feed a requested module, in order; [] where there is none."""
    found: dict[str, list[Fold]] = {layer: [] for name in request if (layer := folding.layer_of(name))}
    for fold in folding.folds(name for name, _ in model.named_modules()):
        layer = folding.layer_of(fold.source)
        if layer in found and any(target in request for target in fold.targets):
            found[layer].append(fold)
    if not any(found.values()):
        raise QuantizationError(
            f"{next(iter(request))}: no norm is known whose output goes only there; use gptq, hqq or rtn."
        )
    return found


def judged(fold: Fold) -> str:
    """The module whose output is compared: the layer itself, or what several layers have in common."""
    if len(fold.targets) == 1:
        return fold.targets[0]
    return fold.targets[0].rpartition(".")[0]


def search(model: Any, request: Request, batches: Iterable[Batch], loss: Loss) -> Quantized:
    """AWQ with another loss, whose weights are those of the samples that `layerwise.inputs` takes. See
    `quantize`."""
    import torch

    from edgevlm_deploy import paging

    modules: dict[str, QuantizedLinear] = {}
    changed: set[str] = set()
    arguments: list[dict[str, Any]] = []
    with torch.no_grad():
        found = places(model, request)
        for layer in layerwise.in_order(found):
            folds = found.get(layer, [])
            own = {name: wanted for name, wanted in request.items() if folding.layer_of(name) == layer}
            if not arguments:
                arguments = layerwise.inputs(model, layer, batches)
            with paging.resident(model, layer):
                seen = _watched(model, layer, own, [judged(fold) for fold in folds], arguments)
                # All scales are found on the float layer; folding changes nothing that it computes.
                scales = [_channel_scale(model, fold, own, seen, loss) for fold in folds]
            for fold, scale in zip(folds, scales, strict=True):
                changed.update(folding.apply(model, fold, scale))
                for name in own.keys() & set(fold.targets):
                    seen.inputs[name].divide(scale)
            for name, wanted in own.items():
                modules[name] = _clipped(name, model, wanted, seen.inputs[name].moments)
            arguments = [
                {**one, "hidden_states": out} for one, out in zip(arguments, seen.outputs, strict=True)
            ]
    return modules, changed


def _watched(
    model: Any, layer: str, request: Request, blocks: Iterable[str], arguments: Sequence[dict[str, Any]]
) -> _Seen:
    """Run `layer` on all samples."""
    seen = _Seen({name: _Inputs() for name in request}, {name: [] for name in blocks})

    def add_input(name: str) -> Callable[[dict[str, Any]], None]:
        block = request[name].format.block(model.get_submodule(name).weight.shape[1])
        return lambda found: seen.inputs[name].add(found["input"], block)

    watched = [(name, add_input(name)) for name in request]
    watched += [(name, calls.append) for name, calls in seen.calls.items()]
    with capture.watching(model, watched):
        for one in arguments:
            seen.outputs.append(output_of(model.get_submodule(layer)(**one)))
    return seen


def _channel_scale(model: Any, fold: Fold, request: Request, seen: _Seen, loss: Loss) -> Any:
    """[K]: the scales whose α has the least loss."""
    import torch

    targets = [name for name in fold.targets if name in request]
    block = model.get_submodule(judged(fold))
    weights = loss.token_weights(judged(fold)) if loss.token_weights else None
    calls = seen.calls[judged(fold)]
    if len(calls[0]) == 1:  # token by token: all samples at once
        (name,) = calls[0]
        calls = [{name: torch.cat([call[name].flatten(0, 1) for call in calls])[None]}]
    expected = [output_of(block(**call)) for call in calls]
    shares = [None] * len(calls)
    if weights is not None:
        shares = weights.split([one.shape[0] * one.shape[1] for one in expected])
    inputs = seen.inputs[targets[0]]
    before = {name: model.get_submodule(name).weight.clone() for name in targets}
    best, least = None, float("inf")
    for alpha in ALPHAS:
        scale = (inputs.absolute / inputs.tokens).pow(alpha).clamp(min=SMALLEST_SCALE)
        scale = scale / (scale.max() * scale.min()).sqrt()
        for name in targets:
            rounded = round_to_nearest((before[name] * scale).numpy(), request[name]).dequantize()
            model.get_submodule(name).weight.copy_(torch.from_numpy(rounded) / scale)
        total = sum(
            loss(output_of(block(**call)), wanted, share)
            for call, wanted, share in zip(calls, expected, shares, strict=True)
        )
        if total < least:
            best, least = scale, total
    for name, weight in before.items():
        model.get_submodule(name).weight.copy_(weight)
    if best is None:
        raise QuantizationError(f"{judged(fold)}: its output is not finite on the calibration samples.")
    return best


def _clipped(name: str, model: Any, wanted: ModuleRequest, moments: Any) -> QuantizedLinear:
    """Round to nearest, within the range per row and group that leaves the least error of the output.

    moments: Σ x xᵀ [groups, block, block]. A row's error is d · moments · d with d the change of its weights.
    """
    import torch

    weight = weight_of(model, name)
    plain = round_to_nearest(weight, wanted)
    if name.rpartition(".")[2] in KEEP_RANGE:
        return plain
    limit = 2 ** (wanted.format.bits - 1) - 1
    groups = torch.from_numpy(weight.copy()).reshape(weight.shape[0], -1, plain.block).transpose(0, 1)
    absmax = groups.abs().amax(dim=2, keepdim=True)  # [groups, N, 1]
    q, scale, least = torch.zeros_like(groups), torch.zeros_like(absmax), torch.full_like(absmax, torch.inf)
    for share in RANGES:
        step = torch.from_numpy(exact_scale(absmax.double().numpy() * share / limit))
        rounded = (groups / step).round().clamp(-limit, limit)
        difference = groups - rounded * step
        error = ((difference @ moments) * difference).sum(dim=2, keepdim=True)
        better = error < least
        q, scale = torch.where(better, rounded, q), torch.where(better, step, scale)
        least = torch.where(better, error, least)
    return QuantizedLinear(
        q=q.transpose(0, 1).reshape(weight.shape).to(torch.int8).numpy(),
        scale=np.ascontiguousarray(scale[..., 0].T.numpy()),
        zero_point=None,
        bits=plain.bits,
        block=plain.block,
    )
