"""The numeric reference: a torch model that computes with the table's dequantised weights."""

from __future__ import annotations

from typing import Any

import numpy as np

from edgevlm_deploy.errors import QuantizationError
from edgevlm_deploy.quantize.quantized_model import QuantizedModel
from edgevlm_deploy.quantize.table import StaticActivation


def apply(model: Any, quantized: QuantizedModel) -> Any:
    """Turn a fresh float32 copy of the source model into the fake-quantised one, in place; returns it.

    Inputs of modules with a static activation are rounded as an exported QuantizeLinear does it:
    divide by the scale, round half to even, clip to −128 … 127.
    Raises QuantizationError when a name or shape does not fit the model.
    """
    for name, values in quantized.float_parameters.items():
        owner, _, parameter = name.rpartition(".")
        _replace(model, owner, parameter, values)
    for name, linear in quantized.table.items():
        _replace(model, name, "weight", linear.dequantize())
        if linear.activation is not None:
            module = model.get_submodule(name)
            module.register_forward_pre_hook(_fake_quantize_input(linear.activation))
    return model


def _replace(model: Any, owner: str, parameter: str, values: Any) -> None:
    """Set a new parameter, which also unties it from others (an embedding and its head)."""
    import torch

    try:
        module = model.get_submodule(owner)
        old = getattr(module, parameter)
    except AttributeError as error:
        raise QuantizationError(
            f"{owner}.{parameter} is not in this model; was another model quantised?"
        ) from error
    if tuple(old.shape) != values.shape:
        raise QuantizationError(
            f"{owner}.{parameter}: the model has shape {list(old.shape)}, the table {list(values.shape)}."
        )
    new = torch.from_numpy(np.array(values, dtype=np.float32))
    setattr(module, parameter, torch.nn.Parameter(new, requires_grad=False))


def _fake_quantize_input(activation: StaticActivation) -> Any:
    low, high = -(2 ** (activation.bits - 1)), 2 ** (activation.bits - 1) - 1

    def hook(_: Any, args: tuple[Any, ...]) -> tuple[Any, ...]:
        q = (args[0] / activation.scale).round() + activation.zero_point
        return ((q.clamp(low, high) - activation.zero_point) * activation.scale, *args[1:])

    return hook
