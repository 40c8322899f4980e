"""Damping per singular direction."""

from __future__ import annotations

import numpy as np
import pytest

from edgevlm_deploy.errors import DataError
from edgevlm_deploy.metrics.dual.spectrum import bands, cosines, damping, projected, spectrum

RNG = np.random.default_rng(5)
FEATURES = RNG.normal(size=(50, 12)) * np.geomspace(10, 0.1, 12)


def test_a_scaled_error_damps_every_rank_alike() -> None:
    assert damping(FEATURES, 1.01 * FEATURES, spectrum(FEATURES)) == pytest.approx(40.0)


def test_an_error_in_one_direction_is_seen_there_only() -> None:
    of = spectrum(FEATURES)
    lost = FEATURES - np.outer(FEATURES @ of.basis[:, 3], of.basis[:, 3])
    found = damping(FEATURES, lost, of)
    assert found[3] == pytest.approx(0.0)  # all of it: as much noise as signal
    assert (np.delete(found, 3) > 200).all()


def test_white_noise_drowns_the_small_ranks_first() -> None:
    found = damping(FEATURES, FEATURES + RNG.normal(0, 0.05, FEATURES.shape), spectrum(FEATURES))
    assert found[0] > 40 > 20 > found[-1]
    assert np.all(np.diff(found) < 6)


def test_signal_and_noise_add_up_over_the_ranks() -> None:
    of, wrong = spectrum(FEATURES), FEATURES + RNG.normal(0, 0.1, FEATURES.shape)
    ratios = 10 ** (damping(FEATURES, wrong, of) / 10)
    assert np.square(of.values).sum() == pytest.approx(np.square(FEATURES).sum())
    assert (np.square(of.values) / ratios).sum() == pytest.approx(np.square(wrong - FEATURES).sum())
    assert of.basis.T @ of.basis == pytest.approx(np.eye(12), abs=1e-12)


def test_the_same_features_lose_nothing() -> None:
    assert np.isinf(damping(FEATURES, FEATURES, spectrum(FEATURES))).all()


def test_directions_without_any_signal_are_no_ranks() -> None:
    flat = FEATURES.copy()
    flat[:, 4] = flat[:, 5]
    assert len(spectrum(flat).values) == 11
    assert len(spectrum(np.zeros((4, 3))).values) == 0


def test_other_pictures_are_refused() -> None:
    with pytest.raises(DataError, match=r"the reference's are \[50, 12\], the artifact's \[49, 12\]"):
        damping(FEATURES, FEATURES[1:], spectrum(FEATURES))


@pytest.mark.parametrize("rank", [0, 1, 2, 4, 5, 63, 64, 65, 768])
def test_bands_hold_every_rank_once(rank: int) -> None:
    assert [k for band in bands(rank) for k in band] == list(range(rank))


def test_bands_golden() -> None:
    assert [(band.start, band.stop) for band in bands(64)] == [(0, 1), (1, 4), (4, 16), (16, 64)]


def test_projections_on_all_bands_add_up_to_the_features() -> None:
    of = spectrum(FEATURES)
    parts = [projected(FEATURES, of, band) for band in bands(len(of.values))]
    assert sum(parts) == pytest.approx(FEATURES)
    assert parts[0] @ parts[1].T == pytest.approx(np.zeros((50, 50)), abs=1e-9)


def test_cosines() -> None:
    found = cosines(np.array([[3.0, 4.0], [0.0, 0.0]]), np.array([[1.0, 0.0], [0.0, -2.0]]))
    assert found.tolist() == [[pytest.approx(0.6), pytest.approx(-0.8)], [0.0, 0.0]]
