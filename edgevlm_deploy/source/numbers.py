"""Numbers of a checkpoint: shapes of its weights, and what its configuration says."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from edgevlm_deploy.errors import CheckpointError
from edgevlm_deploy.source.checkpoint import Checkpoint
from edgevlm_deploy.source.header import StoredTensor

DEFAULT_ROPE_THETA = 10000.0
"""Of transformers' configurations of Llama, Mistral, Qwen2 and Gemma."""


def matrices(tensors: Mapping[str, StoredTensor], leave_out: Collection[str]) -> dict[str, tuple[int, int]]:
    """Module → (N, K) of every weight matrix in model order, without the tensors named in `leave_out`
    (tables of positions are matrices too).
    """
    names = sorted(tensors, key=_model_order)
    return {
        name.removesuffix(".weight"): (tensors[name].shape[0], tensors[name].shape[1])
        for name in names
        if name.endswith(".weight") and len(tensors[name].shape) == 2 and name not in leave_out
    }


def _model_order(name: str) -> list[tuple[int, str]]:
    """layers.2 before layers.10."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in name.split(".")]


def section(checkpoint: Checkpoint, name: str) -> Mapping[str, Any]:
    found = checkpoint.config.get(name, {})
    if not isinstance(found, dict):
        raise CheckpointError(f"{checkpoint.path}: {name} in config.json is no object.")
    return found


def number(checkpoint: Checkpoint, section: Mapping[str, Any], key: str, default: int) -> int:
    value = section.get(key)
    if value is None:
        return default
    if type(value) is not int or value < 1:
        raise CheckpointError(
            f"{checkpoint.path}: {key} in config.json is {value!r}, expected a whole number above 0."
        )
    return value


def shape(checkpoint: Checkpoint, name: str, dimensions: int) -> tuple[int, ...]:
    tensor = checkpoint.tensors.get(name)
    if tensor is None or len(tensor.shape) != dimensions or 0 in tensor.shape:
        found = "is not there" if tensor is None else f"has shape {list(tensor.shape)}"
        raise CheckpointError(
            f"{checkpoint.path}: {name} {found}; these are not the weights of "
            f"a {checkpoint.config['model_type']} model."
        )
    return tensor.shape


def rope_theta(checkpoint: Checkpoint, text: Mapping[str, Any]) -> float:
    """At the top in configurations of transformers 4, in `rope_parameters` since 5."""
    theta = text.get("rope_theta")
    parameters = text.get("rope_parameters")
    if theta is None and isinstance(parameters, dict):
        theta = parameters.get("rope_theta")
    if theta is None:
        return DEFAULT_ROPE_THETA
    if type(theta) not in (int, float):
        raise CheckpointError(
            f"{checkpoint.path}: rope_theta in config.json is {theta!r}, expected a number."
        )
    return float(theta)
