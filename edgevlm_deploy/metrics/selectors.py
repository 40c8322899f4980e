"""What the bundle's Selector adds to MaxProb, and what its abstaining is worth: the artifact's own answers.

On clean items alone, and on clean and corrupted ones together, where a good model makes its mistakes. Both
scores rank the same answers, so their coverages are compared in the same resamples of pictures.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from edgevlm_runner import abstain
from edgevlm_runner.contract import Certainty
from numpy.typing import NDArray

from edgevlm_deploy.metrics import mixture, selective
from edgevlm_deploy.metrics.abstention import halves, selective_table
from edgevlm_deploy.metrics.estimates import independent, undefined
from edgevlm_deploy.metrics.pairs import Pairs
from edgevlm_deploy.metrics.statistics import (
    Estimate,
    cluster_codes,
    hull,
    paired_difference,
    resampled_clusters,
    wilson,
)
from edgevlm_deploy.metrics.tables import Gain, Mixture, MixtureRow, SelectorComparison
from edgevlm_deploy.recipe import Evaluation

Floats = NDArray[np.float64]
Flags = NDArray[np.bool_]

EVERYTHING = "clean and corrupted"
RISKS = (0.01, 0.05)
"""Of wrong answers: where the two scores are compared. 1 % is where they part most, and what is published."""
_WITHOUT = "the bundle has no selector"


@dataclass(frozen=True)
class Scored:
    """Some of the artifact's answers: accuracy and both scores, float64 [N] each."""

    part: str
    clusters: tuple[str, ...]
    accuracy: Floats
    max_prob: Floats
    selector: Floats


def scored(pairs: Pairs, part: str, mask: Flags) -> Scored | None:
    """None when the answers carry no Selector's score."""
    if pairs.artifact_selector is None:
        return None
    return Scored(
        part=part,
        clusters=tuple(name for name, inside in zip(pairs.clusters, mask, strict=True) if inside),
        accuracy=pairs.artifact_accuracy[mask],
        max_prob=pairs.artifact_max_prob[mask],
        selector=pairs.artifact_selector[mask],
    )


def compare(answers: Scored, evaluation: Evaluation) -> SelectorComparison:
    """Coverage at `RISKS` by both scores and its paired difference, with all that `selective_table` has."""
    held_out = halves(answers.clusters)
    return SelectorComparison(
        part=answers.part,
        n=len(answers.accuracy),
        accuracy=float(answers.accuracy.mean()),
        max_prob=selective_table(answers.max_prob, answers.accuracy, held_out),
        selector=selective_table(answers.selector, answers.accuracy, held_out),
        gains=tuple(_gain(answers, risk, evaluation) for risk in RISKS),
    )


def _gain(answers: Scored, risk: float, evaluation: Evaluation) -> Gain:
    level, n = evaluation.confidence_level, len(answers.accuracy)
    columns = {"max_prob": answers.max_prob, "selector": answers.selector}
    drawn = _drawn_coverages(answers, columns, risk, evaluation)
    clusters = len(set(answers.clusters))
    trials = independent(n, clusters)
    covered = {}
    for name, score in columns.items():
        threshold = selective.coverage_at_risk(score, answers.accuracy, risk)[1]
        covered[name] = (score >= threshold).astype(np.float64)

    def estimate(value: float, closed: tuple[float, float], values: Floats, form: str) -> Estimate:
        low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
        bounds = hull(closed, (float(low), float(high)))
        assert bounds is not None
        method = f"{form} + clustered bootstrap"
        return Estimate(value=value, low=bounds[0], high=bounds[1], n=n, clusters=clusters, method=method)

    def coverage(name: str) -> Estimate:
        value = float(covered[name].mean())
        return estimate(value, wilson(value * trials, trials, level), drawn[name], "wilson")

    gained = covered["selector"] - covered["max_prob"]
    value, square = float(gained.mean()), float(np.square(gained).mean())
    closed = paired_difference(value * trials, square * trials, trials, level)
    return Gain(
        risk=risk,
        max_prob=coverage("max_prob"),
        selector=coverage("selector"),
        gain=estimate(value, closed, drawn["selector"] - drawn["max_prob"], "agresti-min"),
    )


