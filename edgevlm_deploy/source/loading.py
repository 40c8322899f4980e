"""Torch models of transformers, proved equal to what the checkpoint stores."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

from edgevlm_deploy.errors import CheckpointError, MissingExtraError
from edgevlm_deploy.source.header import is_position_buffer
from edgevlm_deploy.source.model import AnyArchitecture, SourceModel


def load(source: SourceModel, class_name: str, attention: str | Mapping[str, str]) -> Any:
    """transformers' `class_name` on the CPU, in eval mode; `check_weights` is to follow.

    It computes in float32. Of a model that is too large for the memory that is left, the large matrices stay
    as they are stored, on pages of their files; see `paging`.

    attention: name of the attention implementation, or one per part of the configuration.
    Raises CheckpointError when transformers cannot load it, or leaves out or adds a weight.
    """
    try:
        import torch
        import transformers
    except ImportError as error:
        raise MissingExtraError("Loading a model needs `pip install edgevlm[compile]`.") from error
    from edgevlm_deploy import paging

    paged = paging.is_needed(source.parameters)
    with _without_progress_bar():
        try:
            model, report = getattr(transformers, class_name).from_pretrained(
                source.path,
                dtype=getattr(torch, _widest(source)) if paged else torch.float32,
                attn_implementation=attention if isinstance(attention, str) else dict(attention),
                local_files_only=True,
                use_safetensors=True,
                output_loading_info=True,
            )
        except Exception as error:
            raise CheckpointError(f"{source.path}: transformers cannot load it ({error}).") from error
    wrong = {kind: sorted(map(str, names)) for kind, names in report.items() if names}
    if wrong:
        listed = "; ".join(f"{kind}: {', '.join(names[:3])}" for kind, names in wrong.items())
        raise CheckpointError(f"{source.path}: weights do not fit the config ({listed}).")
    for module in model.modules():
        # The same computation, spelled so that quantisers and exporters understand it.
        if isinstance(module, torch.nn.Conv2d) and module.padding == "valid":
            module.padding = (0, 0)
    if paged:
        paging.keep(model)
    return model.eval()


def _widest(source: SourceModel) -> str:
    """torch's name of a dtype that holds every stored weight as it is."""
    from safetensors import safe_open

    found = set()
    for file in source.weight_files:
        with safe_open(source.path / file, framework="pt") as weights:
            for name in weights.keys():  # noqa: SIM118 - not a mapping
                if not is_position_buffer(name):
                    found.add(weights.get_slice(name).get_dtype())
    return {"F16": "float16", "BF16": "bfloat16"}[min(found)] if found in ({"F16"}, {"BF16"}) else "float32"


@contextmanager
def _without_progress_bar() -> Iterator[None]:
    """transformers draws one per loaded model; progress is shown by the caller."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def check_architecture(source: SourceModel, made: AnyArchitecture) -> None:
    """transformers made the model that the checkpoint's files describe. Raises CheckpointError."""
    ours, theirs = asdict(source.architecture), asdict(made)
    wrong = [f"{key} {theirs[key]}, not {ours[key]}" for key in ours if theirs[key] != ours[key]]
    if wrong:
        raise CheckpointError(f"{source.path}: transformers made a model of {'; '.join(wrong)}.")


def check_weights(
    model: Any,
    source: SourceModel,
    tied: Collection[str] = (),
    module_name: Callable[[str], str] = lambda stored: stored,
) -> None:
    """Every stored tensor is in the model, equal and finite; everything in the model was stored.

    tied: parameters that another one stands for; module_name: a stored tensor's name in the model.
    Raises CheckpointError.
    """
    import torch
    from safetensors import safe_open

    state = model.state_dict()
    missing = set(state) - set(tied)
    for file in source.weight_files:
        with safe_open(source.path / file, framework="pt") as stored:
            for name in stored.keys():  # noqa: SIM118 - not a mapping
                if is_position_buffer(name):
                    continue
                tensor = stored.get_tensor(name)
                if name in state:
                    tensor = tensor.to(state[name].dtype)
                if not torch.isfinite(tensor).all():
                    raise CheckpointError(f"{source.path}: {name} holds values that are not finite.")
                own = module_name(name)
                if own not in state or not torch.equal(state[own], tensor):
                    raise CheckpointError(f"{source.path}: transformers did not load {name} as it is stored.")
                missing.discard(own)
    if missing:
        raise CheckpointError(f"{source.path}: {sorted(missing)[0]} has no stored weight.")
