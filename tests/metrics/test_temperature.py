"""Temperature scaling recovers the temperature that made a model too sure."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgevlm_deploy.metrics.confidence import expected_calibration_error
from edgevlm_deploy.metrics.temperature import COLDEST, HOTTEST, fit, scaled


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_the_temperature_is_found_and_calibrates_other_items(temperature: float) -> None:
    rng = np.random.default_rng(0)
    honest = rng.uniform(0.05, 0.95, 20_000)
    right = (rng.random(20_000) < honest).astype(np.float64)
    said = scaled(honest, 1 / temperature)  # too sure for T > 1
    found = fit(said[:10_000], right[:10_000])
    assert found == pytest.approx(temperature, rel=0.05)
    before = expected_calibration_error(said[10_000:], right[10_000:])
    after = expected_calibration_error(scaled(said[10_000:], found), right[10_000:])
    assert before is not None and after is not None and after < 0.02
    assert temperature == 1.0 or after < before / 2


def test_answers_all_right_say_nothing_about_the_temperature() -> None:
    assert fit(np.array([0.9, 0.8]), np.ones(2)) is None
    assert fit(np.array([0.9, 0.8]), np.zeros(2)) is None
    assert fit(np.array([]), np.array([])) is None


def test_certain_answers_stay_finite() -> None:
    found = fit(np.array([1.0, 1.0, 0.0]), np.array([1.0, 0.0, 0.0]))
    assert found is not None and COLDEST <= found <= HOTTEST


@given(st.lists(st.floats(0.01, 0.99), min_size=2, max_size=20), st.floats(COLDEST, HOTTEST))
def test_scaling_keeps_the_order_and_undoes_itself(values: list[float], temperature: float) -> None:
    confidence = np.array(sorted(values))
    warm = scaled(confidence, temperature)
    assert (np.diff(warm) >= 0).all()
    assert ((warm - 0.5) * (confidence - 0.5) >= 0).all()
    if temperature >= 0.5:
        assert scaled(warm, 1 / temperature) == pytest.approx(confidence, abs=1e-6)
