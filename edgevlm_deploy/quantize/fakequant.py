"""The numeric reference: a torch model that computes with the table's dequantised weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from edgevlm_deploy.errors import QuantizationError
from edgevlm_deploy.quantize.quantized_model import QuantizedModel
from edgevlm_deploy.quantize.table import QuantizedLinear, StaticActivation

Rounding = Callable[[Any], Any]
"""What happens to a module's input tensor before the product."""


def apply(model: Any, quantized: QuantizedModel) -> Any:
    """Turn a fresh copy of the source model into the fake-quantised one, in place; returns it.

    Inputs of modules with a static activation are rounded as an exported QuantizeLinear does it:
    divide by the scale, round half to even, clip to −128 … 127.
    Raises QuantizationError when a name or shape does not fit the model.
    """
    _install(model, quantized, lambda _: None)
    return model


@contextmanager
def applied(
    model: Any,
    quantized: QuantizedModel,
    own_rounding: Callable[[QuantizedLinear], Rounding | None] = lambda _: None,
) -> Iterator[Any]:
    """`apply`, undone when the block ends: many candidates are judged on one loaded model.

    own_rounding: what the runtime does to the input of a weight-only module by itself, None for nothing.
    """
    names = [*quantized.float_parameters, *(f"{name}.weight" for name in quantized.table)]
    before = {name: model.get_parameter(name) for name in names}
    handles = _install(model, quantized, own_rounding)
    try:
        yield model
    finally:
        for handle in handles:
            handle.remove()
        for name, parameter in before.items():
            owner, _, attribute = name.rpartition(".")
            setattr(model.get_submodule(owner), attribute, parameter)


def _install(
    model: Any, quantized: QuantizedModel, own_rounding: Callable[[QuantizedLinear], Rounding | None]
) -> list[Any]:
    """Replace parameters and register hooks; returns the hooks' handles."""
    handles = []
    for name, values in quantized.float_parameters.items():
        owner, _, parameter = name.rpartition(".")
        _replace(model, owner, parameter, values)
    for name, linear in quantized.table.items():
        handles += _replace_weight(model, name, linear)
        rounding = own_rounding(linear) if linear.activation is None else _rounding(linear.activation)
        if rounding is not None:
            module = model.get_submodule(name)
            handles.append(module.register_forward_pre_hook(_before_product(rounding)))
    return handles


def _replace_weight(model: Any, name: str, linear: QuantizedLinear) -> list[Any]:
    """The weights of `linear`, which a paged module dequantises anew whenever it computes."""
    from edgevlm_deploy.paging import Paged

    module = _owner(model, name, "weight", linear.q.shape)
    if isinstance(module, Paged):
        return [module.compute_with(linear)]
    _replace(model, name, "weight", linear.dequantize())
    return []


def _owner(model: Any, owner: str, parameter: str, shape: tuple[int, ...]) -> Any:
    """The module that has the parameter. Raises QuantizationError unless that has this shape."""
    try:
        module = model.get_submodule(owner)
        old = getattr(module, parameter)
    except AttributeError as error:
        raise QuantizationError(
            f"{owner}.{parameter} is not in this model; was another model quantised?"
        ) from error
    if tuple(old.shape) != shape:
        raise QuantizationError(
            f"{owner}.{parameter}: the model has shape {list(old.shape)}, the table {list(shape)}."
        )
    return module


def _replace(model: Any, owner: str, parameter: str, values: Any) -> None:
    """Set a new parameter, which also unties it from others (an embedding and its head)."""
    import torch

    module = _owner(model, owner, parameter, values.shape)
    new = torch.from_numpy(np.array(values, dtype=np.float32))
    setattr(module, parameter, torch.nn.Parameter(new, requires_grad=False))


def _rounding(activation: StaticActivation) -> Rounding:
    low, high = -(2 ** (activation.bits - 1)), 2 ** (activation.bits - 1) - 1

    def rounded(value: Any) -> Any:
        q = (value / activation.scale).round() + activation.zero_point
        return (q.clamp(low, high) - activation.zero_point) * activation.scale

    return rounded


def _before_product(rounding: Rounding) -> Any:
    def hook(_: Any, args: tuple[Any, ...]) -> tuple[Any, ...]:
        return (rounding(args[0]), *args[1:])

    return hook
