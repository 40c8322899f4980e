"""Calibrated ranges in an exported (PT2E) graph: how to feed it, observe it and read its scales."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgevlm_deploy.errors import QuantizationError

Floats = NDArray[np.float32]


def positional(module: Any, names: tuple[str, ...]) -> Any:
    """torch.export takes positional inputs; transformers' modules take keywords."""
    import torch

    class Positional(torch.nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.inner = module

        def forward(self, *tensors: Any) -> Any:
            output = self.inner(**dict(zip(names, tensors, strict=True)))
            return output if isinstance(output, torch.Tensor) else output[0]

    return Positional().eval()


def rows(inputs: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """One picture tile at a time; a tensor that broadcasts over the batch goes along unchanged."""
    count = max(value.shape[0] for value in inputs.values())
    for row in range(count):
        yield {
            key: value[row : row + 1] if value.shape[0] == count else value for key, value in inputs.items()
        }


def watch_full_range(prepared: Any) -> None:
    """Its "minmax" is a moving average that moves by 1 % a sample and forgets rare large activations."""
    from torchao.quantization.pt2e.observer import MinMaxObserver, MovingAverageMinMaxObserver

    for name, observer in list(prepared.named_children()):
        if isinstance(observer, MovingAverageMinMaxObserver):
            full = MinMaxObserver(
                dtype=observer.dtype,
                qscheme=observer.qscheme,
                quant_min=observer.quant_min,
                quant_max=observer.quant_max,
                eps=float(observer.eps),
            )
            setattr(prepared, name, full)


def read_scales(converted: Any) -> dict[str, tuple[float, Floats]]:
    """Linear layer's name → (scale of its input, scales [N] of its weight) in the converted graph."""
    import torch

    decomposed = torch.ops.quantized_decomposed
    found: dict[str, tuple[float, Floats]] = {}
    for node in converted.graph.nodes:
        if node.op != "call_function" or node.target is not torch.ops.aten.linear.default:
            continue
        activation, weight = node.args[0], node.args[1]
        if activation.target is not decomposed.dequantize_per_tensor.default:
            continue
        if weight.target is not decomposed.dequantize_per_channel.default:
            continue
        _, scale, zero_point, low, high = activation.args[:5]
        if (zero_point, low, high) != (0, -128, 127):
            raise QuantizationError(f"Asked for symmetric int8 activations, got {activation.args[1:5]}.")
        path = list(node.meta["nn_module_stack"].values())[-1][0]
        name = path.partition("inner")[2].removeprefix(".")
        weight_scale = _constant(converted, weight.args[1])
        found[name] = (float(scale), weight_scale.detach().float().numpy())
    return found


def _constant(graph_module: Any, node: Any) -> Any:
    value = graph_module
    for part in node.target.split("."):
        value = getattr(value, part)
    return value


def check_same_weight(name: str, weight: Floats, scale: Floats) -> None:
    """The graph's layer of this name really holds this weight: its ranges per channel agree."""
    absmax = np.abs(weight).max(axis=1)
    # Neural Compressor divides by 127.5 and never goes below the float epsilon.
    expected = np.maximum(absmax / 127.5, np.finfo(np.float32).eps)
    if scale.shape != expected.shape or not np.allclose(scale, expected, rtol=1e-4):
        raise QuantizationError(f"{name}: Neural Compressor's weight ranges are not those of this module.")
