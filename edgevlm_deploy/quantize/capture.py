"""Running calibration batches through the whole model while watching the input of one part of it."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from edgevlm_deploy.errors import DataError

Batch = Mapping[str, Any]
"""Keyword arguments of the model's forward: input_ids and attention_mask [B, T], pixel_values, … and maybe
`labels` [B, T], the answer's token ids and −100 elsewhere, which only algorithms that ask for them see."""

LABELS = "labels"
NO_LABEL = -100


def samples(batches: Iterable[Batch]) -> Iterator[dict[str, Any]]:
    """Batches of one without padding: a padded position would count as a token in every statistic."""
    import torch

    for batch in batches:
        if len(batch.get("attention_mask", ())) == 1 and bool(batch["attention_mask"].all()):
            yield dict(batch)  # pictures at their own resolution have no row per sample
            continue
        if "input_ids" not in batch or "attention_mask" not in batch:
            raise DataError(f"A calibration batch needs input_ids and attention_mask, got {sorted(batch)}.")
        for row, mask in enumerate(batch["attention_mask"].bool()):
            sample = {key: value[row : row + 1] for key, value in batch.items()}
            for key in {"input_ids", LABELS} & batch.keys():
                sample[key] = batch[key][row : row + 1, mask]
            sample["attention_mask"] = torch.ones_like(sample["input_ids"])
            yield sample


def without_labels(sample: Batch) -> dict[str, Any]:
    """What the model's forward takes to answer; with labels it would compute a loss as well."""
    return {key: value for key, value in sample.items() if key != LABELS}


def run(model: Any, batches: Iterable[Batch]) -> int:
    """Forward every sample; returns how many there were. Raises DataError when there was none."""
    import torch

    count = 0
    with torch.no_grad():
        for sample in samples(batches):
            model(**without_labels(sample), use_cache=False)
            count += 1
    if count == 0:
        raise DataError("The calibration set is empty; this algorithm needs at least one sample.")
    return count


def watch(model: Any, name: str, batches: Iterable[Batch], see: Callable[[dict[str, Any]], None]) -> None:
    """Call `see` with the tensor arguments of submodule `name`, by parameter name, at each of its calls."""
    import torch

    def see_tensors(arguments: dict[str, Any]) -> None:
        see({key: value for key, value in arguments.items() if isinstance(value, torch.Tensor)})

    with watching(model, [(name, see_tensors)]):
        run(model, batches)


def calls(model: Any, name: str, batches: Iterable[Batch]) -> list[dict[str, Any]]:
    """All arguments of submodule `name`, by parameter name, at each of its calls."""
    seen: list[dict[str, Any]] = []
    with watching(model, [(name, seen.append)]):
        run(model, batches)
    return seen


@contextlib.contextmanager
def watching(model: Any, watched: Iterable[tuple[str, Callable[[dict[str, Any]], None]]]) -> Iterator[None]:
    """While open, each function is called with all arguments of its submodule at each call."""
    handles = []
    for name, see in watched:
        module = model.get_submodule(name)
        handles.append(module.register_forward_pre_hook(_hook(module, see), with_kwargs=True))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _hook(module: Any, see: Callable[[dict[str, Any]], None]) -> Callable[..., None]:
    signature = inspect.signature(module.forward)

    def hook(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        bound = signature.bind(*args, **kwargs).arguments
        # What `**kwargs` took in goes back to where it came from.
        rest = {one.name for one in signature.parameters.values() if one.kind is one.VAR_KEYWORD}
        arguments = {key: value for key, value in bound.items() if key not in rest}
        see({**arguments, **{key: value for name in rest for key, value in bound.get(name, {}).items()}})

    return hook


def first_inputs(model: Any, name: str, batches: Iterable[Batch]) -> dict[str, Any]:
    """Tensor arguments of the first call of submodule `name`. Raises DataError when it is never called."""
    seen: list[dict[str, Any]] = []
    for sample in samples(batches):
        watch(model, name, [sample], seen.append)
        if seen:
            return seen[0]
    raise DataError(f"No calibration sample reaches {name}; does every sample lack a picture?")
