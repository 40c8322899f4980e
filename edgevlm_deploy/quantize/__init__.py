"""Quantise once: a torch model and a request become one table of integers that every backend exports."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

from edgevlm_deploy.errors import QuantizationError
from edgevlm_deploy.quantize.capture import Batch
from edgevlm_deploy.quantize.quantized_model import QuantizedModel
from edgevlm_deploy.quantize.request import ModuleRequest, Request, check_columns, resolve
from edgevlm_deploy.quantize.table import QuantizedLinear, QuantizedTable, StaticActivation
from edgevlm_deploy.recipe import ObserverName, Quantizer

__all__ = [
    "Batch",
    "ModuleRequest",
    "QuantizedLinear",
    "QuantizedModel",
    "QuantizedTable",
    "Request",
    "StaticActivation",
    "quantize",
    "resolve",
]


def quantize(
    load_model: Callable[[], Any],
    request: Request,
    calibration_batches: Sequence[Batch],
    quantizer: Quantizer = Quantizer.NEURAL_COMPRESSOR,
    observer: ObserverName = ObserverName.MINMAX,
    scratch: Path | None = None,
) -> QuantizedModel:
    """Quantise a vision-language model.

    load_model: returns a fresh copy of the source model on the CPU, in float32 or paged, in eval mode; called
        once or (ModelOpt) once per algorithm. The copies are changed and dropped.
    request: from `resolve`.
    calibration_batches: keyword arguments of the whole model's forward (input_ids, attention_mask [B, T],
        pixel_values, pixel_attention_mask); read several times. May be empty for weight-only rounding.
    observer: how calibrated int8 inputs get their range; ModelOpt knows minmax alone.
    scratch: folder on whose disk the integers of a paged model wait until they are saved.

    Raises PlanError when group sizes do not fit, DataError when calibration data is missing,
    MissingExtraError, and QuantizationError when the result is not what was asked for.
    """
    from edgevlm_deploy import paging
    from edgevlm_deploy.quantize.verification import verify

    model = load_model()
    parameters = dict(model.named_parameters(remove_duplicate=False))
    shapes = {name: tuple(value.shape) for name, value in parameters.items()}
    pages = paging.pages(model)
    _check_source(request, parameters, pages)
    check_columns(request, {name: shapes[f"{name}.weight"][1] for name in request})
    if quantizer is Quantizer.NEURAL_COMPRESSOR:
        from edgevlm_deploy.quantize import post_training

        quantized = post_training.quantize(
            model, request, calibration_batches, observer, scratch if pages else None
        )
    else:
        from edgevlm_deploy.quantize import modelopt

        quantized = modelopt.quantize(
            paging.unpaged(model), lambda: paging.unpaged(load_model()), request, calibration_batches
        )
    verify(quantized, request, shapes)
    return quantized


def _check_source(request: Request, parameters: dict[str, Any], pages: Collection[str]) -> None:
    import torch

    missing = [name for name in request if f"{name}.weight" not in parameters]
    if missing:
        raise QuantizationError(
            f"The model has no {missing[0]}.weight; the request was made for another model."
        )
    floats = (name for name in parameters if name not in pages)
    other = [name for name in floats if parameters[name].dtype != torch.float32]
    if other:
        raise QuantizationError(
            f"{other[0]} is {parameters[other[0]].dtype}; load the source model in float32 to quantise it."
        )
