"""Estimates of a dual encoder that need all class scores: top-5, groups, out-of-distribution detection.

A metric is a function of how often each picture counts, so that resampling pictures resamples all of them
at once. Intervals are like those of `estimates`: a closed form that keeps its width when nothing went
wrong, widened to the bootstrap over pictures.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray

from edgevlm_deploy.metrics import ood, spurious
from edgevlm_deploy.metrics.dual import zero_shot
from edgevlm_deploy.metrics.dual.scored import OUTSIDE, Scored
from edgevlm_deploy.metrics.estimates import drawn, undefined
from edgevlm_deploy.metrics.statistics import (
    Estimate,
    cluster_codes,
    paired_difference,
    resampled_clusters,
    wilson,
)
from edgevlm_deploy.recipe import Evaluation

Floats = NDArray[np.float64]
Flags = NDArray[np.bool_]
Interval = tuple[float, float]
Pair = tuple[Floats, Floats]
"""A column [N] of the reference and the same of the artifact."""

REFERENCE, ARTIFACT = 0, 1
TOP = 5
_METHOD = "closed form + clustered bootstrap"


class Metric(Protocol):
    """One number per model. `whose` is REFERENCE or ARTIFACT."""

    worse: ClassVar[str]
    """What its change for the worse is called: "drop" or "increase"."""
    lacks: ClassVar[str]
    """Why the metric may be undefined."""

    @property
    def name(self) -> str: ...

    @property
    def inside(self) -> Flags:
        """The pictures that it looks at, bool [N]."""

    def values(self, whose: int, weights: Floats) -> Floats:
        """float64 [R] under R weightings of the pictures, `weights` [R, N]; NaN where undefined."""

    def interval(self, whose: int, level: float) -> Interval | None:
        """An interval that keeps its width where nothing went wrong."""

    def change(self, level: float) -> Interval | None:
        """The same for artifact − reference."""


def estimates(given: Scored, evaluation: Evaluation) -> dict[str, Estimate]:
    """Every metric of the artifact, `reference_*` of the reference, `*_drop` or `*_increase` between them."""
    codes, pictures = cluster_codes(given.image_ids)
    wanted, level = metrics(given), evaluation.confidence_level
    once = np.ones((1, len(codes)))
    resampled: dict[tuple[str, int], list[Floats]] = {
        (one.name, whose): [] for one in wanted for whose in (REFERENCE, ARTIFACT)
    }
    for times in resampled_clusters(pictures, resamples=evaluation.bootstrap_resamples, seed=evaluation.seed):
        weights = times[:, codes]
        for one in wanted:
            for whose in (REFERENCE, ARTIFACT):
                resampled[one.name, whose].append(one.values(whose, weights))
    found: dict[str, Estimate] = {}
    for one in wanted:
        before, now = (float(one.values(whose, once)[0]) for whose in (REFERENCE, ARTIFACT))
        draws_before, draws_now = (
            np.concatenate(resampled[one.name, whose]) for whose in (REFERENCE, ARTIFACT)
        )
        if np.isnan(before) or np.isnan(now):
            names = (one.name, f"reference_{one.name}", f"{one.name}_{one.worse}")
            found |= {name: undefined(one.lacks) for name in names}
            continue
        sign = 1 if one.worse == "increase" else -1
        change = one.change(level)
        turned = change if change is None or sign > 0 else (-change[1], -change[0])
        size = _size(given, one.inside)
        for name, value, draws, closed in (
            (one.name, now, draws_now, one.interval(ARTIFACT, level)),
            (f"reference_{one.name}", before, draws_before, one.interval(REFERENCE, level)),
            (f"{one.name}_{one.worse}", sign * (now - before), sign * (draws_now - draws_before), turned),
        ):
            found[name] = drawn(value, draws, closed, size, level, _METHOD)
    return found


def metrics(given: Scored) -> tuple[Metric, ...]:
    """The metrics of one table of class scores."""
    belongs = given.labels != OUTSIDE
    ranks = tuple(
        np.where(belongs, zero_shot.ranks(cosines, np.maximum(given.labels, 0)), len(given.classes) + 1)
        for cosines in (given.reference, given.artifact)
    )
    right, top = (
        ((ranks[REFERENCE] <= k).astype(np.float64), (ranks[ARTIFACT] <= k).astype(np.float64))
        for k in (1, TOP)
    )
    splits, groups = np.array(given.splits, dtype=str), np.array(given.groups, dtype=str)
    common, counter = (given.inside & (splits == name) for name in (spurious.COMMON, spurious.COUNTER))
    # Among five classes or fewer the right one is always one of the five best.
    ranked = given.inside & (len(given.classes) > TOP)
    every = (given.inside & (groups == name) for name in np.unique(groups[given.inside]) if name)
    parts = tuple(part for part in every if part.sum() >= spurious.LEAST_IN_GROUP)

    def detection(
        name: str, score: Callable[[Floats], Floats], value: Callable[[ood.Curve], Floats]
    ) -> Metric:
        kind = Area if name.endswith("auroc") else FalsePositives
        return kind(name, (score(given.reference), score(given.artifact)), given.inside, given.outside, value)

    mcm = ood.maximum_concept_matching
    return (
        Share(f"top_{TOP}_accuracy", top, ranked),
        WorstGroup("worst_group_accuracy", right, parts),
        SpuriousGap("relative_spurious_gap", right, common, counter),
        detection("mcm_auroc", mcm, ood.Curve.area),
        detection("mcm_fpr_at_least_95", mcm, ood.Curve.false_positives_at_least),
        detection("mcm_fpr_closest_95", mcm, ood.Curve.false_positives_closest),
        detection("energy_auroc", ood.energy, ood.Curve.area),
        detection("max_logit_auroc", ood.max_logit, ood.Curve.area),
        detection("entropy_auroc", ood.negative_entropy, ood.Curve.area),
    )


def _size(given: Scored, inside: Flags) -> tuple[int, int]:
    """(items, pictures)."""
    places = np.flatnonzero(inside)
    return len(places), len({given.image_ids[place] for place in places})


def _share(column: Floats, inside: Flags, weights: Floats) -> Floats:
    """Weighted mean of a column over some pictures, float64 [R]; NaN where none was drawn."""
    count = weights @ inside.astype(np.float64)
    total = weights @ np.where(inside, column, 0.0)
    return np.where(count > 0, total / np.where(count > 0, count, 1.0), np.nan)


def _paired(columns: Pair, inside: Flags, level: float) -> Interval:
    moved = (columns[ARTIFACT] - columns[REFERENCE])[inside]
    return paired_difference(float(moved.sum()), float(np.square(moved).sum()), len(moved), level)


def _wilson(column: Floats, inside: Flags, level: float) -> Interval:
    return wilson(float(column[inside].sum()), int(inside.sum()), level)


@dataclass(frozen=True, eq=False)
class Share:
    """The mean of a column of zeros and ones."""

    name: str
    columns: Pair
    inside: Flags
    worse: ClassVar[str] = "drop"
    lacks: ClassVar[str] = f"there are no more than {TOP} classes"

    def values(self, whose: int, weights: Floats) -> Floats:
        return _share(self.columns[whose], self.inside, weights)

    def interval(self, whose: int, level: float) -> Interval:
        return _wilson(self.columns[whose], self.inside, level)

    def change(self, level: float) -> Interval:
        return _paired(self.columns, self.inside, level)


@dataclass(frozen=True, eq=False)
class WorstGroup:
    """The closed forms are those of the group that is the worst."""

    name: str
    columns: Pair
    groups: tuple[Flags, ...]
    worse: ClassVar[str] = "drop"
    lacks: ClassVar[str] = f"no class has {spurious.LEAST_IN_GROUP} pictures on one background"

    @property
    def inside(self) -> Flags:
        return np.any(self.groups, axis=0) if self.groups else np.zeros(0, np.bool_)

    def values(self, whose: int, weights: Floats) -> Floats:
        shares = [_share(self.columns[whose], group, weights) for group in self.groups]
        return spurious.worst_group(shares) if shares else np.full(len(weights), np.nan)

    def interval(self, whose: int, level: float) -> Interval:
        return _wilson(self.columns[whose], self._worst(whose), level)

    def change(self, level: float) -> Interval:
        return _paired(self.columns, self._worst(ARTIFACT), level)

    def _worst(self, whose: int) -> Flags:
        return min(self.groups, key=lambda group: float(self.columns[whose][group].mean()))


@dataclass(frozen=True, eq=False)
class SpuriousGap:
    """RSG. The closed forms are those of the accuracy on counter backgrounds, over that on common ones."""

    name: str
    columns: Pair
    common: Flags
    counter: Flags
    worse: ClassVar[str] = "increase"
    lacks: ClassVar[str] = "no pictures on common and on counter backgrounds, or none right on common ones"

    @property
    def inside(self) -> Flags:
        return self.common | self.counter

    def values(self, whose: int, weights: Floats) -> Floats:
        column = self.columns[whose]
        common, counter = (_share(column, split, weights) for split in (self.common, self.counter))
        return np.asarray(spurious.relative_spurious_gap(common, counter))

    def interval(self, whose: int, level: float) -> Interval:
        base = float(self.columns[whose][self.common].mean())
        low, high = _wilson(self.columns[whose], self.counter, level)
        return 1 - high / base, 1 - low / base

    def change(self, level: float) -> Interval:
        base = float(self.columns[REFERENCE][self.common].mean())
        low, high = _paired(self.columns, self.counter, level)
        return -high / base, -low / base


@dataclass(frozen=True, eq=False)
class Detection:
    """A number of the ROC curve of a score: pictures of a class against those of none."""

    name: str
    scores: Pair
    positive: Flags
    negative: Flags
    value: Callable[[ood.Curve], Floats]
    lacks: ClassVar[str] = "no pictures from outside the classes"

    @property
    def inside(self) -> Flags:
        return self.positive | self.negative

    def values(self, whose: int, weights: Floats) -> Floats:
        if not (self.positive.any() and self.negative.any()):
            return np.full(len(weights), np.nan)
        used = self.inside
        return self.value(ood.Curve(self.scores[whose][used], self.positive[used], weights[:, used]))


class Area(Detection):
    worse: ClassVar[str] = "drop"

    def interval(self, whose: int, level: float) -> Interval:
        return ood.delong_interval(self.scores[whose][self.inside], self.positive[self.inside], level)

    def change(self, level: float) -> Interval:
        before, now = (score[self.inside] for score in self.scores)
        return ood.delong_difference(now, before, self.positive[self.inside], level)


class FalsePositives(Detection):
    worse: ClassVar[str] = "increase"

    def interval(self, whose: int, level: float) -> Interval:
        return wilson(self._count(whose), int(self.negative.sum()), level)

    def change(self, level: float) -> Interval:
        """At least as many pictures changed as the difference says."""
        moved = self._count(ARTIFACT) - self._count(REFERENCE)
        return paired_difference(moved, abs(moved), int(self.negative.sum()), level)

    def _count(self, whose: int) -> float:
        rate = self.values(whose, np.ones((1, len(self.positive))))
        return float(rate[0]) * int(self.negative.sum())