def _drawn_coverages(
    answers: Scored, columns: dict[str, Floats], risk: float, evaluation: Evaluation
) -> dict[str, Floats]:
    """C@risk of both scores in the same resamples of pictures, float64 [resamples] each."""
    codes, count = cluster_codes(answers.clusters)
    chunks: dict[str, list[Floats]] = {name: [] for name in columns}
    for times in resampled_clusters(count, resamples=evaluation.bootstrap_resamples, seed=evaluation.seed):
        per_item = times[:, codes]
        for name, score in columns.items():
            chunks[name].append(selective.resampled_coverage(score, answers.accuracy, per_item, risk))
    return {name: np.concatenate(values) for name, values in chunks.items()}


def gated(compared: SelectorComparison | None) -> dict[str, Estimate]:
    """Of the comparison on clean and corrupted items; undefined without a Selector."""
    found = {}
    for place, risk in enumerate(RISKS):
        gain = None if compared is None else compared.gains[place]
        suffix = f"at_risk_{round(100 * risk)}"
        found[f"selector_coverage_{suffix}"] = undefined(_WITHOUT) if gain is None else gain.selector
        found[f"selector_gain_{suffix}"] = undefined(_WITHOUT) if gain is None else gain.gain
    return found


def decided(pairs: Pairs, certainty: Certainty) -> Flags | None:
    """Which answers the bundle gives by the rule that it ships, bool [N]; None when it always answers."""
    if not certainty.abstain:
        return None
    score = pairs.artifact_max_prob if certainty.abstain == abstain.MAX_PROB else pairs.artifact_selector
    if score is None or certainty.threshold is None:
        return np.zeros(len(pairs.items), np.bool_)
    return np.asarray(score >= certainty.threshold)


def sweep(familiar: Scored, shifted: Scored) -> Mixture:
    """Thresholds chosen on `familiar` for the lowest of `RISKS`, on mixtures with `shifted`."""
    found = {}
    for name in ("max_prob", "selector"):
        ours, theirs = getattr(familiar, name), getattr(shifted, name)
        threshold: float | None = selective.coverage_at_risk(ours, familiar.accuracy, RISKS[0])[1]
        if threshold == selective.ABSTAIN_ON_ALL:
            threshold = None
        found[name] = (
            mixture.answered(ours, familiar.accuracy, threshold),
            mixture.answered(theirs, shifted.accuracy, threshold),
        )
    return Mixture(
        familiar=familiar.part,
        shifted=shifted.part,
        familiar_items=len(familiar.accuracy),
        shifted_items=len(shifted.accuracy),
        risk=RISKS[0],
        rows=tuple(
            MixtureRow(
                shifted=share,
                max_prob=mixture.at_share(*found["max_prob"], share),
                selector=mixture.at_share(*found["selector"], share),
            )
            for share in mixture.SHIFTED_SHARES
        ),
    )


def drifted(pairs: Pairs, foreign: Pairs) -> Mixture | None:
    """Clean items against those of another distribution (`foreign`), or where there are none, everything
    against the strongest corruption of the evaluation. None without a Selector or without either side.

    A foreign question whose answer is not known counts as answered wrong: it should not be answered.
    """
    corrupted = pairs.corrupted
    if foreign.items:
        clean = scored(pairs, "clean", pairs.clean)
        other = scored(foreign, "another distribution", np.ones(len(foreign.items), np.bool_))
        return sweep(clean, other) if clean is not None and other is not None else None
    severity = np.array([item.corruption[1] if item.corruption else 0 for item in pairs.items])
    worst = int(severity[corrupted].max(initial=0))
    strongest = corrupted & (severity == worst)
    if not strongest.any():
        return None
    familiar = scored(
        pairs, f"clean, and corrupted below severity {worst}", (pairs.clean | corrupted) & ~strongest
    )
    shifted = scored(pairs, f"corrupted at severity {worst}", strongest)
    return sweep(familiar, shifted) if familiar is not None and shifted is not None else None
