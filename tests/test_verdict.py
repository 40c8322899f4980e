"""Gates: pass, fail, inconclusive and skipped, and what the whole verdict is then."""

from __future__ import annotations

import pytest

from edgevlm_deploy.errors import EXIT_GATES_FAILED, EXIT_INCONCLUSIVE, EXIT_PASSED, DataError
from edgevlm_deploy.metrics import Estimate, Metrics
from edgevlm_deploy.metrics.statistics import wilson
from edgevlm_deploy.recipe import Gate, GateName
from edgevlm_deploy.report.outcome import why
from edgevlm_deploy.verdict import GateResult, Outcome, Verdict, judge


def estimate(
    value: float | None, low: float | None, high: float | None, method: str = "bootstrap"
) -> Estimate:
    return Estimate(value=value, low=low, high=high, n=1000, clusters=500, method=method, note="no items")


def metrics_with(name: str, one: Estimate) -> Metrics:
    return Metrics(
        level=0.95,
        bootstrap_resamples=10_000,
        clean_items=1000,
        corrupted_items=0,
        images=500,
        estimates={name: one},
        mcnemar_p=1.0,
        groups=(),
        conditions=(),
        corruptions=(),
        reliability={},
        flips=(),
    )


NOTHING = metrics_with("accuracy", estimate(None, None, None))


def judge_one(gate: Gate, one: Estimate, noise_floor: Estimate | None = None) -> GateResult:
    verdict = judge([gate], metrics_with(gate.metric.value, one), noise_floor=noise_floor)
    return verdict.gates[0]


@pytest.mark.parametrize(
    ("low", "value", "high", "outcome"),
    [
        (0.00, 0.01, 0.02, Outcome.PASS),
        (0.00, 0.01, 0.03, Outcome.INCONCLUSIVE),
        (0.01, 0.03, 0.05, Outcome.INCONCLUSIVE),
        (0.02, 0.03, 0.05, Outcome.INCONCLUSIVE),
        (0.021, 0.03, 0.05, Outcome.FAIL),
    ],
)
def test_only_the_bounds_decide_an_upper_limit(
    low: float, value: float, high: float, outcome: Outcome
) -> None:
    gate = Gate(metric=GateName.ACCURACY_DROP, max=0.02)
    assert judge_one(gate, estimate(value, low, high)).outcome is outcome


@pytest.mark.parametrize(
    ("low", "high", "outcome"),
    [(0.8, 0.9, Outcome.PASS), (0.79, 0.9, Outcome.INCONCLUSIVE), (0.7, 0.79, Outcome.FAIL)],
)
def test_only_the_bounds_decide_a_lower_limit(low: float, high: float, outcome: Outcome) -> None:
    gate = Gate(metric=GateName.ACCURACY, min=0.8)
    assert judge_one(gate, estimate((low + high) / 2, low, high)).outcome is outcome


def test_inconclusive_says_how_many_items_would_settle_it() -> None:
    result = judge_one(Gate(metric=GateName.ACCURACY_DROP, max=0.02), estimate(0.01, -0.01, 0.03))
    # The half-width 0.02 must shrink to 0.01: four times the items.
    assert result.needed == pytest.approx(4000, abs=1)
    assert "4,0" in result.explanation
    result = judge_one(Gate(metric=GateName.ACCURACY_DROP, max=0.02), estimate(0.03, 0.01, 0.05))
    assert result.needed == pytest.approx(4000, abs=1)


def test_wilson_intervals_are_inverted_exactly() -> None:
    low, high = wilson(3, 1000, 0.95)
    one = estimate(0.003, low, high, "wilson").model_copy(update={"n": 500})
    result = judge_one(Gate(metric=GateName.NEGATIVE_FLIP_RATE, max=0.005), one)
    assert result.outcome is Outcome.INCONCLUSIVE and result.needed is not None
    assert wilson(0.003 * result.needed, result.needed, 0.95)[1] <= 0.005 + 1e-9


def test_a_value_on_the_limit_is_never_settled() -> None:
    result = judge_one(Gate(metric=GateName.ACCURACY_DROP, max=0.02), estimate(0.02, 0.01, 0.03))
    assert result.outcome is Outcome.INCONCLUSIVE and result.needed is None
    assert "no number of items" in result.explanation


def test_no_interval_is_inconclusive() -> None:
    result = judge_one(Gate(metric=GateName.RELATIVE_ROBUSTNESS, min=0.5), estimate(0.9, None, None))
    assert result.outcome is Outcome.INCONCLUSIVE
    assert "no confidence interval" in result.explanation


def test_undefined_metrics_and_missing_measurements_are_skipped() -> None:
    result = judge_one(Gate(metric=GateName.CORRUPTED_ACCURACY, min=0.5), estimate(None, None, None))
    assert result.outcome is Outcome.SKIPPED and "no items" in result.explanation
    result = judge([Gate(metric=GateName.MCM_AUROC_DROP, max=0.1)], NOTHING).gates[0]
    assert result.outcome is Outcome.SKIPPED and "only dual encoders have" in result.explanation
    verdict = judge([Gate(metric=GateName.LATENCY_MS_P95, max=10)], NOTHING)
    assert verdict.gates[0].outcome is Outcome.SKIPPED
    assert "not measured on a device" in verdict.gates[0].explanation


