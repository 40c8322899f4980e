"""What `quantizer: neural-compressor` does with a model: every algorithm on its modules, one after the other.

Algorithms that fold scales come first, because they change the weights and inputs of other modules. Nothing
that a fold changes is computed otherwise afterwards, so each algorithm still sees what the float model gives.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgevlm_deploy.errors import QuantizationError
from edgevlm_deploy.quantize import autoround, awq, inc, mbq, smoothquant, static_ranges
from edgevlm_deploy.quantize.capture import Batch
from edgevlm_deploy.quantize.quantized_model import QuantizedModel
from edgevlm_deploy.quantize.request import ModuleRequest, Request
from edgevlm_deploy.quantize.rounding import data_free, rows_of, weight_of
from edgevlm_deploy.quantize.table import QuantizedLinear, QuantizedTable, spilled
from edgevlm_deploy.recipe import Algorithm, Component, ObserverName


def quantize(
    model: Any,
    request: Request,
    batches: Sequence[Batch],
    observer: ObserverName,
    scratch: Path | None,
) -> QuantizedModel:
    """Quantise `model` (a fresh copy, which is changed). See `edgevlm_deploy.quantize.quantize`.

    scratch: folder on whose disk finished integers wait; None keeps them in memory.
    """
    whole = [one.value for one in (Algorithm.MBQ,) if scratch is not None and _by(one, request)]
    if whole:
        raise QuantizationError(
            f"{whole[0]} needs gradients through the whole model, which does not fit the memory left. "
            "Use awq, gptq, hqq or rtn, or a machine with more memory."
        )
    modules: dict[str, QuantizedLinear] = {}
    changed: set[str] = set()
    smoothed = _by(Algorithm.SMOOTHQUANT, request)
    if smoothed:
        changed = smoothquant.fold(model, smoothed, batches)
    for algorithm, search in ((Algorithm.AWQ, awq.quantize), (Algorithm.MBQ, mbq.quantize)):
        for part in _stacks(algorithm, request):
            made, folded = search(model, part, batches)
            modules |= made
            changed |= folded
    for part in _stacks(Algorithm.GPTQ, request):
        modules |= inc.gptq(model, part, batches)
    for part in _stacks(Algorithm.AUTOROUND, request):
        modules |= autoround.quantize(model, part, batches)
    static = [name for name, wanted in request.items() if wanted.format.static_activation]
    scales = static_ranges.scales(model, static, batches, observer) if static else {}
    for name, wanted in request.items():
        if name not in modules:
            parts = [data_free(rows, wanted, scales.get(name)) for rows in rows_of(model, name)]
            modules[name] = QuantizedLinear.stacked(parts)
        if scratch is not None:
            modules[name] = spilled(modules[name], scratch)
    in_table = {f"{name}.weight" for name in modules}
    floats = {name: _values(model, name) for name in sorted(changed - in_table)}
    return QuantizedModel(QuantizedTable({name: modules[name] for name in request}), floats)


def _values(model: Any, name: str) -> NDArray[np.float32]:
    """float32 values of a parameter, with what was folded into it."""
    from edgevlm_deploy.paging import Paged

    module, _, parameter = name.rpartition(".")
    if parameter == "weight" and isinstance(model.get_submodule(module), Paged):
        return weight_of(model, module)
    values: NDArray[np.float32] = model.get_parameter(name).detach().float().numpy().copy()
    return values


def _stacks(algorithm: Algorithm, request: Request) -> list[Request]:
    """What is asked of the algorithm, apart for each component: each has a stack of layers of its own."""
    parts: dict[Component, dict[str, ModuleRequest]] = {}
    for name, wanted in _by(algorithm, request).items():
        parts.setdefault(wanted.component, {})[name] = wanted
    return list(parts.values())


def _by(algorithm: Algorithm, request: Request) -> Request:
    return {name: wanted for name, wanted in request.items() if wanted.algorithm is algorithm}
