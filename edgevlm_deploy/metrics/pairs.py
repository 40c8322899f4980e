"""Items joined with what the reference and the artifact answered, as columns of numbers."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from edgevlm_runner.contract import Answer, Item, Kind
from numpy.typing import NDArray

from edgevlm_deploy.errors import DataError
from edgevlm_deploy.metrics.accuracy import accuracy
from edgevlm_deploy.metrics.confidence import geometric_mean_probability, max_prob
from edgevlm_deploy.metrics.consistency import Flip, diverges, first_divergence, flip
from edgevlm_deploy.metrics.probes.replies import strict
from edgevlm_deploy.recipe import ProbeForm

Floats = NDArray[np.float64]
Flags = NDArray[np.bool_]


@dataclass(frozen=True)
class Pairs:
    """N items in their order and what was answered; arrays have shape [N]."""

    items: tuple[Item, ...]
    reference: tuple[Answer, ...]
    artifact: tuple[Answer, ...]
    clusters: tuple[str, ...]
    """Picture of each item's clean item; items of one picture are one statistical cluster."""
    clean: Flags
    corrupted: Flags
    perturbed: Flags
    base: NDArray[np.int64]
    """Place of each item's clean item (its own for a clean item)."""
    reference_accuracy: Floats
    """Of a negation probe: success by the strict scorer."""
    artifact_accuracy: Floats
    reference_clean_accuracy: Floats
    """Accuracy on the clean item that this item is a variant of (itself for a clean item)."""
    artifact_clean_accuracy: Floats
    diverged: Flags
    flips: tuple[Flip | None, ...]
    first_divergences: tuple[int | None, ...]
    reference_confidence: Floats
    artifact_confidence: Floats
    reference_max_prob: Floats
    artifact_max_prob: Floats
    artifact_selector: Floats | None
    """What the bundle's Selector says to each answer; None where it did not judge them all."""

    def of(self, kind: Kind) -> Flags:
        """bool [N]: the items of one kind."""
        return np.array([item.kind is kind for item in self.items], dtype=np.bool_)


def pair(items: Sequence[Item], reference: Sequence[Answer], artifact: Sequence[Answer]) -> Pairs:
    """Join by item id and score. Answers to items that are not in the table are left aside.

    Raises DataError when ids repeat, an answer is missing, or a variant's clean item is missing.
    """
    said_before = _in_order(items, reference, "reference")
    said_now = _in_order(items, artifact, "artifact")
    place = {item.id: number for number, item in enumerate(items)}
    if len(place) != len(items):
        raise DataError(f"item ids must be unique: {len(items)} items have {len(place)} different ids.")
    orphans = [item.id for item in items if item.base_id not in place]
    if orphans:
        raise DataError(
            f"{len(orphans)} variants lack their clean item, for instance {orphans[0]!r}; "
            "the table of items must hold both."
        )
    base = np.array([place[item.base_id] for item in items], dtype=np.int64)
    before = _accuracies(items, said_before)
    now = _accuracies(items, said_now)
    diverged = [diverges(r.text, a.text) for r, a in zip(said_before, said_now, strict=True)]
    kinds = np.array([item.kind.value for item in items], dtype=str)
    clean_items = [items[place] for place in base]
    return Pairs(
        items=tuple(items),
        reference=said_before,
        artifact=said_now,
        clusters=tuple(item.image_id or item.id for item in clean_items),
        clean=kinds == Kind.CLEAN.value,
        corrupted=kinds == Kind.CORRUPTED.value,
        perturbed=kinds == Kind.PERTURBED.value,
        base=base,
        reference_accuracy=before,
        artifact_accuracy=now,
        reference_clean_accuracy=before[base],
        artifact_clean_accuracy=now[base],
        diverged=np.array(diverged, dtype=np.bool_),
        flips=tuple(flip(*row) for row in zip(before, now, diverged, strict=True)),
        first_divergences=tuple(
            first_divergence(r.token_ids, a.token_ids) for r, a in zip(said_before, said_now, strict=True)
        ),
        reference_confidence=_column(geometric_mean_probability(a.token_logprobs) for a in said_before),
        artifact_confidence=_column(geometric_mean_probability(a.token_logprobs) for a in said_now),
        reference_max_prob=_column(max_prob(a.token_logprobs) for a in said_before),
        artifact_max_prob=_column(max_prob(a.token_logprobs) for a in said_now),
        artifact_selector=_judged(said_now),
    )


def _in_order(items: Sequence[Item], answers: Sequence[Answer], whose: str) -> tuple[Answer, ...]:
    by_id = {answer.item_id: answer for answer in answers}
    if len(by_id) != len(answers):
        raise DataError(
            f"{whose} answers: {len(answers)} answers to {len(by_id)} items; expected one per item."
        )
    missing = [item.id for item in items if item.id not in by_id]
    if missing:
        raise DataError(
            f"{whose} answers: {len(missing)} of {len(items)} items have none, for instance {missing[0]!r}; "
            "run the evaluation to its end."
        )
    return tuple(by_id[item.id] for item in items)


def _judged(answers: Sequence[Answer]) -> Floats | None:
    scores = [answer.selector for answer in answers if answer.selector is not None]
    return _column(scores) if len(scores) == len(answers) else None


def _accuracies(items: Sequence[Item], answers: Sequence[Answer]) -> Floats:
    return _column(score(item, answer.text) for item, answer in zip(items, answers, strict=True))


def score(item: Item, text: str) -> float:
    """How right `text` is as an answer to `item`, in [0, 1].

    Raises DataError for a negation probe of a form that nobody here knows.
    """
    if item.kind not in (Kind.NEGATED, Kind.NEGATED_BLIND):
        return accuracy(text, item.answers)
    try:
        return float(strict(ProbeForm(item.form), text, item.answers))
    except ValueError:
        forms = ", ".join(form.value for form in ProbeForm)
        raise DataError(
            f"item {item.id!r}: unknown probe {item.form!r}, expected one of {forms}. The bundle may come "
            "from a newer edgevlm; compile it again."
        ) from None


def _column(values: Iterable[float]) -> Floats:
    return np.fromiter(values, dtype=np.float64)
