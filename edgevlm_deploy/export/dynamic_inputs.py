"""What a runtime does by itself to the inputs of products with integer weights: round them to int8.

The table of integers does not hold this, and verification switches it off (`accuracy_level` 1). A search that
predicts a device's answers has to have it: on the demo it causes as many changed answers as int8 weights.
"""

from __future__ import annotations

from typing import Any

from edgevlm_deploy.export.packing import layout
from edgevlm_deploy.quantize.fakequant import Rounding
from edgevlm_deploy.quantize.table import QuantizedLinear
from edgevlm_deploy.target import Backend, Target


def of(target: Target, linear: QuantizedLinear) -> Rounding | None:
    """ONNX Runtime rounds each block of columns (`MatMulNBits`, accuracy_level 4), LiteRT on a CPU each row;
    TensorRT, GPUs and NPUs compute as the graph says."""
    columns = linear.q.shape[1]
    if target.backend is Backend.ONNXRUNTIME:
        _, block = layout(linear.bits, linear.block, columns, "input")
        return lambda value: _by_block(value, block)
    if target.backend is Backend.LITERT and target.accelerator == "cpu":
        return _by_row
    return None


def _by_block(value: Any, block: int) -> Any:
    """Symmetric int8 with one scale per `block` columns: float [..., K]; integers (of a lookup) pass."""
    import torch

    if not value.is_floating_point():
        return value
    columns = value.shape[-1]
    padded = torch.nn.functional.pad(value, (0, -columns % block)).unflatten(-1, (-1, block))
    scale = padded.abs().amax(-1, keepdim=True) / 127
    rounded = (padded / scale.clamp(min=torch.finfo(value.dtype).tiny)).round() * scale
    return rounded.flatten(-2)[..., :columns]


def _by_row(value: Any) -> Any:
    """Asymmetric int8 with one range per row, zero included: float [..., K]."""
    import torch

    if not value.is_floating_point():
        return value
    low, high = value.amin(-1, keepdim=True).clamp(max=0), value.amax(-1, keepdim=True).clamp(min=0)
    scale = ((high - low) / 255).clamp(min=torch.finfo(value.dtype).tiny)
    zero_point = (-128 - low / scale).round()
    q = ((value / scale).round() + zero_point).clamp(-128, 127)
    return (q - zero_point) * scale
