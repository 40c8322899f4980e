"""Training of the Selector: accuracy regressed from what the compiled graphs computed.

The backbone is frozen by construction: features come from the artifact itself. Width and learning rate are
chosen by the area under risk over coverage on pictures that trained nothing, which also end the training.
Whitehead et al., "Reliable Visual Question Answering", ECCV 2022.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgevlm_deploy.metrics import selective

Floats = NDArray[np.float32]
Accuracies = NDArray[np.float64]
Flags = NDArray[np.bool_]

WIDTHS = (32, 128)
RATES = (1e-4, 3e-4, 1e-3)
BATCH = 128
WEIGHT_DECAY = 0.05
MOST_EPOCHS = 60
PATIENCE = 8
"""Epochs without a better area before the training ends."""


@dataclass(frozen=True)
class Layers:
    """sigmoid(relu(x W₁ + b₁) W₂ + b₂) on features as they are: standardising is part of W₁ and b₁.

    weight_1 [F, W], bias_1 [W], weight_2 [W, 1], bias_2 [1]; all float32.
    """

    weight_1: Floats
    bias_1: Floats
    weight_2: Floats
    bias_2: Floats

    def scores(self, features: Floats) -> Accuracies:
        """float32 [N, F] → expected accuracy, float64 [N]."""
        from scipy.special import expit

        inside = np.maximum(features @ self.weight_1 + self.bias_1, 0.0)
        return np.asarray(expit((inside @ self.weight_2 + self.bias_2)[:, 0].astype(np.float64)))


@dataclass(frozen=True)
class Trial:
    """One width and learning rate."""

    width: int
    learning_rate: float
    epochs: int
    validation_auc: float
    """Area under risk over coverage × 100 on the validation part; smaller is better."""


@dataclass(frozen=True)
class Trained:
    layers: Layers
    trials: tuple[Trial, ...]
    chosen: Trial


def train(
    features: Floats, accuracy: Accuracies, training: Flags, validation: Flags, *, seed: int
) -> Trained | None:
    """Layers from features float32 [N, F] and accuracies [N]; the flags [N] part the items.

    None when a part holds answers of one kind only, all right or all wrong: there is nothing to learn or
    nothing to choose by.
    """
    for part in (training, validation):
        if not part.any() or accuracy[part].min() == accuracy[part].max():
            return None
    found: list[tuple[Layers, Trial]] = [
        _fit(features, accuracy, training, validation, width, rate, seed)
        for width, rate in product(WIDTHS, RATES)
    ]
    layers, chosen = min(found, key=lambda one: one[1].validation_auc)
    return Trained(layers, tuple(trial for _, trial in found), chosen)


def _fit(
    features: Floats,
    accuracy: Accuracies,
    training: Flags,
    validation: Flags,
    width: int,
    rate: float,
    seed: int,
) -> tuple[Layers, Trial]:
    import torch

    mean = features[training].mean(axis=0, dtype=np.float64)
    deviation = features[training].std(axis=0, dtype=np.float64)
    # What never changes in training says nothing, however far it lies off on a device.
    scale = np.where(deviation > 1e-6, 1 / np.maximum(deviation, 1e-6), 0.0)
    standard = torch.from_numpy(((features - mean) * scale).astype(np.float32))
    wanted = torch.from_numpy(accuracy.astype(np.float32))
    rows = torch.from_numpy(np.flatnonzero(training))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module = torch.nn.Sequential(
            torch.nn.Linear(features.shape[1], width), torch.nn.ReLU(), torch.nn.Linear(width, 1)
        )
        optimiser = torch.optim.AdamW(module.parameters(), lr=rate, weight_decay=WEIGHT_DECAY)
        best, kept, reached = float("inf"), _state(module), 0
        for epoch in range(1, MOST_EPOCHS + 1):
            for batch in _batches(torch, rows):
                odds = module(standard[batch])[:, 0]
                loss = torch.nn.functional.binary_cross_entropy_with_logits(odds, wanted[batch])
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()
            with torch.no_grad():
                scores = module(standard)[:, 0].sigmoid().double().numpy()
            area = selective.risk_coverage_auc(scores[validation], accuracy[validation])
            assert area is not None
            if area < best:
                best, kept, reached = area, _state(module), epoch
            if epoch == reached + PATIENCE:
                break
    return _folded(kept, mean, scale), Trial(width, rate, reached, best)


def _batches(torch: Any, rows: Any) -> Iterator[Any]:
    yield from rows[torch.randperm(len(rows))].split(BATCH)


def _state(module: Any) -> dict[str, Any]:
    return {name: tensor.detach().numpy().astype(np.float64) for name, tensor in module.state_dict().items()}


def _folded(state: dict[str, Any], mean: Accuracies, scale: Accuracies) -> Layers:
    """Layers that take features as they are."""
    first = state["0.weight"].T * scale[:, None]  # [F, W]
    bias = state["0.bias"] - mean @ first
    arrays = (first, bias, state["2.weight"].T, state["2.bias"])
    return Layers(*(np.ascontiguousarray(one, np.float32) for one in arrays))
