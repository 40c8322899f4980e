"""NVIDIA Model Optimizer, which is how models are quantised for TensorRT. The only file that imports it.

It runs on the whole model. What is taken from it are its calibrated numbers: the range of every input,
and the scales that AWQ or SmoothQuant put on the input channels (`pre_quant_scale`). Those scales are
folded into the preceding norm, so that the exported graph needs no extra multiplication. Layers that
read the same norm must then share one scale: the mean over them, as its own exporters do it. A layer
that no fold reaches (its input has passed attention or GELU) keeps its weights and plain ranges.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from edgevlm_deploy import quiet
from edgevlm_deploy.errors import DataError, QuantizationError
from edgevlm_deploy.quantize import capture, folding
from edgevlm_deploy.quantize.capture import Batch
from edgevlm_deploy.quantize.quantized_model import QuantizedModel
from edgevlm_deploy.quantize.request import ModuleRequest, Request
from edgevlm_deploy.quantize.rounding import round_to_nearest, weight_of
from edgevlm_deploy.quantize.table import QuantizedLinear, QuantizedTable
from edgevlm_deploy.recipe import Algorithm

_ALGORITHMS: dict[Algorithm, dict[str, Any]] = {
    # INT8_DEFAULT_CFG
    Algorithm.RTN: {"method": "max"},
    # INT8_SMOOTHQUANT_CFG, but with the paper's α: its default of 1 moves all of the range into the weights.
    Algorithm.SMOOTHQUANT: {"method": "smoothquant", "alpha": 0.5},
    # INT4_AWQ_CFG
    Algorithm.AWQ: {"method": "awq_lite", "alpha_step": 0.1},
}


@dataclass(frozen=True)
class _Calibrated:
    """What ModelOpt found for one linear layer.

    channel_scale  [K] or None   the input is multiplied by it, the weight's columns are divided by it
    input_absmax   [K] or None   largest |x| before that multiplication; None when the input stays float
    """

    channel_scale: Any
    input_absmax: Any


def quantize(
    model: Any, load_model: Callable[[], Any], request: Request, batches: Sequence[Batch]
) -> QuantizedModel:
    """Quantise `model` (a float32 copy, which is changed). See `edgevlm_deploy.quantize.quantize`."""
    calibrated: dict[str, _Calibrated] = {}
    for algorithm in _ALGORITHMS:
        part = {
            name: wanted
            for name, wanted in request.items()
            if wanted.algorithm is algorithm
            and (algorithm is not Algorithm.RTN or wanted.format.static_activation)
        }
        if part:
            calibrated.update(_calibrate(load_model(), algorithm, part, batches))
    channel_scales, changed = _fold(model, calibrated)
    modules: dict[str, QuantizedLinear] = {}
    for name, wanted in request.items():
        scale = None
        if wanted.format.static_activation:
            absmax = calibrated[name].input_absmax * channel_scales.get(name, 1.0)
            scale = float(absmax.max()) / 127
        modules[name] = round_to_nearest(weight_of(model, name), wanted, scale)
    in_table = {f"{name}.weight" for name in modules}
    floats = {
        name: model.get_parameter(name).detach().float().numpy().copy() for name in sorted(changed - in_table)
    }
    return QuantizedModel(QuantizedTable(modules), floats)


def _fold(model: Any, calibrated: dict[str, _Calibrated]) -> tuple[dict[str, Any], set[str]]:
    """Fold what can be folded, in place. Returns channel scale per folded module, and changed parameters."""
    import torch

    channel_scales: dict[str, Any] = {}
    changed: set[str] = set()
    for place in folding.folds(name for name, _ in model.named_modules()):
        found = [calibrated[name].channel_scale for name in place.targets if name in calibrated]
        found = [scale for scale in found if scale is not None]
        if not found:
            continue
        shared = torch.stack(found).mean(dim=0)
        changed.update(folding.apply(model, place, 1 / shared))
        channel_scales.update(dict.fromkeys(place.targets, shared))
    return channel_scales, changed


def _calibrate(
    model: Any, algorithm: Algorithm, request: Request, batches: Sequence[Batch]
) -> dict[str, _Calibrated]:
    """Run one of ModelOpt's algorithms for the modules in `request`; `model` is used up."""
    if not batches:
        raise DataError("ModelOpt calibrates on samples, and the calibration set is empty.")
    rules: list[dict[str, Any]] = [{"quantizer_name": "*", "enable": False}]
    for name, wanted in request.items():
        rules += _rules(name, wanted, model.get_submodule(name))
    config = {"quant_cfg": rules, "algorithm": _ALGORITHMS[algorithm]}
    with _library() as mtq:
        model = mtq.quantize(model, config, forward_loop=lambda copy: capture.run(copy, batches))
    return {name: _read(name, wanted, model.get_submodule(name)) for name, wanted in request.items()}


