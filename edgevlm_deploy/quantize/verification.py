"""Asked for = obtained: quantisers leave modules untouched, or at other bits, without saying so."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np

from edgevlm_deploy.errors import QuantizationError
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
    if got.q.shape != shape or got.q.dtype != np.int8:
        yield f"expected int8 integers {list(shape)}, got {got.q.dtype} {list(got.q.shape)}"
    if got.zero_point is not None:
        yield "expected symmetric weights, got a zero-point"
    if got.scale.shape != (rows, blocks(columns, block)) or got.scale.dtype != np.float32:
        yield f"scales are {got.scale.dtype} {list(got.scale.shape)}"
    limit = 2 ** (expected.bits - 1)
    if got.q.size and (int(got.q.min()) < -limit or int(got.q.max()) >= limit):
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
