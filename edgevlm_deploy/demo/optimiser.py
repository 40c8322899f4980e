"""The optimiser and the learning rate of both demo models."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

MUON_RATE = 1.5
"""Learning rate of Muon over that of AdamW."""


def _learning_rate(step: int, steps: int, warmup: int, peak: float) -> float:
    if step < warmup:
        return peak * (step + 1) / warmup
    return peak * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup))))


class Optimiser:
    """Muon for the matrices inside the two transformers, AdamW for the rest; warm-up, then cosine.

    AdamW alone needs many more steps until the model finds that a word names something seen.
    Gradients are clipped to norm 1.
    """

    def __init__(self, modules: Sequence[torch.nn.Module], steps: int, warmup: int, peak: float) -> None:
        named = [pair for module in modules for pair in module.named_parameters()]
        inner = [p for name, p in named if p.ndim == 2 and "layers." in name]
        decayed = [p for name, p in named if p.ndim > 1 and not (p.ndim == 2 and "layers." in name)]
        plain = [p for _, p in named if p.ndim <= 1]
        groups = [{"params": decayed, "weight_decay": 0.05}, {"params": plain, "weight_decay": 0.0}]
        adam = torch.optim.AdamW(groups, betas=(0.9, 0.98), fused=True)
        muon = torch.optim.Muon(inner, weight_decay=0.05, adjust_lr_fn="match_rms_adamw")
        self._optimisers = ((adam, 1.0), (muon, MUON_RATE))
        self._parameters = [parameter for _, parameter in named]
        self._steps, self._warmup, self._peak = steps, warmup, peak

    def apply(self, loss: torch.Tensor, step: int) -> None:
        rate = _learning_rate(step, self._steps, self._warmup, self._peak)
        for optimiser, factor in self._optimisers:
            for group in optimiser.param_groups:
                group["lr"] = rate * factor
            optimiser.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self._parameters, 1.0)
        for optimiser, _ in self._optimisers:
            optimiser.step()
