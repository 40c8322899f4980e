"""Does the artifact ship? Gates × metrics × device measurements → Verdict.

A gate passes when the whole confidence interval lies inside its limit, fails when the whole
interval lies outside, and is inconclusive in between: then it says how many items would settle it.
Only a verdict in which every gate passed is deployable.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from enum import Enum
from typing import Annotated, Any

from pydantic import ConfigDict, Field, ValidationError

from edgevlm_deploy.config import Frozen
from edgevlm_deploy.errors import EXIT_GATES_FAILED, EXIT_INCONCLUSIVE, EXIT_PASSED, DataError
from edgevlm_deploy.metrics.estimates import undefined
from edgevlm_deploy.metrics.statistics import Estimate, items_needed, quantile_interval, samples_needed
from edgevlm_deploy.metrics.tables import Metrics
from edgevlm_deploy.recipe import OF_CLASS_SCORES, Gate, GateName

P95 = 0.95
_NO_SCORES = "it is taken from scores of all classes and embeddings, which only dual encoders have"


class Outcome(str, Enum):
    PASS = "pass"
    FAIL = "fail"
    INCONCLUSIVE = "inconclusive"
    SKIPPED = "skipped"


Milliseconds = Annotated[float, Field(ge=0.0, allow_inf_nan=False)]


class Measurements(Frozen):
    """What the device measured. Raw samples give an interval; a lone p95 is taken at its word."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    latency_ms: tuple[Milliseconds, ...] = ()
    """One whole answer each: picture and question in, last token out."""
    time_to_first_token_ms: tuple[Milliseconds, ...] = ()
    latency_ms_p95: Milliseconds | None = None
    time_to_first_token_ms_p95: Milliseconds | None = None
    peak_rss_bytes: Annotated[int, Field(ge=0)] | None = None
    bundle_bytes: Annotated[int, Field(ge=0)] | None = None
    reasons: dict[GateName, str] = {}
    """Metric → why it was not measured."""


class GateResult(Frozen):
    metric: GateName
    min: float | None
    max: float | None
    reason: str
    """Why the recipe has this limit."""
    outcome: Outcome
    value: float | None
    low: float | None
    high: float | None
    n: int
    """Items or samples behind the value."""
    unit: str
    """What `n` counts: items, samples or measurements."""
    method: str
    explanation: str
    """One sentence for the report."""
    needed: int | None = None
    """When inconclusive: how many `unit` in all would settle the gate at the same value; else None."""
    within_noise_floor: bool = False
    """The reference differs from itself at least as often as the artifact differs from it."""


class Verdict(Frozen):
    """JSON through `model_dump_json` / `model_validate_json`."""

    format_version: int = 1
    outcome: Outcome
    """pass, fail or inconclusive; a skipped gate or an emulated device makes a verdict inconclusive."""
    exit_code: int
    level: float
    gates_looked_at: int
    note: str
    gates: tuple[GateResult, ...]

    @property
    def deployable(self) -> bool:
        return self.outcome is Outcome.PASS


def judge(
    gates: Sequence[Gate],
    metrics: Metrics,
    device: Measurements | Mapping[str, Any] | None = None,
    *,
    noise_floor: Estimate | None = None,
    emulated: bool = False,
) -> Verdict:
    """Hold every gate against its metric.

    `device` is what the runner measured, None when nothing ran on a device. `noise_floor` is the
    divergence rate of the reference from itself (`metrics.noise_floor`). `emulated`: another runtime than
    the device's answered, which may fail a gate and passes no artifact.
    Raises DataError when a measurement is not a finite number of at least zero.
    """
    measured = _measurements(device)
    results = tuple(_judge_gate(gate, metrics, measured, noise_floor) for gate in gates)
    outcome = _overall([result.outcome for result in results])
    note = (
        f"{len(results)} gates were looked at; each has its own {metrics.level:.0%} interval, "
        "not adjusted for their number."
    )
    if emulated:
        outcome = Outcome.INCONCLUSIVE if outcome is Outcome.PASS else outcome
        note += " The device's runtime was emulated: only the device can pass the artifact."
    return Verdict(
        outcome=outcome,
        exit_code={Outcome.PASS: EXIT_PASSED, Outcome.FAIL: EXIT_GATES_FAILED}.get(
            outcome, EXIT_INCONCLUSIVE
        ),
        level=metrics.level,
        gates_looked_at=len(results),
        note=note,
        gates=results,
    )


def _measurements(device: Measurements | Mapping[str, Any] | None) -> Measurements:
    try:
        return Measurements.model_validate({} if device is None else device)
    except ValidationError as error:
        problem = error.errors()[0]
        key = ".".join(str(part) for part in problem["loc"])
        raise DataError(f"device measurement {key}: {problem['msg']} (got {problem['input']!r}).") from error


def _overall(outcomes: Sequence[Outcome]) -> Outcome:
    if Outcome.FAIL in outcomes:
        return Outcome.FAIL
    return Outcome.PASS if outcomes and set(outcomes) == {Outcome.PASS} else Outcome.INCONCLUSIVE


_FLIP_RATES = (GateName.DIVERGENCE_RATE, GateName.NEGATIVE_FLIP_RATE)


