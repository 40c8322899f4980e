"""SmoothQuant with α per layer: range moves from loud activation channels into the weights that read them.

s_j = max|X_j|^α / max|W_j|^(1−α), folded into the norm in front. α is searched for every norm over 0, 0.05
to 1, and doing nothing is among the choices: what counts is the squared error of the outputs of the layers
behind it, with inputs and weights rounded to int8 as they will be.

Definition: Xiao et al., "SmoothQuant" (ICML 2023), whose α is one number for a whole model. Layers without a
norm in front (behind attention or GELU) keep their weights and ranges.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from edgevlm_deploy.errors import QuantizationError
from edgevlm_deploy.quantize import capture, folding
from edgevlm_deploy.quantize.capture import Batch
from edgevlm_deploy.quantize.folding import Fold
from edgevlm_deploy.quantize.request import ModuleRequest, Request
from edgevlm_deploy.quantize.rounding import round_to_nearest, weight_of
from edgevlm_deploy.quantize.static_ranges import SMALLEST_SCALE, STEPS

ROWS = 2048
"""Input rows per norm on which α is judged, spread over all samples; ranges are those of all rows."""
ALPHAS = tuple(step / 20 for step in range(21))
SMALLEST = 1e-5


class _Inputs:
    """Inputs of the layers behind one norm: largest |x| per channel, and rows that are kept."""

    def __init__(self, rows_per_call: int) -> None:
        self.rows_per_call = rows_per_call
        self.largest: Any = None
        self.rows: list[Any] = []

    def add(self, arguments: dict[str, Any]) -> None:
        import torch

        x = next(iter(arguments.values())).detach()
        x = x.reshape(-1, x.shape[-1])
        largest = x.abs().amax(dim=0)
        self.largest = largest if self.largest is None else torch.maximum(self.largest, largest)
        step = max(1, x.shape[0] // self.rows_per_call)
        self.rows.append(x[::step][: self.rows_per_call].clone())


def fold(model: Any, request: Request, batches: Sequence[Batch]) -> set[str]:
    """Fold scales into the norms in front of the requested modules; `model` is changed.

    Returns the names of the parameters that changed. Raises DataError without samples, QuantizationError when
    there is no norm to fold into.
    """
    import torch

    names = [name for name, _ in model.named_modules()]
    places = [one for one in folding.folds(names) if any(target in request for target in one.targets)]
    if not places:
        raise QuantizationError(
            f"{next(iter(request))}: no norm is known whose output goes only there; use algorithm rtn."
        )
    rows = max(1, ROWS // max(1, len(batches)))
    seen = {place.source: _Inputs(rows) for place in places}
    watched = [(place.targets[0], seen[place.source].add) for place in places]
    changed: set[str] = set()
    with capture.watching(model, watched):
        capture.run(model, batches)
    with torch.no_grad():
        for place in places:
            scale = best_scale(model, place, request, seen[place.source])
            if scale is not None:
                changed.update(folding.apply(model, place, scale))
    return changed


def best_scale(model: Any, place: Fold, request: Request, seen: _Inputs) -> Any:
    """[K] with the least error, None when no scale is better than none."""
    import torch

    if seen.largest is None:
        raise QuantizationError(f"{place.targets[0]}: no calibration sample reaches it.")
    weights = {name: torch.from_numpy(weight_of(model, name)) for name in place.targets if name in request}
    x = torch.cat(seen.rows)
    expected = {name: x @ weight.T for name, weight in weights.items()}
    largest_weight = torch.cat(list(weights.values())).abs().amax(dim=0)

    def error(scale: Any) -> float:
        rounded = _rounded_inputs(x / scale, float((seen.largest / scale).max()))
        return sum(
            float((rounded @ _rounded(weight * scale, request[name]).T - expected[name]).pow(2).sum())
            for name, weight in weights.items()
        )

    best, least = None, error(torch.ones_like(seen.largest))
    for alpha in ALPHAS:
        scale = smoothing(seen.largest, largest_weight, alpha)
        found = error(scale)
        if found < least:
            best, least = scale, found
    if not np.isfinite(least):
        raise QuantizationError(f"{place.source}: its output is not finite on the calibration samples.")
    return best


def smoothing(largest_input: Any, largest_weight: Any, alpha: float) -> Any:
    """s [K] for the largest |x| and |w| of each channel."""
    inputs = largest_input.clamp(min=SMALLEST).pow(alpha)
    return (inputs / largest_weight.clamp(min=SMALLEST).pow(1 - alpha)).clamp(min=SMALLEST)


def _rounded_inputs(x: Any, largest: float) -> Any:
    scale = max(largest / STEPS, SMALLEST_SCALE)
    return (x / scale).round().clamp(-128, 127) * scale


def _rounded(weight: Any, wanted: ModuleRequest) -> Any:
    import torch

    return torch.from_numpy(round_to_nearest(weight.numpy(), wanted).dequantize())
