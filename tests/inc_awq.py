"""Neural Compressor's AWQ, which ours is compared with."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch

from edgevlm_deploy.quantize import capture, folding, inc
from edgevlm_deploy.quantize.request import Request


class Movable(dict[str, Any]):
    """It calls `.to(device)` on its example inputs, which a plain dict does not have."""

    def to(self, device: Any) -> Movable:
        return self


def fake_quantized(model: Any, request: Request, batches: Sequence[Any]) -> Any:
    """A copy of `model` that computes with the weights and norms that the library's AWQ leaves."""
    model = copy.deepcopy(model)
    root = _layer_stack(model, next(iter(request)))
    inputs: list[dict[str, Any]] = []
    capture.watch(model, root, batches, lambda seen: inputs.append(Movable({**seen, "use_cache": False})))
    stack = model.get_submodule(root)
    first = "layers.0."
    absorb = {
        fold.source.removeprefix(first): [target.removeprefix(first) for target in fold.targets]
        for fold in folding.folds(name for name, _ in stack.named_modules())
        if fold.source.startswith(first)
    }
    with inc._library() as library:
        options = {"absorb_layer_dict": absorb, "folding": True}
        local = {name.removeprefix(f"{root}."): wanted for name, wanted in request.items()}
        inc._convert(library, library.AWQConfig, options, stack, local, inputs)
    for name in request:
        owner, _, leaf = name.rpartition(".")
        packed = model.get_submodule(name)
        unpacked = packed.unpack()
        group = torch.arange(packed.in_features) // packed.group_size
        weight = (unpacked["int_weight"].float() - unpacked["zp"].float()[:, group]) * unpacked[
            "scales"
        ].float()[:, group]
        linear = torch.nn.Linear(packed.in_features, packed.out_features, bias=packed.bias is not None)
        linear.weight.data = weight
        setattr(model.get_submodule(owner), leaf, linear)
    return model


def _layer_stack(model: Any, name: str) -> str:
    """The module that owns the stack of layers around `name`, e.g. `model.text_model`; else `name` itself."""
    parts = name.split(".")
    for length in range(1, len(parts)):
        if isinstance(model.get_submodule(".".join(parts[:length])), torch.nn.ModuleList):
            return ".".join(parts[: length - 1])
    return name