def _judge_gate(
    gate: Gate, metrics: Metrics, measured: Measurements, noise_floor: Estimate | None
) -> GateResult:
    estimate, unit = _estimate(gate.metric, metrics, measured)
    outcome, needed = Outcome.SKIPPED, None
    if estimate.value is not None:
        outcome = _outcome(gate, estimate)
    if outcome is Outcome.INCONCLUSIVE:
        needed = _needed(gate, estimate, unit, metrics.level)
    within = (
        gate.metric in _FLIP_RATES
        and noise_floor is not None
        and noise_floor.value is not None
        and estimate.value is not None
        and estimate.value <= noise_floor.value
    )
    sentence = _explain(gate, estimate, outcome, needed, unit)
    if within:
        sentence += " It is within the noise floor: the reference differs from itself as often."
    return GateResult(
        metric=gate.metric,
        min=gate.min,
        max=gate.max,
        reason=gate.reason,
        outcome=outcome,
        value=estimate.value,
        low=estimate.low,
        high=estimate.high,
        n=estimate.n,
        unit=unit,
        method=estimate.method,
        explanation=sentence,
        needed=needed,
        within_noise_floor=within,
    )


def _estimate(name: GateName, metrics: Metrics, measured: Measurements) -> tuple[Estimate, str]:
    """The metric's estimate, and what its n counts."""
    missing = measured.reasons.get(name, "not measured on a device")
    if name is GateName.LATENCY_MS_P95:
        return _p95(measured.latency_ms, measured.latency_ms_p95, metrics.level, missing)
    if name is GateName.TIME_TO_FIRST_TOKEN_MS_P95:
        samples, point = measured.time_to_first_token_ms, measured.time_to_first_token_ms_p95
        return _p95(samples, point, metrics.level, missing)
    if name is GateName.PEAK_RSS_BYTES:
        return _point(measured.peak_rss_bytes, missing), "measurements"
    if name is GateName.BUNDLE_BYTES:
        return _point(measured.bundle_bytes, "no bundle was written"), "measurements"
    if name in OF_CLASS_SCORES:
        return metrics.estimates.get(name.value, undefined(_NO_SCORES)), "items"
    return metrics.estimates[name.value], "items"


def _point(value: float | None, why_missing: str) -> Estimate:
    """A single measurement: nothing to make an interval of, so it is compared as it is."""
    if value is None:
        return Estimate(value=None, low=None, high=None, n=0, clusters=0, method="none", note=why_missing)
    return Estimate(value=value, low=value, high=value, n=1, clusters=1, method="point measurement")


def _p95(samples: Sequence[float], point: float | None, level: float, missing: str) -> tuple[Estimate, str]:
    """95th percentile: the smallest sample that at least 95 % of the samples do not exceed."""
    if not samples:
        return _point(point, missing), "measurements"
    low, high = quantile_interval(samples, P95, level)
    n = len(samples)
    value = sorted(samples)[math.ceil(P95 * n) - 1]
    return Estimate(value=value, low=low, high=high, n=n, clusters=n, method="order statistics"), "samples"


def _outcome(gate: Gate, estimate: Estimate) -> Outcome:
    """An interval that is open on a side cannot be inside a limit on that side."""
    if gate.max is not None:
        if estimate.high is not None and estimate.high <= gate.max:
            return Outcome.PASS
        return Outcome.FAIL if estimate.low is not None and estimate.low > gate.max else Outcome.INCONCLUSIVE
    assert gate.min is not None
    if estimate.low is not None and estimate.low >= gate.min:
        return Outcome.PASS
    return Outcome.FAIL if estimate.high is not None and estimate.high < gate.min else Outcome.INCONCLUSIVE


def _needed(gate: Gate, estimate: Estimate, unit: str, level: float) -> int | None:
    """n at which the interval would no longer contain the limit, if the value stayed the same.

    Wilson's interval is inverted exactly; any other one is taken to shrink with √n. None when the
    value sits on the limit or when there is no interval to shrink.
    """
    limit = gate.max if gate.max is not None else gate.min
    assert limit is not None and estimate.value is not None
    if estimate.value == limit:
        return None
    if unit == "samples" and estimate.high is None:
        return max(samples_needed(P95, level), estimate.n + 1)
    if estimate.method == "wilson" and 0.0 < limit < 1.0:
        needed = items_needed(estimate.value, limit, level)
        return None if needed is None else max(needed, estimate.n + 1)
    bound = estimate.high if estimate.value < limit else estimate.low
    if bound is None:
        return None
    shrink = (bound - estimate.value) / (limit - estimate.value)
    return max(math.ceil(estimate.n * shrink * shrink), estimate.n + 1)


def _explain(gate: Gate, estimate: Estimate, outcome: Outcome, needed: int | None, unit: str) -> str:
    name = gate.metric.value
    limit = f"at most {_number(gate.max)}" if gate.max is not None else f"at least {_number(gate.min)}"
    if outcome is Outcome.SKIPPED:
        return f"{name} was not judged: {estimate.note}."
    interval = f"{_number(estimate.value)} in [{_number(estimate.low)}, {_number(estimate.high)}]"
    if estimate.method == "point measurement":
        interval = f"{_number(estimate.value)} (one measurement)"
    if outcome is Outcome.PASS:
        return f"{name} is {interval}, inside the limit of {limit}."
    if outcome is Outcome.FAIL:
        return f"{name} is {interval}, outside the limit of {limit}."
    if needed is not None:
        settle = f"about {needed:,} {unit} would settle it at the same value (now {estimate.n:,})"
    elif estimate.low is None and estimate.high is None:
        settle = "it has no confidence interval"
    else:
        settle = f"no number of {unit} would settle it, because the value sits on the limit"
    return f"{name} is {interval}, which contains the limit of {limit}; {settle}."


def _number(value: float | None) -> str:
    """Five significant digits, whole numbers from 1,000 on in full; "?" for an open bound."""
    if value is None:
        return "?"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.5g}"
