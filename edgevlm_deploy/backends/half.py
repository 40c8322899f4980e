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

    with torch.no_grad():
        for parameter in source.parameters():
            half = parameter.half().float()
            if bool(torch.isfinite(half).all()):
                parameter.copy_(half)
    return source


def in_half(quantized: QuantizedModel) -> QuantizedModel:
    """The same with the float parameters rounded to fp16, like those of the source model."""
    return dataclasses.replace(
        quantized, float_parameters={name: _round(v) for name, v in quantized.float_parameters.items()}
    )


def _round(values: NDArray[np.float32]) -> NDArray[np.float32]:
    with np.errstate(over="ignore"):
        half = values.astype(np.float16).astype(np.float32)
    return half if bool(np.isfinite(half).all()) else values
