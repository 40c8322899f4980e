"""Class scores of reference and artifact on one set of pictures, and as items with answers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from edgevlm_runner.contract import CLEAN, TEMPERATURE, Answer, DualEncoderSpec, Item, Kind
from numpy.typing import NDArray

from edgevlm_deploy.errors import DataError
from edgevlm_deploy.metrics import spurious
from edgevlm_deploy.metrics.dual.zero_shot import sigmoid_confidence, softmax_confidence

Floats = NDArray[np.float64]
Codes = NDArray[np.int64]
Flags = NDArray[np.bool_]

OUTSIDE = -1
"""Label of a picture that belongs to no class."""


@dataclass(frozen=True)
class Head:
    """How a model's cosines become probabilities: softmax, or sigmoid where there is a bias (SigLIP)."""

    logit_scale: float
    """After the exponential."""
    logit_bias: float | None = None

    def confidence(self, cosines: Floats) -> Floats:
        """Of the best class, float64 [N]."""
        if self.logit_bias is None:
            return softmax_confidence(cosines, self.logit_scale)
        return sigmoid_confidence(cosines, self.logit_scale, self.logit_bias)


@dataclass(frozen=True, eq=False)
class Scored:
    """N pictures, some of which belong to no class, and their cosines with the C class texts.

    Raises DataError when the columns do not fit together.
    """

    classes: tuple[str, ...]
    labels: Codes
    """[N], index into `classes` or OUTSIDE."""
    image_ids: tuple[str, ...]
    """What is resampled: pictures of one scene or file share an id."""
    conditions: tuple[str, ...]
    """As in `contract.Item`: "clean", "temperature", "<corruption>/<severity>"."""
    groups: tuple[str, ...]
    """Class (or what the data group by) × background, "" for none."""
    splits: tuple[str, ...]
    """`spurious.COMMON`, `spurious.COUNTER` or ""."""
    reference: Floats
    """Cosines, [N, C]."""
    artifact: Floats
    reference_head: Head
    artifact_head: Head

    def __post_init__(self) -> None:
        n, classes = len(self.labels), len(self.classes)
        columns = {
            "image_ids": len(self.image_ids),
            "conditions": len(self.conditions),
            "groups": len(self.groups),
            "splits": len(self.splits),
        }
        if wrong := {name: length for name, length in columns.items() if length != n}:
            raise DataError(
                f"class scores: expected {n} entries in every column, one per label; got {wrong}."
            )
        for name, scores in (("reference", self.reference), ("artifact", self.artifact)):
            if scores.shape != (n, classes):
                raise DataError(
                    f"class scores: expected {n} pictures × {classes} classes from the {name}, "
                    f"got {list(scores.shape)}."
                )
            if not np.isfinite(scores).all():
                raise DataError(f"class scores: the {name}'s hold NaN or infinity; its encoders are broken.")
        if n and not (self.labels.min() >= OUTSIDE and self.labels.max() < classes):
            raise DataError(f"class scores: labels must lie between {OUTSIDE} and {classes - 1}.")

    @property
    def inside(self) -> Flags:
        """Clean pictures of a class."""
        return np.asarray(self._clean & (self.labels != OUTSIDE))

    @property
    def outside(self) -> Flags:
        """Clean pictures of no class."""
        return np.asarray(self._clean & (self.labels == OUTSIDE))

    @property
    def _clean(self) -> Flags:
        return np.array([condition == CLEAN for condition in self.conditions], dtype=np.bool_)


def of(
    spec: DualEncoderSpec, items: Sequence[Item], reference: Sequence[Answer], artifact: Sequence[Answer]
) -> Scored:
    """The class scores in a bundle's answers: clean, corrupted, held-out and foreign pictures.

    Raises DataError when an answer is missing, or has no scores.
    """
    kinds = (Kind.CLEAN, Kind.TEMPERATURE, Kind.CORRUPTED, Kind.OOD)
    kept = [item for item in items if item.kind in kinds]
    head = Head(spec.logit_scale, None if spec.activation == "softmax" else spec.logit_bias)
    places = {name: place for place, name in enumerate(spec.text.classes)}
    return Scored(
        classes=tuple(spec.text.classes),
        labels=np.array(
            [OUTSIDE if item.kind is Kind.OOD else places[item.answers[0]] for item in kept], np.int64
        ),
        image_ids=tuple(item.image_id for item in kept),
        # What tells a foreign picture here is its label.
        conditions=tuple(CLEAN if item.kind is Kind.OOD else item.condition for item in kept),
        groups=tuple(" · ".join(spurious.group(item)) if item.answers else "" for item in kept),
        splits=tuple(item.split for item in kept),
        reference=_cosines(kept, reference, "reference"),
        artifact=_cosines(kept, artifact, "artifact"),
        reference_head=head,
        artifact_head=head,
    )


def _cosines(items: Sequence[Item], answers: Sequence[Answer], whose: str) -> Floats:
    scores = {answer.item_id: answer.scores for answer in answers}
    missing = [item.id for item in items if not scores.get(item.id)]
    if missing:
        raise DataError(f"class scores: the {whose} gave none for {len(missing)} items, e.g. {missing[0]!r}.")
    return np.array([scores[item.id] for item in items], np.float64)


def items(scored: Scored) -> tuple[Item, ...]:
    """The pictures that belong to a class. A variant's base is the clean one of its picture and group."""
    first: dict[tuple[str, str], str] = {}
    for place in np.flatnonzero(scored.inside).tolist():
        first.setdefault((scored.image_ids[place], scored.groups[place]), f"{place:06d}")
    found = []
    for place in np.flatnonzero(scored.labels != OUTSIDE).tolist():
        own, condition = f"{place:06d}", scored.conditions[place]
        image, group = scored.image_ids[place], scored.groups[place]
        found.append(
            Item(
                id=own,
                base_id=own if condition in (CLEAN, TEMPERATURE) else first.get((image, group), ""),
                group=group,
                condition=condition,
                image=image,
                image_id=image,
                prompt="",
                answers=(scored.classes[scored.labels[place]],),
            )
        )
    return tuple(found)


def answers(scored: Scored, cosines: Floats, head: Head) -> tuple[Answer, ...]:
    """The best class as text; its probability takes the place of a token's."""
    said, sure = cosines.argmax(axis=1), head.confidence(cosines)
    return tuple(
        Answer(
            item_id=f"{number:06d}",
            text=scored.classes[said[number]],
            token_ids=(int(said[number]),),
            token_logprobs=(math.log(max(float(sure[number]), 1e-300)),),
            finished=True,
        )
        for number in np.flatnonzero(scored.labels != OUTSIDE)
    )
