"""The fp16 that recipes mean: what is not quantised is rounded to 16 bits, computing stays in float32."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgevlm_deploy.quantize.quantized_model import QuantizedModel


def half_precision(source: Any) -> Any:
    """Round every parameter to fp16 in place, computing stays in float32; returns the model.

    This is the fp16 that recipes mean: what is not quantised is stored in 16 bits. Values beyond fp16's
    range are left as they are, and then stored in 32.
    """
    import torch

    from edgevlm_deploy.paging import Paged, pages

    paged = pages(source)
    with torch.no_grad():
        for module in source.modules():
            if isinstance(module, Paged):
                module.rounds_to_half = fits_half(module.weight)
        for name, parameter in source.named_parameters():
            if name not in paged and fits_half(parameter):
                parameter.copy_(parameter.half().float())
    return source


def fits_half(values: Any) -> bool:
    """Whether every value of a tensor lies within fp16's range."""
    import torch

    low, high = torch.aminmax(values)
    return bool(torch.isfinite(torch.stack([low, high]).half()).all())


def in_half(quantized: QuantizedModel) -> QuantizedModel:
    """The same with the float parameters rounded to fp16, like those of the source model."""
    return dataclasses.replace(
        quantized, float_parameters={name: _round(v) for name, v in quantized.float_parameters.items()}
    )


def _round(values: NDArray[np.float32]) -> NDArray[np.float32]:
    with np.errstate(over="ignore"):
        half = values.astype(np.float16).astype(np.float32)
    return half if bool(np.isfinite(half).all()) else values
