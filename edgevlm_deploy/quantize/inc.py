"""Intel Neural Compressor: GPTQ. The only file that imports it.

It works on one layer at a time, on a copy, fed with inputs that were captured while the whole model ran.
"""

from __future__ import annotations

import contextlib
import copy
import inspect
import re
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any
from unittest import mock

import numpy as np
from numpy.typing import NDArray

from edgevlm_deploy import quiet
from edgevlm_deploy.errors import DataError, QuantizationError
from edgevlm_deploy.quantize import capture, folding, layerwise
from edgevlm_deploy.quantize.capture import Batch
from edgevlm_deploy.quantize.request import ModuleRequest, Request
from edgevlm_deploy.quantize.rounding import weight_of
from edgevlm_deploy.quantize.table import QuantizedLinear
from edgevlm_deploy.quantize.uniform import exact_scale, quantize_symmetric, round_to_scale

Floats = NDArray[np.float32]

_ALONE = "layers.0."
_GPTQ_BLOCK = 128
_SMALLEST_COSINE = 0.5
"""Below this between dequantised and float weights, the integers are not those of this weight. It says
nothing of accuracy: 3 bits per channel still reach about 0.9."""


def gptq(model: Any, request: Request, batches: Sequence[Batch]) -> dict[str, QuantizedLinear]:
    """GPTQ keeps its integers; only the scales are rounded once more (by at most 2^−8 of themselves).

    A layer sees what the quantised layers before it give.
    Raises DataError without samples, QuantizationError when the library left a module out.
    """
    from edgevlm_deploy import paging

    layers = _layers(request)
    arguments: list[dict[str, Any]] = []
    found: dict[str, QuantizedLinear] = {}
    for name in layerwise.in_order(layers):
        arguments = arguments or capture.calls(model, name, batches)
        if not arguments:
            raise DataError(f"No calibration sample reaches {name}; does every sample lack a picture?")
        with paging.resident(model, name) as layer:
            own = {module.removeprefix(f"{name}."): wanted for module, wanted in layers.get(name, {}).items()}
            made = _layer(layer, own, arguments, name) if own else {}
            outputs = _outputs(layer, made, arguments)
        found |= {f"{name}.{module}": linear for module, linear in made.items()}
        arguments = [{**one, "hidden_states": out} for one, out in zip(arguments, outputs, strict=True)]
    return {name: found[name] for name in request}


def _layers(request: Request) -> dict[str, dict[str, ModuleRequest]]:
    """Transformer layer → what is asked of it. Raises QuantizationError for a module outside of one."""
    layers: dict[str, dict[str, ModuleRequest]] = {}
    for name, wanted in request.items():
        layer = folding.layer_of(name)
        if not layer:
            raise QuantizationError(f"{name} is not in a stack of layers; use algorithm rtn for it.")
        layers.setdefault(layer, {})[name] = wanted
    return layers


def _layer(
    layer: Any, request: Request, arguments: Sequence[dict[str, Any]], name: str
) -> dict[str, QuantizedLinear]:
    """One layer by itself: module in the layer → its integers."""
    alone = _alone(copy.deepcopy(layer))
    local = {f"{_ALONE}{module}": wanted for module, wanted in request.items()}
    for module, wanted in local.items():
        _give_every_group_a_negative(alone.get_submodule(module).weight, wanted)
    with _library() as inc:
        from neural_compressor.torch.algorithms.weight_only.gptq import RAWGPTQuantizer

        # Its own lookup falls back to the first configuration for a module that has none, which
        # quantises modules that were to stay float.
        lookup = mock.patch.object(
            RAWGPTQuantizer, "get_layer_config", lambda self, name: self.weight_config.get(name)
        )
        # `model_path` is only looked at for being non-empty. `act_order` would permute columns.
        options = {"model_path": ".", "block_size": _GPTQ_BLOCK, "act_order": False}
        with lookup:
            alone = _convert(inc, inc.GPTQConfig, options, alone, local, arguments)
    made = {}
    for module, (q, scale) in _unpacked(alone, local).items():
        wanted, own = local[module], module.removeprefix(_ALONE)
        block = wanted.format.block(q.shape[1])
        weight = QuantizedLinear(q, scale, None, wanted.format.bits, block).dequantize()
        made[own] = _with_exact_scale(f"{name}.{own}", weight, scale, wanted, weight_of(layer, own))
    return made


