"""Predicted bounds: intervals of few items, drawn together to the width that the verdict's will have."""

from __future__ import annotations

import math

import pytest
from edgevlm_runner.contract import CLEAN, Answer, Item

from edgevlm_deploy import metrics
from edgevlm_deploy.metrics import Metrics
from edgevlm_deploy.recipe import Evaluation, Gate, GateName
from edgevlm_deploy.search.outlook import WITHOUT_BOUND, outlooks


@pytest.fixture(scope="module")
def measured() -> Metrics:
    """100 pictures, 10 of which are answered otherwise."""
    items = [Item(str(n), str(n), "", CLEAN, "", str(n), "?", ("yes",)) for n in range(100)]

    def said(changed: int) -> list[Answer]:
        return [Answer(str(n), "no" if n < changed else "yes", (1,), (-0.1,), True) for n in range(100)]

    return metrics.compute(items, said(0), said(10), Evaluation(bootstrap_resamples=100))


def test_the_interval_shrinks_with_the_root_of_the_items(measured: Metrics) -> None:
    gate = Gate(metric=GateName.DIVERGENCE_RATE, max=0.14)
    high = measured.estimates["divergence_rate"].high
    assert high is not None and high > 0.14
    (now,) = outlooks([gate], measured, 1.0, {})
    (then,) = outlooks([gate], measured, 0.25, {})
    assert now.bound == pytest.approx(high) and now.excess > 0 and now.is_inside
    assert then.bound == pytest.approx(0.1 + (high - 0.1) / 2)
    assert then.excess == pytest.approx((then.bound - 0.14) / 0.14) and then.excess <= 0


def test_a_lower_limit_looks_at_the_lower_bound(measured: Metrics) -> None:
    (found,) = outlooks([Gate(metric=GateName.ACCURACY, min=0.95)], measured, 1.0, {})
    assert found.bound == measured.estimates["accuracy"].low
    assert found.excess > 0 and not found.is_inside


def test_what_cannot_be_undercut_is_known_and_what_a_device_decides_is_left_open(measured: Metrics) -> None:
    gates = [
        Gate(metric=GateName.PEAK_RSS_BYTES, max=1000.0),
        Gate(metric=GateName.LATENCY_MS_P95, max=10.0),
        Gate(metric=GateName.CORRUPTED_ACCURACY, min=0.5),
    ]
    (found,) = outlooks(gates, measured, 1.0, {GateName.PEAK_RSS_BYTES: 2000.0})
    assert (found.metric, found.excess) == (GateName.PEAK_RSS_BYTES, 1.0)


def test_without_an_interval_nothing_is_promised(measured: Metrics) -> None:
    gate = Gate(metric=GateName.ECE_INCREASE, max=0.5)
    open_ended = measured.estimates["ece_increase"].model_copy(update={"high": None})
    changed = measured.model_copy(update={"estimates": {**measured.estimates, "ece_increase": open_ended}})
    (found,) = outlooks([gate], changed, 1.0, {})
    assert found.bound is None and found.excess == WITHOUT_BOUND and math.isfinite(found.excess)
