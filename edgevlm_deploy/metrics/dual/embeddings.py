"""What embeddings of pictures and texts tell beyond class scores: retrieval, and damping per direction."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from edgevlm_runner.contract import DualEncoderSpec, Item
from edgevlm_runner.features import Features, captions, watched
from numpy.typing import NDArray

from edgevlm_deploy.metrics.dual import retrieval, spectrum, zero_shot
from edgevlm_deploy.metrics.dual.tables import Band, Direction, DualMetrics, Retrieval, Spectral
from edgevlm_deploy.metrics.estimates import undefined
from edgevlm_deploy.metrics.statistics import Estimate, paired_difference, quantile_interval, wilson

Floats = NDArray[np.float64]
Flags = NDArray[np.bool_]

RECALLS = (1, 5, 10)
DIRECTIONS = ("image_to_text", "text_to_image")
_NO_FEATURES = "the recipe keeps no embeddings (evaluation.feature_items)"
_NO_CAPTIONS = "none of the pictures whose embeddings are kept has a caption"


def added(
    found: DualMetrics,
    spec: DualEncoderSpec,
    items: Sequence[Item],
    reference: Features | None,
    artifact: Features | None,
    level: float,
) -> DualMetrics:
    """`found` with retrieval and the spectral analysis, and with retrieval's estimates under names of their
    own, such as "image_to_text_recall_at_1_drop". Without embeddings they are undefined.
    """
    table, spectral, why = None, None, _NO_FEATURES
    if reference is not None and artifact is not None:
        kept, why = watched(items, spec), _NO_CAPTIONS
        table = _retrieval(kept, reference, artifact, level)
        spectral = spectral_table(
            reference.images.astype(np.float64),
            artifact.images.astype(np.float64),
            reference.classes.astype(np.float64),
            artifact.classes.astype(np.float64),
            np.array([spec.text.classes.index(item.answers[0]) for item in kept], np.int64),
        )
    estimates = {**found.estimates, **_estimates(table, why)}
    return found.model_copy(update={"retrieval": table, "spectral": spectral, "estimates": estimates})


def _retrieval(
    kept: Sequence[Item], reference: Features, artifact: Features, level: float
) -> Retrieval | None:
    """A caption is right for every picture that has the same one, word for word. None without captions."""
    texts = captions(kept)
    if not texts:
        return None
    captioned = np.array([bool(item.caption) for item in kept], np.bool_)
    relevant = np.array([[item.caption == text for text in texts] for item in kept if item.caption])
    before, now = (
        spectrum.cosines(one.images[captioned].astype(np.float64), one.captions.astype(np.float64))
        for one in (reference, artifact)
    )
    return retrieval_table(before, now, relevant, level)


def _estimates(table: Retrieval | None, why_undefined: str) -> dict[str, Estimate]:
    """Named with their direction, which stands behind "reference_"."""
    if table is None:
        shares = [f"{way}_recall_at_{k}" for way in DIRECTIONS for k in RECALLS]
        names = [name for one in shares for name in (one, f"reference_{one}", f"{one}_drop")]
        return dict.fromkeys(names, undefined(why_undefined))
    named = {}
    for way in DIRECTIONS:
        for name, one in getattr(table, way).estimates.items():
            whose = "reference_" if name.startswith("reference_") else ""
            named[f"{whose}{way}_{name.removeprefix(whose)}"] = one
    return named


def retrieval_table(reference: Floats, artifact: Floats, relevant: Flags, level: float) -> Retrieval:
    """R@1, R@5, R@10 and median rank. Similarities [pictures, texts]; `relevant` bool of that shape."""
    return Retrieval(
        image_to_text=_direction(reference, artifact, relevant, level),
        text_to_image=_direction(reference.T, artifact.T, relevant.T, level),
    )


def _direction(reference: Floats, artifact: Floats, relevant: Flags, level: float) -> Direction:
    ranks = {
        "reference_": retrieval.ranks(reference, relevant),
        "": retrieval.ranks(artifact, relevant),
    }
    queries = len(relevant)
    found: dict[str, Estimate] = {}

    def add(name: str, value: float, bounds: tuple[float | None, float | None], method: str) -> None:
        found[name] = Estimate(
            value=value, low=bounds[0], high=bounds[1], n=queries, clusters=queries, method=method
        )

    for prefix, each in ranks.items():
        for k in RECALLS:
            share = retrieval.recall_at(each, k)
            add(f"{prefix}recall_at_{k}", share, wilson(share * queries, queries, level), "wilson")
        bounds = quantile_interval([float(rank) for rank in each], 0.5, level)
        add(f"{prefix}median_rank", retrieval.median_rank(each), bounds, "order statistics")
    for k in RECALLS:
        lost = (ranks["reference_"] <= k).astype(np.float64) - (ranks[""] <= k)
        bounds = paired_difference(float(lost.sum()), float(np.square(lost).sum()), queries, level)
        add(f"recall_at_{k}_drop", float(lost.mean()), bounds, "agresti-min")
    return Direction(estimates=found)


def spectral_table(
    reference: Floats,
    artifact: Floats,
    reference_texts: Floats,
    artifact_texts: Floats,
    labels: NDArray[np.int64],
    projections: tuple[Floats | None, Floats | None] = (None, None),
) -> Spectral:
    """Damping per rank, and zero-shot accuracy per band of ranks of the reference.

    Features [N, D] of the vision encoder's penultimate layer, texts [C, W], `projections` the matrices
    [D, W] that lead from one to the other (of the reference and the artifact), None where D = W.
    """
    of = spectrum.spectrum(reference)
    power = np.square(of.values)
    noise = np.square((artifact - reference) @ of.basis).sum(axis=0)

    def accuracy(features: Floats, texts: Floats, projection: Floats | None, band: range) -> float:
        left = spectrum.projected(features, of, band)
        cosines = spectrum.cosines(left if projection is None else left @ projection, texts)
        return float(zero_shot.hits(cosines, labels).mean())

    def decibels(signal: float, lost: float) -> float | None:
        return float(10 * np.log10(signal / lost)) if lost > 0 else None

    return Spectral(
        sqnr_db=tuple(
            float(one) if np.isfinite(one) else None for one in spectrum.damping(reference, artifact, of)
        ),
        share=tuple(float(one) for one in power / power.sum()),
        bands=tuple(
            Band(
                first=band.start + 1,
                last=band.stop,
                sqnr_db=decibels(float(power[band].sum()), float(noise[band].sum())),
                reference_accuracy=accuracy(reference, reference_texts, projections[0], band),
                artifact_accuracy=accuracy(artifact, artifact_texts, projections[1], band),
            )
            for band in spectrum.bands(len(of.values))
        ),
    )
