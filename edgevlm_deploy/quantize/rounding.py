"""Algorithms that look at one weight matrix alone, for modules of a torch model."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgevlm_deploy.quantize import hqq
from edgevlm_deploy.quantize.request import ModuleRequest
from edgevlm_deploy.quantize.table import QuantizedLinear, StaticActivation
from edgevlm_deploy.quantize.uniform import exact_scale, quantize_symmetric
from edgevlm_deploy.recipe import Algorithm


def weight_of(model: Any, name: str) -> NDArray[np.float32]:
    """float32 [N, K] of the linear layer or embedding `name`; shares memory with a model in float32."""
    from edgevlm_deploy.paging import Paged

    module = model.get_submodule(name)
    found = module.widened(slice(None)) if isinstance(module, Paged) else module.weight.detach().float()
    weight: NDArray[np.float32] = found.numpy()
    return weight


def rows_of(model: Any, name: str) -> Iterator[NDArray[np.float32]]:
    """`weight_of`, some rows at a time: a matrix that is read from the checkpoint is never widened whole."""
    from edgevlm_deploy.paging import Paged, chunks

    module = model.get_submodule(name)
    if not isinstance(module, Paged):
        return iter([weight_of(model, name)])
    return (module.widened(rows).detach().numpy() for rows in chunks(*module.weight.shape))


def data_free(
    weight: NDArray[np.float32], wanted: ModuleRequest, activation_scale: float | None = None
) -> QuantizedLinear:
    """weight [N, K], by the algorithm that is asked for: one of `request.DATA_FREE`."""
    if wanted.algorithm is not Algorithm.HQQ:
        return round_to_nearest(weight, wanted, activation_scale)
    bits, block = wanted.format.bits, wanted.format.block(weight.shape[1])
    q, scale, zero_point = hqq.quantize(weight, bits, block)
    return QuantizedLinear(q, scale, zero_point, bits, block)


def round_to_nearest(
    weight: NDArray[np.float32], wanted: ModuleRequest, activation_scale: float | None = None
) -> QuantizedLinear:
    """weight [N, K]; activation_scale is rounded to a value that fp16 and bf16 hold exactly."""
    block = wanted.format.block(weight.shape[1])
    q, scale = quantize_symmetric(weight, wanted.format.bits, block)
    activation = None if activation_scale is None else static_activation(activation_scale)
    return QuantizedLinear(q, scale, None, wanted.format.bits, block, activation)


def static_activation(scale: float) -> StaticActivation:
    """Symmetric int8, x ≈ q·scale. The scale is rounded up, so the calibrated range is never clipped more."""
    rounded = exact_scale(np.array([scale]), round_up=True)
    return StaticActivation(scale=float(rounded[0]), zero_point=0)
