"""Passing calibration samples through a stack of transformer layers, one layer at a time."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import Any

from edgevlm_deploy.errors import DataError, QuantizationError
from edgevlm_deploy.quantize import capture
from edgevlm_deploy.quantize.capture import Batch

TOKENS = 4096
"""Tokens after which the search takes no further sample."""
SAMPLES = 8
"""Samples that it takes in any case."""


def chosen(batches: Iterable[Batch]) -> list[dict[str, Any]]:
    """The first samples, until they have `TOKENS` tokens and are `SAMPLES`; the shortest come first."""
    taken: list[dict[str, Any]] = []
    tokens = 0
    for sample in capture.samples(batches):
        if tokens >= TOKENS and len(taken) >= SAMPLES:
            break
        taken.append(sample)
        tokens += sample["input_ids"].shape[1]
    if not taken:
        raise DataError("The calibration set is empty; this algorithm needs at least one sample.")
    return sorted(taken, key=lambda sample: int(sample["input_ids"].shape[1]))


def inputs(model: Any, layer: str, batches: Iterable[Batch]) -> list[dict[str, Any]]:
    """All arguments of `layer`, in batches, for the first samples that reach it (a vision encoder sees no
    text): until they have `TOKENS` tokens there and are `SAMPLES`; the shortest come first.

    What `chosen` returned is taken as it is. Raises DataError when no sample reaches the layer.
    """
    taken: list[dict[str, Any]] = []
    tokens = 0
    for sample in capture.samples(batches):
        if tokens >= TOKENS and len(taken) >= SAMPLES:
            break
        seen = capture.calls(model, layer, [sample])
        taken += seen
        tokens += sum(one["hidden_states"].shape[:2].numel() for one in seen)
    if not taken:
        raise DataError(
            f"The calibration set is empty, or no sample of it reaches {layer}; give samples with pictures."
        )
    return together(sorted(taken, key=lambda one: int(one["hidden_states"].shape[1])))


def in_order(layers: Collection[str]) -> Iterator[str]:
    """Every layer of the stack from the first of `layers` to the last: hidden states pass through all.

    Raises QuantizationError when they lie in several stacks.
    """
    stack = next(iter(layers)).rpartition(".")[0]
    if any(not layer.startswith(f"{stack}.") for layer in layers):
        raise QuantizationError(f"The modules lie in several stacks of layers: {', '.join(layers)}.")
    numbers = [int(layer.rpartition(".")[2]) for layer in layers]
    return (f"{stack}.{number}" for number in range(min(numbers), max(numbers) + 1))


def together(arguments: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Neighbours that differ in their hidden states [1, T, D] alone become one batch."""
    import torch

    merged: list[list[dict[str, Any]]] = []
    for one in arguments:
        if merged and _same_but_hidden(merged[-1][0], one):
            merged[-1].append(one)
        else:
            merged.append([one])
    return [
        {**several[0], "hidden_states": torch.cat([one["hidden_states"] for one in several])}
        for several in merged
    ]


def _same_but_hidden(first: Any, second: Any) -> bool:
    import torch

    if isinstance(first, dict):
        names = first.keys() - {"hidden_states"}
        same_shape = first["hidden_states"].shape == second["hidden_states"].shape
        return same_shape and all(_same_but_hidden(first[name], second[name]) for name in names)
    if isinstance(first, tuple):
        return all(map(_same_but_hidden, first, second))
    if isinstance(first, torch.Tensor):
        return bool(torch.equal(first, second))
    return bool(first == second)


def output_of(output: Any) -> Any:
    """Attention modules return weights beside their output."""
    return output[0] if isinstance(output, tuple) else output