def _alone(layer: Any) -> Any:
    """A stack of this layer alone, which takes the layer's own arguments; the library looks for stacks.

    It keeps tensors given by name, and anything given by place: a mask that is None goes by place.
    """
    import torch

    parameters = inspect.signature(layer.forward).parameters.values()
    places = [one.name for one in parameters if one.default is one.empty and one.kind is not one.VAR_KEYWORD]

    class Stack(torch.nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.layers = torch.nn.ModuleList([layer])

        def forward(self, **arguments: Any) -> Any:
            by_place = [arguments.pop(name) for name in places]
            return self.layers[0](*by_place, **arguments)

    return Stack()


def _outputs(
    layer: Any, made: Mapping[str, QuantizedLinear], arguments: Sequence[dict[str, Any]]
) -> list[Any]:
    """Hidden states [1, T, D] behind the layer with its quantised weights, per sample."""
    import torch

    given = {f"{module}.weight": torch.from_numpy(linear.dequantize()) for module, linear in made.items()}
    with torch.no_grad():
        return [layerwise.output_of(torch.func.functional_call(layer, given, (), one)) for one in arguments]


def _with_exact_scale(
    name: str, weight: Floats, scale: Floats, wanted: ModuleRequest, original: Floats
) -> QuantizedLinear:
    """Integers of `weight` with the found scales, rounded once. Groups whose scale fp16 holds only coarsely
    (Neural Compressor stores fp16) are next to nothing, and take round-to-nearest from `original`."""
    bits, columns = wanted.format.bits, weight.shape[1]
    block = wanted.format.block(columns)
    plain_q, plain_scale = quantize_symmetric(original, bits, block)
    tiny = _is_tiny(scale)
    rounded = np.where(tiny, plain_scale, exact_scale(scale))
    q = round_to_scale(weight, rounded, bits, block)
    q = np.where(tiny[:, np.arange(columns) // block], plain_q, q)
    linear = QuantizedLinear(q, rounded, None, bits, block)
    cosine = _cosine(linear.dequantize(), original)
    if cosine < _SMALLEST_COSINE:
        raise QuantizationError(
            f"{name}: the integers of {wanted.algorithm.value} do not resemble its weights "
            f"(cosine {cosine:.2f}). Use more bits, smaller groups or algorithm rtn for this module."
        )
    return linear


def _is_tiny(scale: Floats) -> NDArray[np.bool_]:
    tiny: NDArray[np.bool_] = scale < np.finfo(np.float16).smallest_normal
    return tiny


def _cosine(first: Floats, second: Floats) -> float:
    length = float(np.linalg.norm(first)) * float(np.linalg.norm(second))
    return float(np.vdot(first, second)) / length if length else 1.0


def _convert(
    inc: Any,
    config_class: Any,
    options: Mapping[str, Any],
    stack: Any,
    local: Request,
    inputs: Sequence[dict[str, Any]],
) -> Any:
    """prepare → calibrate → convert, on a stack of layers that is changed in place."""
    import torch

    def config(wanted: ModuleRequest) -> Any:
        group = -1 if wanted.format.group is None else wanted.format.group
        return config_class(bits=wanted.format.bits, group_size=group, use_sym=True, **options)

    most_common = Counter(local.values()).most_common(1)[0][0]
    whole = config(most_common)
    for name, module in stack.named_modules():
        if isinstance(module, torch.nn.Linear) and local.get(name) != most_common:
            exactly = f"^{re.escape(name)}$"
            wanted = local.get(name)
            whole.set_local(exactly, config(wanted) if wanted else config_class(dtype="fp32", **options))
    prepared = inc.prepare(stack, whole, example_inputs=inputs[0])
    with torch.no_grad():
        for arguments in inputs:
            prepared(**arguments)
    return inc.convert(prepared)


def _give_every_group_a_negative(weight: Any, wanted: ModuleRequest) -> None:
    """A symmetric GPTQ group without a negative weight gets half the range it needs (its scale is
    computed from max − 0); a negative hair's breadth, far below half a step, avoids that."""
    import torch

    with torch.no_grad():
        for columns in weight.split(wanted.format.block(weight.shape[1]), dim=1):
            low, where = columns.min(dim=1)
            rows = (low >= 0).nonzero().flatten()
            columns[rows, where[rows]] = -1e-6 * columns[rows].amax(dim=1)


def _unpacked(stack: Any, request: Request) -> dict[str, tuple[NDArray[np.int16], Floats]]:
    """Signed integers and fp16 scales (as float32) of every packed module, by their names in the stack."""
    from neural_compressor.torch.algorithms.weight_only.modules import INCWeightOnlyLinear

    found = {}
    for name, module in stack.named_modules():
        if not isinstance(module, INCWeightOnlyLinear):
            continue
        wanted = request.get(name)
        if wanted is None:
            raise QuantizationError(f"{name}: quantised by its neighbours' algorithm, but not asked for.")
        unpacked = module.unpack()
        middle = 2 ** (wanted.format.bits - 1)
        if module.bits != wanted.format.bits or module.group_size != wanted.format.block(module.in_features):
            raise QuantizationError(
                f"{name}: asked for {wanted.scheme.value}, got {module.bits} bits in {module.group_size}."
            )
        if unpacked["g_idx"] is not None or not bool((unpacked["zp"] == middle).all()):
            raise QuantizationError(
                f"{name}: asked for symmetric weights in order, got zero-points or g_idx."
            )
        q = unpacked["int_weight"].numpy().astype(np.int16) - np.int16(middle)
        found[name] = (q, unpacked["scales"].float().numpy())
    missing = sorted(set(request) - set(found))
    if missing:
        raise QuantizationError(f"Neural Compressor left {len(missing)} modules untouched: {missing[0]}, …")
    return found


@contextlib.contextmanager
def _library() -> Iterator[Any]:
    """`neural_compressor.torch.quantization`; for its errors see `quiet.toolkit`."""
    with quiet.toolkit("Intel Neural Compressor", "Quantising", "compile", QuantizationError):
        from neural_compressor.common import set_workspace

        # It creates its workspace while being imported, by default in the working directory.
        set_workspace(tempfile.gettempdir())
        from neural_compressor.torch import quantization

        yield quantization
