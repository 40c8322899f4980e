"""Moving per-channel scales from the input of linear layers into what precedes them, exactly.

A norm (or a linear layer whose output is multiplied element by element) that feeds only the named linear
layers can be divided by s per channel when their weights are multiplied by s per column: the float model
computes the same, but rounds differently. AWQ and SmoothQuant choose s.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from edgevlm_deploy.errors import QuantizationError

RULES: tuple[tuple[str, tuple[str, ...]], ...] = (
    # Llama-like decoder layer
    ("input_layernorm", ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")),
    ("post_attention_layernorm", ("mlp.gate_proj", "mlp.up_proj")),
    ("mlp.up_proj", ("mlp.down_proj",)),
    # SigLIP-like encoder layer. fc2 has no rule: its input has passed GELU.
    ("layer_norm1", ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")),
    ("layer_norm2", ("mlp.fc1",)),
    # Qwen-VL's vision blocks; Qwen2.5's has gates and so the rule of `mlp.up_proj` too
    ("norm1", ("attn.qkv",)),
    ("norm2", ("mlp.gate_proj", "mlp.up_proj")),
    ("norm2", ("mlp.fc1",)),
    ("norm2", ("mlp.linear_fc1",)),
)
"""Source and the only consumers of its output, by their names inside one transformer layer."""

_LAYER = re.compile(r"^(.*\b(?:layers?|blocks)\.\d+)\.")


def layer_of(name: str) -> str:
    """The transformer layer that a module belongs to, e.g. `model.text_model.layers.0`; "" outside of all."""
    match = _LAYER.match(name)
    return match.group(1) if match else ""


@dataclass(frozen=True)
class Fold:
    source: str
    targets: tuple[str, ...]


def folds(module_names: Iterable[str]) -> tuple[Fold, ...]:
    """Every place in a model where `RULES` apply, in the order of its layers."""
    names = dict.fromkeys(module_names)
    layers = dict.fromkeys(filter(None, map(layer_of, names)))
    return tuple(
        Fold(f"{layer}.{source}", tuple(f"{layer}.{target}" for target in targets))
        for layer in layers
        for source, targets in RULES
        if f"{layer}.{source}" in names and all(f"{layer}.{target}" in names for target in targets)
    )


def apply(model: Any, fold: Fold, scale: Any) -> tuple[str, ...]:
    """Divide the source's output by `scale` [K] and multiply the targets' columns by it, in place.

    Returns the names of the parameters that changed.
    Raises QuantizationError when a scale is not positive and finite.
    """
    import torch

    from edgevlm_deploy.paging import Factor, Paged

    if not bool(torch.all(torch.isfinite(scale) & (scale > 0))):
        raise QuantizationError(f"{fold.source}: a folding scale is not positive and finite.")
    source = model.get_submodule(fold.source)
    changed = [f"{fold.source}.weight"]
    with torch.no_grad():
        if isinstance(source, Paged):
            source.fold(Factor(divided_rows=scale))
        else:
            source.weight.div_(scale if source.weight.ndim == 1 else scale[:, None])
        if getattr(source, "bias", None) is not None:
            source.bias.div_(scale)
            changed.append(f"{fold.source}.bias")
        for target in fold.targets:
            module = model.get_submodule(target)
            if isinstance(module, Paged):
                module.fold(Factor(columns=scale))
            else:
                module.weight.mul_(scale[None, :])
            changed.append(f"{target}.weight")
    return tuple(changed)