def _rules(name: str, wanted: ModuleRequest, module: Any) -> list[dict[str, Any]]:
    weight: dict[str, Any] = {"num_bits": wanted.format.bits}
    if wanted.format.group is None:
        weight["axis"] = 0
    else:
        weight["block_sizes"] = {-1: wanted.format.block(module.weight.shape[1]), "type": "static"}
    rules = [{"quantizer_name": f"{name}.weight_quantizer", "cfg": weight}]
    if wanted.format.static_activation:
        # SmoothQuant watches ranges per channel by itself. Elsewhere they are asked for: a folded scale
        # then gives the exact range of the tensor, not a bound on it.
        axis = None if wanted.algorithm is Algorithm.SMOOTHQUANT else -1
        rules.append({"quantizer_name": f"{name}.input_quantizer", "cfg": {"num_bits": 8, "axis": axis}})
    return rules


def _read(name: str, wanted: ModuleRequest, module: Any) -> _Calibrated:
    """Raises QuantizationError when ModelOpt left the module as it was, or at other bits."""
    if not hasattr(module, "weight_quantizer") or not hasattr(module, "input_quantizer"):
        raise QuantizationError(f"{name}: ModelOpt left it as it was.")
    weight, inputs = module.weight_quantizer, module.input_quantizer
    if not weight.is_enabled or weight.num_bits != wanted.format.bits or weight.amax is None:
        raise QuantizationError(f"{name}: ModelOpt did not quantise it to {wanted.format.bits} bits.")
    block = wanted.format.block(module.weight.shape[1])
    scales = module.weight.shape[0] * -(-module.weight.shape[1] // block)
    if weight.amax.numel() != scales:
        raise QuantizationError(f"{name}: asked ModelOpt for {scales} scales, got {weight.amax.numel()}.")
    channel_scale = getattr(inputs, "_pre_quant_scale", None)
    if wanted.algorithm is not Algorithm.RTN and channel_scale is None:
        raise QuantizationError(f"{name}: ModelOpt skipped {wanted.algorithm.value} for it.")
    absmax = None
    if wanted.format.static_activation:
        absmax = getattr(inputs, "_amax_for_smoothing", inputs.amax)
        if not inputs.is_enabled or inputs.num_bits != 8 or absmax is None:
            raise QuantizationError(f"{name}: ModelOpt did not calibrate its input; is it ever reached?")
        absmax = absmax.detach().float().flatten()
        if absmax.numel() != module.weight.shape[1]:
            raise QuantizationError(f"{name}: expected a range per channel, got {absmax.numel()} of them.")
    if channel_scale is not None:
        channel_scale = channel_scale.detach().float().flatten()
    return _Calibrated(channel_scale, absmax)


@contextlib.contextmanager
def _library() -> Iterator[Any]:
    """`modelopt.torch.quantization`, which warns of each newer transformers; for its errors see
    `quiet.toolkit`."""
    with quiet.toolkit("NVIDIA Model Optimizer", "`quantizer: tensorrt`", "tensorrt", QuantizationError):
        import modelopt.torch.quantization as mtq

        yield mtq
