"""What tests of several quantisers ask for and measure."""

from __future__ import annotations

from typing import Any

import torch

from edgevlm_deploy.recipe import Algorithm, Component, ModuleOverride, Precision, Scheme


def decoder(scheme: Scheme, algorithm: Algorithm) -> dict[Component, Precision]:
    return {Component.DECODER: Precision(scheme=scheme, algorithm=algorithm)}


def override(pattern: str, scheme: Scheme, algorithm: Algorithm = Algorithm.RTN) -> ModuleOverride:
    return ModuleOverride(pattern=pattern, scheme=scheme, algorithm=algorithm)


def logits(model: Any, batches: list[dict[str, Any]]) -> torch.Tensor:
    with torch.no_grad():
        return torch.cat([model(**batch).logits[0] for batch in batches])


def relative_error(got: torch.Tensor, expected: torch.Tensor) -> float:
    return float((got - expected).detach().norm() / expected.detach().norm())
