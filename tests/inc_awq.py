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
    root = capture.layer_stack(model, next(iter(request)))
    inputs = [Movable(one) for one in inc._stack_inputs(model, root, batches)]
    stack = model.get_submodule(root)
    first = "layers.0."
    absorb = {
        fold.source.removeprefix(first): [target.removeprefix(first) for target in fold.targets]
        for fold in folding.folds(name for name, _ in stack.named_modules())
        if fold.source.startswith(first)
    }
    with inc._library() as library:
        options = {"absorb_layer_dict": absorb, "folding": True}
        inc._convert(library, library.AWQConfig, options, stack, inc._inside(root, request), inputs)
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
