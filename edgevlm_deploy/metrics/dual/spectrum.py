"""Which directions of the features quantisation damps.

Our reconstruction of the published spectral analysis, which we have not seen in full: the right singular
vectors v_k of the reference's features F [N, D] (penultimate layer of the vision encoder, not centred)
are the ranks, and what quantisation adds is measured along each of them.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgevlm_deploy.errors import DataError

Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Spectrum:
    """Singular values σ_k, descending: float64 [K]; basis: v_k as columns, float64 [D, K]; K ≤ min(N, D)."""

    values: Floats
    basis: Floats


def spectrum(features: Floats) -> Spectrum:
    """F = U Σ Vᵀ. Directions in which F is zero but for rounding are left out."""
    _, values, rows = np.linalg.svd(features, full_matrices=False)
    kept = values > max(features.shape) * np.finfo(np.float64).eps * values[:1].max(initial=0.0)
    return Spectrum(values[kept], rows[kept].T)


def damping(reference: Floats, artifact: Floats, of: Spectrum) -> Floats:
    """SQNR_k = 10 log10(‖F v_k‖² / ‖(F_q − F) v_k‖²) in dB, float64 [K]; infinite where nothing changed.

    Raises DataError when the features are not of the same pictures and width.
    """
    if reference.shape != artifact.shape:
        raise DataError(
            f"features: the reference's are {list(reference.shape)}, the artifact's {list(artifact.shape)}; "
            "both need one row per picture and the same width."
        )
    noise = np.square((artifact - reference) @ of.basis).sum(axis=0)
    with np.errstate(divide="ignore"):
        return np.asarray(10 * np.log10(np.square(of.values) / noise))


def bands(rank: int) -> tuple[range, ...]:
    """Ranks (from 0) in bands that grow fourfold: the 1st, the next 3, the next 12, the next 48 …"""
    edges = [0, 1]
    while edges[-1] < rank:
        edges.append(4 * edges[-1])
    edges[-1] = rank
    return tuple(range(low, high) for low, high in itertools.pairwise(edges) if low < high)


def projected(features: Floats, of: Spectrum, band: range) -> Floats:
    """Features with only the ranks of `band` left: F V_b V_bᵀ, float64 [N, D]."""
    directions = of.basis[:, band.start : band.stop]
    return np.asarray(features @ directions @ directions.T)


def cosines(features: Floats, texts: Floats) -> Floats:
    """Cosine of each picture with each text, float64 [N, C]; 0 for features that are zero."""
    scaled = (
        values / np.maximum(np.linalg.norm(values, axis=1, keepdims=True), 1e-30)
        for values in (features, texts)
    )
    pictures, classes = scaled
    return np.asarray(pictures @ classes.T)
