"""Asked for = obtained: quantisers leave modules untouched, or at other bits, without saying so."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np

from edgevlm_deploy.errors import QuantizationError
from edgevlm_deploy.quantize.hqq import FRACTION
from edgevlm_deploy.quantize.quantized_model import QuantizedModel
from edgevlm_deploy.quantize.request import ModuleRequest, Request
from edgevlm_deploy.quantize.table import QuantizedLinear
from edgevlm_deploy.quantize.uniform import blocks, is_exact


def verify(quantized: QuantizedModel, request: Request, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """shapes: parameter name → shape in the source model.

    Raises QuantizationError with every module whose bits, block, shape, range, scales or activation
    differ from the request, is missing, or was not asked for.
    """
    problems = [f"{name}: asked for, not quantised" for name in request if name not in quantized.table]
    problems += [f"{name}: quantised, not asked for" for name in quantized.table if name not in request]
    for name, wanted in request.items():
        if name in quantized.table:
            shape = shapes[f"{name}.weight"]
            problems += [f"{name}: {problem}" for problem in _problems(quantized.table[name], wanted, shape)]
    for name, values in quantized.float_parameters.items():
        if shapes.get(name) != values.shape:
            problems.append(
                f"{name}: changed to shape {list(values.shape)}, the model has {shapes.get(name)}"
            )
        elif values.dtype != np.float32 or not np.all(np.isfinite(values)):
            problems.append(f"{name}: changed to values that are not finite float32")
    if problems:
        raise QuantizationError(
            "The quantiser did not deliver what was asked for:\n  " + "\n  ".join(problems)
        )


def _problems(got: QuantizedLinear, wanted: ModuleRequest, shape: tuple[int, ...]) -> Iterator[str]:
    rows, columns = shape
    expected = wanted.format
    block = expected.block(columns)
    if (got.bits, got.block) != (expected.bits, block):
        yield f"expected {expected.bits} bits in blocks of {block}, got {got.bits} in {got.block}"
        return
    kind = np.dtype(np.int8 if expected.symmetric else np.uint8)
    if got.q.shape != shape or got.q.dtype != kind:
        yield f"expected {kind} integers {list(shape)}, got {got.q.dtype} {list(got.q.shape)}"
    if expected.symmetric and got.zero_point is not None:
        yield "expected symmetric weights, got a zero-point"
    if not expected.symmetric:
        yield from _zero_point_problems(got)
    if got.scale.shape != (rows, blocks(columns, block)) or got.scale.dtype != np.float32:
        yield f"scales are {got.scale.dtype} {list(got.scale.shape)}"
    low = -(2 ** (expected.bits - 1)) if expected.symmetric else 0
    if got.q.size and (int(got.q.min()) < low or int(got.q.max()) >= low + 2**expected.bits):
        yield f"integers {int(got.q.min())} … {int(got.q.max())} do not fit {expected.bits} bits"
    if not (np.all(np.isfinite(got.scale)) and np.all(got.scale > 0) and is_exact(got.scale)):
        yield "scales are not positive numbers that fp16 and bf16 hold exactly"
    activation = got.activation
    if (activation is not None) != expected.static_activation:
        yield f"static activation is {activation}, the scheme is {wanted.scheme.value}"
    if activation is not None and not (
        activation.bits == 8
        and activation.zero_point == 0
        and activation.scale > 0
        and is_exact(np.array([activation.scale], np.float32))
    ):
        yield f"activation {activation} is not symmetric int8 with an exact positive scale"


def _zero_point_problems(got: QuantizedLinear) -> Iterator[str]:
    zero_point = got.zero_point
    if zero_point is None or zero_point.shape != got.scale.shape:
        yield "expected a zero-point per scale"
        return
    sixteenths = zero_point.astype(np.float64) * FRACTION
    if not np.array_equal(sixteenths, np.rint(sixteenths)) or np.any(zero_point < 0):
        yield f"zero-points are not multiples of 1/{FRACTION}"
    elif np.any(zero_point > 2**got.bits - 1):
        yield f"zero-points up to {zero_point.max()} do not fit {got.bits} bits"
