"""AutoRound: learn for every weight whether it is rounded up or down, and for every group how far it reaches.

q = round(w / s + v) with v between −½ and ½, and s = share · max|w| / limit with a share of ½ to 1 per group.
v and the shares of all requested modules of one transformer layer are learnt together by signed gradient
descent on the squared error of the layer's output; rounding passes gradients through unchanged. What a layer
is given are the outputs of the quantised layers before it, what it is to give are those of the float model.

Definition and constants: Cheng et al., "Optimize Weight Rounding via Signed Gradient Descent for the
Quantization of LLMs" (2023): 200 steps, a step size that falls from 1/200 to 0, 8 samples a step. Scales are
`uniform`'s already while learning, and a layer that did not become better than rounding to nearest on all
samples stays with that.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from edgevlm_deploy.errors import QuantizationError
from edgevlm_deploy.quantize import folding, layerwise
from edgevlm_deploy.quantize.capture import Batch
from edgevlm_deploy.quantize.layerwise import output_of
from edgevlm_deploy.quantize.request import ModuleRequest, Request
from edgevlm_deploy.quantize.table import QuantizedLinear
from edgevlm_deploy.quantize.uniform import blocks, exact_scale

STEPS = 200
SAMPLES_PER_STEP = 8
SMALLEST_SHARE = 0.5
SEED = 0

Arguments = Sequence[dict[str, Any]]
"""Of one transformer layer, per batch of samples of one length."""


def quantize(model: Any, request: Request, batches: Iterable[Batch]) -> dict[str, QuantizedLinear]:
    """Integers of the requested linear layers of one stack; `model` stays as it is.

    Raises DataError without samples, QuantizationError for a module outside of a stack of layers or when an
    output is not finite.
    """
    import torch

    from edgevlm_deploy import paging

    layers = dict.fromkeys(map(folding.layer_of, request))
    if "" in layers:
        raise QuantizationError("autoround learns layer by layer; use rtn for modules outside of layers.")
    made: dict[str, QuantizedLinear] = {}
    given: Arguments = []
    generator = torch.Generator().manual_seed(SEED)
    for name in layerwise.in_order(list(layers)):
        if not given:
            given = layerwise.inputs(model, name, batches)
            floats = given
        with paging.resident(model, name) as layer:
            expected = _outputs(layer, floats, {})
            own = {
                module: _Rounding(model.get_submodule(module).weight, wanted)
                for module, wanted in request.items()
                if folding.layer_of(module) == name
            }
            roundings = {f"{module.removeprefix(f'{name}.')}.weight": one for module, one in own.items()}
            if roundings:
                _learn(name, layer, roundings, given, expected, generator)
            made |= {module: one.linear() for module, one in own.items()}
            given = _next(given, _outputs(layer, given, _weights(roundings)))
        floats = _next(floats, expected)
    return {name: made[name] for name in request}


class _Rounding:
    """What is learnt for one weight [N, K], and the weights that it gives."""

    def __init__(self, weight: Any, wanted: ModuleRequest) -> None:
        import torch

        self.weight = weight.detach()
        self.bits, self.block = wanted.format.bits, wanted.format.block(weight.shape[1])
        self.group = torch.arange(weight.shape[1]) // self.block  # of each column
        starts = np.arange(0, weight.shape[1], self.block)
        self.absmax = torch.from_numpy(np.maximum.reduceat(np.abs(self.weight.numpy()), starts, axis=1))
        self.limit = 2 ** (self.bits - 1) - 1
        self.offset = torch.zeros_like(self.weight, requires_grad=True)
        self.share = torch.ones(weight.shape[0], blocks(weight.shape[1], self.block), requires_grad=True)

    def step(self, size: float) -> None:
        """Against the sign of the gradient, and back into the allowed ranges."""
        import torch

        with torch.no_grad():
            for value, low, high in ((self.offset, -0.5, 0.5), (self.share, SMALLEST_SHARE, 1.0)):
                value -= size * value.grad.sign()
                value.clamp_(low, high)
                value.grad = None

    def reset(self) -> None:
        """To rounding to nearest."""
        import torch

        with torch.no_grad():
            self.offset.zero_()
            self.share.fill_(1.0)

    def integers(self) -> tuple[Any, Any]:
        """(q, scale) as float tensors that pass gradients to offset and share."""
        import torch

        smooth = self.absmax * self.share / self.limit
        exact = torch.from_numpy(exact_scale(smooth.detach().double().numpy()))
        scale = smooth + (exact - smooth).detach()
        ratio = self.weight / scale[:, self.group] + self.offset
        q = ratio + (ratio.round() - ratio).detach()
        return q.clamp(-self.limit, self.limit), scale

    def dequantized(self) -> Any:
        q, scale = self.integers()
        return q * scale[:, self.group]

    def linear(self) -> QuantizedLinear:
        q, scale = (value.detach() for value in self.integers())
        # The detour through `smooth` may cost the last bit.
        exact = exact_scale(scale.double().numpy())
        return QuantizedLinear(q.round().numpy().astype(np.int8), exact, None, self.bits, self.block)


def _learn(
    name: str,
    layer: Any,
    roundings: Mapping[str, _Rounding],
    given: Arguments,
    expected: Sequence[Any],
    generator: Any,
) -> None:
    import torch

    before = _error(layer, roundings, given, expected)
    sizes = torch.tensor([float(one.shape[0]) for one in expected])
    for step in range(STEPS):
        number = int(torch.multinomial(sizes, 1, generator=generator))
        rows = torch.randperm(expected[number].shape[0], generator=generator)[:SAMPLES_PER_STEP]
        arguments = {**given[number], "hidden_states": given[number]["hidden_states"][rows]}
        with torch.enable_grad():
            got = output_of(torch.func.functional_call(layer, _weights(roundings), kwargs=arguments))
            (got - expected[number][rows]).pow(2).mean().backward()
        for one in roundings.values():
            one.step((1 - step / STEPS) / STEPS)
    after = _error(layer, roundings, given, expected)
    if not np.isfinite(before):
        raise QuantizationError(f"{name}: its output is not finite on the calibration samples.")
    if not after < before:
        for one in roundings.values():
            one.reset()


def _error(
    layer: Any, roundings: Mapping[str, _Rounding], given: Arguments, expected: Sequence[Any]
) -> float:
    got = _outputs(layer, given, _weights(roundings))
    return sum(float((one - wanted).pow(2).sum()) for one, wanted in zip(got, expected, strict=True))


def _outputs(layer: Any, given: Arguments, weights: Mapping[str, Any]) -> list[Any]:
    import torch

    with torch.no_grad():
        return [
            output_of(torch.func.functional_call(layer, dict(weights), kwargs=one)).detach() for one in given
        ]


def _weights(roundings: Mapping[str, _Rounding]) -> dict[str, Any]:
    return {name: one.dequantized() for name, one in roundings.items()}


def _next(given: Arguments, hidden: Sequence[Any]) -> list[dict[str, Any]]:
    return [{**one, "hidden_states": out} for one, out in zip(given, hidden, strict=True)]
