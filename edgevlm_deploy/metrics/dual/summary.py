"""Every metric of a compiled dual encoder: class scores of reference and artifact → DualMetrics.

What depends on the answers alone (accuracy, flips, corruption, calibration, selective prediction) is
`metrics.summary.compute` on the best class; what needs all class scores is `estimates`, what needs the
embeddings themselves `embeddings`.
"""

from __future__ import annotations

import numpy as np
from edgevlm_runner.contract import CLEAN, TEMPERATURE, Certainty
from numpy.typing import NDArray

from edgevlm_deploy.metrics import spurious, summary
from edgevlm_deploy.metrics.confidence import expected_calibration_error
from edgevlm_deploy.metrics.dual import scored, zero_shot
from edgevlm_deploy.metrics.dual.estimates import estimates
from edgevlm_deploy.metrics.dual.scored import Head, Scored
from edgevlm_deploy.metrics.dual.tables import DegradationRow, DualMetrics, LogitScale
from edgevlm_deploy.metrics.tables import Metrics
from edgevlm_deploy.recipe import Evaluation

Floats = NDArray[np.float64]


def compute(
    given: Scored,
    evaluation: Evaluation,
    answers: Metrics | None = None,
    certainty: Certainty | None = None,
) -> DualMetrics:
    """All metrics that class scores give; `embeddings.added` adds what embeddings give.

    answers: what the answers alone give, where that is known; None: it is computed here.
    certainty: what the artifact's bundle does with its confidence; None: nothing.
    Raises DataError when no clean picture belongs to a class.
    """
    certainty = certainty or Certainty()
    return DualMetrics(
        answers=answers or _of_answers(given, evaluation),
        estimates=estimates(given, evaluation),
        degradations=degradations(given),
        logit_scale={
            whose: row
            for whose, cosines, head, shipped in (
                ("reference", given.reference, given.reference_head, Certainty()),
                ("artifact", given.artifact, given.artifact_head, certainty),
            )
            if (row := _logit_scale(given, cosines, head, shipped)) is not None
        },
    )


def _of_answers(given: Scored, evaluation: Evaluation) -> Metrics:
    return summary.compute(
        scored.items(given),
        scored.answers(given, given.reference, given.reference_head),
        scored.answers(given, given.artifact, given.artifact_head),
        evaluation,
    )


def merged(answers: Metrics, found: DualMetrics) -> Metrics:
    """`answers` with every estimate that gates may look at, and the temperature as the logit scale has it.

    Of two estimates of one name, such as the worst group's accuracy, the class scores' counts, unless the
    other alone is defined (by rows with `counterfactual_of`).
    """
    better = {
        name: one
        for name, one in found.estimates.items()
        if one.value is not None or answers.estimates.get(name, one).value is None
    }
    scaling = {whose: row.scaling for whose, row in found.logit_scale.items()}
    return answers.model_copy(
        update={"estimates": {**answers.estimates, **better}, "scaling": scaling or answers.scaling}
    )


def degradations(given: Scored) -> tuple[DegradationRow, ...]:
    """δ(D) on the clean pictures and under each corruption."""
    right = tuple(cosines.argmax(axis=1) == given.labels for cosines in (given.reference, given.artifact))
    rows = []
    for condition in dict.fromkeys(given.conditions):
        inside = (np.array(given.conditions) == condition) & (given.labels != scored.OUTSIDE)
        if condition != TEMPERATURE and inside.any():
            before, now = (float(hits[inside].mean()) for hits in right)
            lost = spurious.relative_degradation(before, now)
            rows.append(DegradationRow(condition=condition, relative_degradation=lost))
    return tuple(rows)


def _logit_scale(given: Scored, cosines: Floats, head: Head, shipped: Certainty) -> LogitScale | None:
    """The one that ships, else fitted on the items kept for it; None for a sigmoid, whose confidences
    `summary` scales.
    """
    if head.logit_bias is not None:
        return None
    conditions, belongs = np.array(given.conditions), given.labels != scored.OUTSIDE
    held_out = (conditions == TEMPERATURE) & belongs
    fitted, n = zero_shot.fit_logit_scale(cosines[held_out], given.labels[held_out]), int(held_out.sum())
    if shipped.fitted_on:
        fitted, n = head.logit_scale / shipped.temperature, shipped.fitted_on
    if fitted is None:
        return None
    judged = (conditions != TEMPERATURE) & belongs
    (before, after), (all_before, all_after) = (
        _calibration_errors(cosines[mask], given.labels[mask], (head.logit_scale, fitted))
        for mask in (given.inside, judged)
    )
    has_corrupted = bool((conditions[judged] != CLEAN).any())
    return LogitScale(
        before=head.logit_scale,
        fitted=fitted,
        n=n,
        ece_before=before,
        ece_after=after,
        all_before=all_before if has_corrupted else None,
        all_after=all_after if has_corrupted else None,
        shipped=shipped.fitted_on > 0,
    )


def _calibration_errors(
    cosines: Floats, labels: NDArray[np.int64], scales: tuple[float, float]
) -> tuple[float, float]:
    hits = zero_shot.hits(cosines, labels).astype(np.float64)
    before, after = (
        expected_calibration_error(zero_shot.softmax_confidence(cosines, scale), hits) for scale in scales
    )
    assert before is not None and after is not None, "there are clean pictures"
    return before, after
