"""Which block minds being quantised: each one alone at its smallest scheme, all else in floating point.

A change of the loss says little about answers that flip, so flips and confidence are counted too. The order
of the search follows the shift, the total variation distance between the distributions of the next token: it
bounds how often two samplers differ, and one odd item cannot outweigh all others as in a mean of KL.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from edgevlm_runner.contract import CLEAN, Item

from edgevlm_deploy.artifacts import pretty_json, write_text_atomic
from edgevlm_deploy.config import Frozen
from edgevlm_deploy.metrics.confidence import expected_calibration_error
from edgevlm_deploy.metrics.consistency import Flip
from edgevlm_deploy.metrics.pairs import pair
from edgevlm_deploy.recipe import Scheme
from edgevlm_deploy.search.replies import Reply
from edgevlm_deploy.search.space import Block

ITEMS = 128
"""Corrupted items that each block is asked, and the clean ones that they are variants of."""


class Sensitivity(Frozen):
    """One block alone at `scheme`, rounded to nearest."""

    block: str
    scheme: Scheme
    kl: float
    """Mean KL(reference ‖ candidate) per token of the reference's answers, in nats."""
    shift: float
    """Mean total variation distance per token, 0 … 1."""
    divergence_rate: float
    corrupted_divergence_rate: float
    negative_flip_rate: float
    confidence_change: float
    """Mean over items, candidate minus reference."""
    ece_increase: float | None
    """On clean items; None when there is none."""
    weight_error: dict[Scheme, float]
    """‖W − Ŵ‖² / ‖W‖² over the block's modules, for every scheme rounded to nearest."""

    def harm(self, scheme: Scheme) -> float:
        """Square of the shift at another scheme; fp16 has none.

        Small shifts grow with the error of the weights, and shifts of independent errors add in squares.
        """
        if scheme is Scheme.FP16 or not self.weight_error.get(self.scheme):
            return 0.0
        return self.shift**2 * self.weight_error[scheme] / self.weight_error[self.scheme]


def some(items: Sequence[Item]) -> tuple[Item, ...]:
    """Every nth corrupted item, and the clean items that they come from."""
    variants = [item for item in items if item.condition != CLEAN]
    chosen = variants[:: max(1, len(variants) // ITEMS)][:ITEMS]
    if not chosen:
        return tuple(items[:ITEMS])
    bases = {item.base_id for item in chosen}
    return (*(item for item in items if item.id in bases), *chosen)


def measure(
    blocks: Sequence[Block],
    items: Sequence[Item],
    reference: Sequence[Reply],
    ask: Callable[[Block, Scheme], list[Reply]],
    error: Callable[[Block, Scheme], float],
    directory: Path,
    advance: Callable[[int], None],
) -> None:
    """One file per block in `directory`, so that a killed run goes on after the last block.

    ask: replies to `items` with one block quantised. reference: the float model's replies to them.
    """
    for number, block in enumerate(blocks):
        path = directory / f"{number:04d}.json"
        if not path.is_file():
            scheme = block.choices[0]
            errors: dict[Scheme, float] = {
                one: error(block, one) for one in block.choices if one is not Scheme.FP16
            }
            row = _row(block, scheme, items, reference, ask(block, scheme), errors)
            write_text_atomic(path, pretty_json(row))
        advance(1)


def load(directory: Path) -> tuple[Sensitivity, ...]:
    """In the order of the space's blocks."""
    return tuple(
        Sensitivity.model_validate_json(path.read_text()) for path in sorted(directory.glob("*.json"))
    )


def _row(
    block: Block,
    scheme: Scheme,
    items: Sequence[Item],
    reference: Sequence[Reply],
    replies: Sequence[Reply],
    errors: dict[Scheme, float],
) -> Sensitivity:
    pairs = pair(items, [one.answer for one in reference], [one.answer for one in replies])
    clean = pairs.clean
    before, now = (
        expected_calibration_error(said[clean], right[clean])
        for said, right in (
            (pairs.reference_confidence, pairs.reference_accuracy),
            (pairs.artifact_confidence, pairs.artifact_accuracy),
        )
    )
    return Sensitivity(
        block=block.name,
        scheme=scheme,
        kl=float(np.mean([one.kl for one in replies])),
        shift=float(np.mean([one.shift for one in replies])),
        divergence_rate=_mean(pairs.diverged[clean]),
        corrupted_divergence_rate=_mean(pairs.diverged[~clean]),
        negative_flip_rate=_mean([kind is Flip.NEGATIVE for kind in pairs.flips]),
        confidence_change=_mean(pairs.artifact_confidence - pairs.reference_confidence),
        ece_increase=None if before is None or now is None else now - before,
        weight_error=errors,
    )


def _mean(values: Any) -> float:
    return float(np.mean(values)) if len(values) else 0.0