def test_an_emulated_device_passes_nothing_and_may_fail() -> None:
    gate = Gate(metric=GateName.ACCURACY_DROP, max=0.02)
    inside, outside = (
        metrics_with(gate.metric.value, estimate(value, value, value)) for value in (0.01, 0.03)
    )
    assert judge([gate], inside).deployable
    verdict = judge([gate], inside, emulated=True)
    assert verdict.outcome is Outcome.INCONCLUSIVE and verdict.exit_code == 4 and not verdict.deployable
    assert verdict.gates[0].outcome is Outcome.PASS and "only the device" in verdict.note
    assert why(verdict) == "1 of 1 gates passed, on an emulated device."
    assert judge([gate], outside, emulated=True).outcome is Outcome.FAIL


def test_flip_rates_within_the_noise_floor_are_marked() -> None:
    gate = Gate(metric=GateName.DIVERGENCE_RATE, max=0.05)
    floor = estimate(0.004, 0.001, 0.01)
    assert judge_one(gate, estimate(0.003, 0.001, 0.008), floor).within_noise_floor
    assert "noise floor" in judge_one(gate, estimate(0.004, 0.001, 0.008), floor).explanation
    assert not judge_one(gate, estimate(0.01, 0.005, 0.02), floor).within_noise_floor
    assert not judge_one(
        Gate(metric=GateName.ECE, max=0.05), estimate(0.0, 0.0, 0.01), floor
    ).within_noise_floor


def test_latency_samples_get_an_order_statistic_interval() -> None:
    gate = Gate(metric=GateName.LATENCY_MS_P95, max=100)
    steady = judge([gate], NOTHING, {"latency_ms": [50.0] * 99 + [500.0]}).gates[0]
    # One outlier in a hundred: the p95 itself is 50, its upper bound is the largest sample.
    assert (steady.value, steady.high, steady.outcome) == (50.0, 500.0, Outcome.INCONCLUSIVE)
    long = judge([gate], NOTHING, {"latency_ms": [50.0] * 300 + [500.0]}).gates[0]
    assert (long.outcome, long.high, long.unit) == (Outcome.PASS, 50.0, "samples")
    slow = judge([gate], NOTHING, {"latency_ms": [150.0] * 100}).gates[0]
    assert slow.outcome is Outcome.FAIL


def test_few_latency_samples_cannot_pass() -> None:
    gate = Gate(metric=GateName.TIME_TO_FIRST_TOKEN_MS_P95, max=100)
    result = judge([gate], NOTHING, {"time_to_first_token_ms": [50.0] * 20}).gates[0]
    assert (result.outcome, result.high, result.needed) == (Outcome.INCONCLUSIVE, None, 72)


def test_point_measurements_are_compared_as_they_are() -> None:
    gates = [
        Gate(metric=GateName.LATENCY_MS_P95, max=100),
        Gate(metric=GateName.PEAK_RSS_BYTES, max=1000),
        Gate(metric=GateName.BUNDLE_BYTES, max=1000),
    ]
    device = {"latency_ms_p95": 80.0, "peak_rss_bytes": 1000, "bundle_bytes": 1001, "energy_mj": 3.0}
    outcomes = [result.outcome for result in judge(gates, NOTHING, device).gates]
    assert outcomes == [Outcome.PASS, Outcome.PASS, Outcome.FAIL]
    with pytest.raises(DataError, match="latency_ms"):
        judge(gates, NOTHING, {"latency_ms": [float("nan")]})


@pytest.mark.parametrize(
    ("sizes", "outcome", "exit_code"),
    [
        ({"peak_rss_bytes": 1, "bundle_bytes": 1}, Outcome.PASS, EXIT_PASSED),
        ({"peak_rss_bytes": 1, "bundle_bytes": 9}, Outcome.FAIL, EXIT_GATES_FAILED),
        ({"bundle_bytes": 9}, Outcome.FAIL, EXIT_GATES_FAILED),
        ({"bundle_bytes": 1}, Outcome.INCONCLUSIVE, EXIT_INCONCLUSIVE),
        ({}, Outcome.INCONCLUSIVE, EXIT_INCONCLUSIVE),
    ],
)
def test_only_all_pass_is_deployable(sizes: dict[str, int], outcome: Outcome, exit_code: int) -> None:
    gates = [Gate(metric=GateName.PEAK_RSS_BYTES, max=5), Gate(metric=GateName.BUNDLE_BYTES, max=5)]
    verdict = judge(gates, NOTHING, sizes)
    assert (verdict.outcome, verdict.exit_code) == (outcome, exit_code)
    assert verdict.deployable == (outcome is Outcome.PASS)
    assert verdict.gates_looked_at == 2 and "not adjusted" in verdict.note
    assert Verdict.model_validate_json(verdict.model_dump_json()) == verdict


def test_no_gates_is_no_pass() -> None:
    assert not judge([], NOTHING).deployable
