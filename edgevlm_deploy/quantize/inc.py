"""Intel Neural Compressor: GPTQ. The only file that imports it.

It works on one stack of layers at a time, on a copy, fed with inputs that were captured while the whole
model ran.
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
from edgevlm_deploy.errors import QuantizationError
from edgevlm_deploy.quantize import capture
from edgevlm_deploy.quantize.capture import Batch
from edgevlm_deploy.quantize.request import ModuleRequest, Request
from edgevlm_deploy.quantize.rounding import weight_of
from edgevlm_deploy.quantize.table import QuantizedLinear
from edgevlm_deploy.quantize.uniform import exact_scale, quantize_symmetric, round_to_scale

Floats = NDArray[np.float32]

_GPTQ_BLOCK = 128
_SMALLEST_COSINE = 0.5
"""Below this between dequantised and float weights, the integers are not those of this weight. It says
nothing of accuracy: 3 bits per channel still reach about 0.9."""


def gptq(model: Any, request: Request, batches: Sequence[Batch]) -> dict[str, QuantizedLinear]:
    """GPTQ keeps its integers; only the scales are rounded once more (by at most 2^−8 of themselves).

    Raises DataError without samples, QuantizationError when the library left a module out.
    """
    root = capture.layer_stack(model, next(iter(request)))
    inputs = _stack_inputs(model, root, batches)
    stack = copy.deepcopy(model.get_submodule(root))
    local = _inside(root, request)
    for name, wanted in local.items():
        _give_every_group_a_negative(stack.get_submodule(name).weight, wanted)
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
            stack = _convert(inc, inc.GPTQConfig, options, stack, local, inputs)
    modules = {}
    for name, (q, scale) in _unpacked(stack, root, request).items():
        wanted = request[name]
        block = wanted.format.block(q.shape[1])
        optimised = QuantizedLinear(q, scale, None, wanted.format.bits, block).dequantize()
        modules[name] = _with_exact_scale(name, optimised, scale, wanted, weight_of(model, name))
    return modules


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
    inc: Any, config_class: Any, options: Mapping[str, Any], stack: Any, local: Request, inputs: list[Any]
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


def _stack_inputs(model: Any, root: str, batches: Sequence[Batch]) -> list[dict[str, Any]]:
    """Tensor arguments of the stack per sample; a decoder is to keep no cache, an encoder has none."""
    known = inspect.signature(model.get_submodule(root).forward).parameters
    options = {"use_cache": False} if "use_cache" in known else {}
    inputs: list[dict[str, Any]] = []
    capture.watch(model, root, batches, lambda seen: inputs.append({**seen, **options}))
    return inputs


def _inside(root: str, request: Request) -> dict[str, ModuleRequest]:
    """The request by names inside `root`. Raises QuantizationError for a module outside of it."""
    outside = [name for name in request if not name.startswith(f"{root}.")]
    if outside:
        raise QuantizationError(
            f"{outside[0]} is not in the stack of layers {root}; use algorithm rtn for it."
        )
    return {name.removeprefix(f"{root}."): wanted for name, wanted in request.items()}


def _give_every_group_a_negative(weight: Any, wanted: ModuleRequest) -> None:
    """A symmetric GPTQ group without a negative weight gets half the range it needs (its scale is
    computed from max − 0); a negative hair's breadth, far below half a step, avoids that."""
    import torch

    with torch.no_grad():
        for columns in weight.split(wanted.format.block(weight.shape[1]), dim=1):
            low, where = columns.min(dim=1)
            rows = (low >= 0).nonzero().flatten()
            columns[rows, where[rows]] = -1e-6 * columns[rows].amax(dim=1)


def _unpacked(stack: Any, root: str, request: Request) -> dict[str, tuple[NDArray[np.int16], Floats]]:
    """Signed integers and fp16 scales (as float32) of every packed module, by their names in the model."""
    from neural_compressor.torch.algorithms.weight_only.modules import INCWeightOnlyLinear

    found = {}
    for local, module in stack.named_modules():
        name = f"{root}.{local}"
        if not isinstance(module, INCWeightOnlyLinear):
            continue
        wanted = request.get(name)
        if wanted is None:
            raise QuantizationError(f"{name}: quantised by {root}'s algorithm, but not asked for.")
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
