"""Running calibration batches through the whole model while watching the input of one part of it."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from edgevlm_deploy.errors import DataError

Batch = Mapping[str, Any]
"""Keyword arguments of the model's forward: input_ids and attention_mask [B, T], pixel_values, …"""


def samples(batches: Iterable[Batch]) -> Iterator[dict[str, Any]]:
    """Batches of one without padding: a padded position would count as a token in every statistic."""
    import torch

    for batch in batches:
        if "input_ids" not in batch or "attention_mask" not in batch:
            raise DataError(f"A calibration batch needs input_ids and attention_mask, got {sorted(batch)}.")
        for row, mask in enumerate(batch["attention_mask"].bool()):
            sample = {key: value[row : row + 1] for key, value in batch.items()}
            sample["input_ids"] = batch["input_ids"][row : row + 1, mask]
            sample["attention_mask"] = torch.ones_like(sample["input_ids"])
            yield sample


def run(model: Any, batches: Iterable[Batch]) -> int:
    """Forward every sample; returns how many there were. Raises DataError when there was none."""
    import torch

    count = 0
    with torch.no_grad():
        for sample in samples(batches):
            model(**sample, use_cache=False)
            count += 1
    if count == 0:
        raise DataError("The calibration set is empty; this algorithm needs at least one sample.")
    return count


def watch(model: Any, name: str, batches: Iterable[Batch], see: Callable[[dict[str, Any]], None]) -> None:
    """Call `see` with the tensor arguments of submodule `name`, by parameter name, at each of its calls."""
    import torch

    module = model.get_submodule(name)
    signature = inspect.signature(module.forward)

    def hook(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        arguments = signature.bind(*args, **kwargs).arguments
        see({key: value for key, value in arguments.items() if isinstance(value, torch.Tensor)})

    handle = module.register_forward_pre_hook(hook, with_kwargs=True)
    try:
        run(model, batches)
    finally:
        handle.remove()


def first_inputs(model: Any, name: str, batches: Iterable[Batch]) -> dict[str, Any]:
    """Tensor arguments of the first call of submodule `name`. Raises DataError when it is never called."""
    seen: list[dict[str, Any]] = []
    for sample in samples(batches):
        watch(model, name, [sample], seen.append)
        if seen:
            return seen[0]
    raise DataError(f"No calibration sample reaches {name}; does every sample lack a picture?")


def layer_stack(model: Any, name: str) -> str:
    """The module that owns the stack of layers around `name`, e.g. `model.text_model`; else `name` itself."""
    import torch

    parts = name.split(".")
    for length in range(1, len(parts)):
        if isinstance(model.get_submodule(".".join(parts[:length])), torch.nn.ModuleList):
            return ".".join(parts[: length - 1])
    return name
