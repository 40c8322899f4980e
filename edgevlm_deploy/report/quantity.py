"""Numbers as people read them: the unit of every metric and one way to write each unit."""

from __future__ import annotations

import math
from enum import Enum

from edgevlm_deploy.metrics.statistics import Estimate
from edgevlm_deploy.metrics.tables import Metrics
from edgevlm_deploy.recipe import GateName
from edgevlm_deploy.verdict import GateResult

MINUS = "−"
MISSING = "–"


class Unit(str, Enum):
    """The value is what stands after the number."""

    SHARE = "%"
    POINTS = " pp"
    """Percentage points: a difference of two shares."""
    RATIO = ""
    MILLISECONDS = " ms"
    BYTES = " B"


TITLES = {
    GateName.ACCURACY: "Accuracy",
    GateName.ACCURACY_DROP: "Accuracy drop",
    GateName.DIVERGENCE_RATE: "Divergence rate",
    GateName.NEGATIVE_FLIP_RATE: "Negative flip rate",
    GateName.RELATIVE_ROBUSTNESS: "Relative robustness",
    GateName.CORRUPTED_ACCURACY: "Corrupted accuracy",
    GateName.ROBUSTNESS_GAP: "Robustness gap",
    GateName.CORRUPTED_DIVERGENCE_RATE: "Divergence rate under corruption",
    GateName.CORRUPTED_NEGATIVE_FLIP_RATE: "Negative flip rate under corruption",
    GateName.PERTURBED_DIVERGENCE_RATE: "Divergence rate under perturbation",
    GateName.NEGATION_SUCCESS: "Success on negation probes",
    GateName.NEGATION_SUCCESS_DROP: "Drop of success on negation probes",
    GateName.NEGATION_DIVERGENCE_RATE: "Divergence rate on negation probes",
    GateName.PRIOR_BIAS: "Same answer without the picture",
    GateName.PRIOR_BIAS_INCREASE: "More answers without the picture",
    GateName.BACKGROUND_GAP: "Cost of another background, more than before",
    GateName.WORST_GROUP_ACCURACY: "Accuracy of the worst group",
    GateName.WORST_GROUP_ACCURACY_DROP: "Drop of the worst group's accuracy",
    GateName.RELATIVE_SPURIOUS_GAP_INCREASE: "Relative spurious gap increase",
    GateName.OOD_AUROC: "Unfamiliar told from familiar (AUROC)",
    GateName.OOD_AUROC_DROP: "Drop of that AUROC",
    GateName.MCM_AUROC: "Pictures of no class told apart (MCM, AUROC)",
    GateName.MCM_AUROC_DROP: "Drop of MCM's AUROC",
    GateName.MCM_FPR_AT_LEAST_95: "Pictures of no class let in (MCM, FPR at 95% recall)",
    GateName.MCM_FPR_AT_LEAST_95_INCREASE: "More pictures of no class let in",
    GateName.TOP_5_ACCURACY: "Top-5 accuracy",
    GateName.TOP_5_ACCURACY_DROP: "Top-5 accuracy drop",
    GateName.IMAGE_TO_TEXT_RECALL_AT_1_DROP: "Fewer captions found first",
    GateName.TEXT_TO_IMAGE_RECALL_AT_1_DROP: "Fewer pictures found first",
    GateName.ECE: "Calibration error",
    GateName.ECE_INCREASE: "Calibration error increase",
    GateName.ADAPTIVE_ECE_INCREASE: "Adaptive calibration error increase",
    GateName.BRIER_INCREASE: "Brier score increase",
    GateName.COVERAGE_AT_RISK_5: "Coverage at 5% risk",
    GateName.COVERAGE_AT_RISK_5_DROP: "Drop of coverage at 5% risk",
    GateName.SELECTOR_COVERAGE_AT_RISK_1: "Coverage at 1% risk by the Selector",
    GateName.SELECTOR_COVERAGE_AT_RISK_5: "Coverage at 5% risk by the Selector",
    GateName.SELECTOR_GAIN_AT_RISK_1: "Coverage added by the Selector at 1% risk",
    GateName.SELECTOR_GAIN_AT_RISK_5: "Coverage added by the Selector at 5% risk",
    GateName.ANSWERED_SHARE: "Questions answered",
    GateName.ANSWERED_RISK: "Wrong among the answered",
    GateName.TIME_TO_FIRST_TOKEN_MS_P95: "First token p95",
    GateName.LATENCY_MS_P95: "Latency p95",
    GateName.PEAK_RSS_BYTES: "Peak memory",
    GateName.BUNDLE_BYTES: "Bundle size",
}

UNITS = {
    GateName.ACCURACY: Unit.SHARE,
    GateName.ACCURACY_DROP: Unit.POINTS,
    GateName.DIVERGENCE_RATE: Unit.SHARE,
    GateName.NEGATIVE_FLIP_RATE: Unit.SHARE,
    GateName.RELATIVE_ROBUSTNESS: Unit.RATIO,
    GateName.CORRUPTED_ACCURACY: Unit.SHARE,
    GateName.ROBUSTNESS_GAP: Unit.POINTS,
    GateName.CORRUPTED_DIVERGENCE_RATE: Unit.SHARE,
    GateName.CORRUPTED_NEGATIVE_FLIP_RATE: Unit.SHARE,
    GateName.PERTURBED_DIVERGENCE_RATE: Unit.SHARE,
    GateName.NEGATION_SUCCESS: Unit.SHARE,
    GateName.NEGATION_SUCCESS_DROP: Unit.POINTS,
    GateName.NEGATION_DIVERGENCE_RATE: Unit.SHARE,
    GateName.PRIOR_BIAS: Unit.SHARE,
    GateName.PRIOR_BIAS_INCREASE: Unit.POINTS,
    GateName.BACKGROUND_GAP: Unit.POINTS,
    GateName.WORST_GROUP_ACCURACY: Unit.SHARE,
    GateName.WORST_GROUP_ACCURACY_DROP: Unit.POINTS,
    GateName.RELATIVE_SPURIOUS_GAP_INCREASE: Unit.POINTS,
    GateName.OOD_AUROC: Unit.RATIO,
    GateName.OOD_AUROC_DROP: Unit.RATIO,
    GateName.MCM_AUROC: Unit.RATIO,
    GateName.MCM_AUROC_DROP: Unit.RATIO,
    GateName.MCM_FPR_AT_LEAST_95: Unit.SHARE,
    GateName.MCM_FPR_AT_LEAST_95_INCREASE: Unit.POINTS,
    GateName.TOP_5_ACCURACY: Unit.SHARE,
    GateName.TOP_5_ACCURACY_DROP: Unit.POINTS,
    GateName.IMAGE_TO_TEXT_RECALL_AT_1_DROP: Unit.POINTS,
    GateName.TEXT_TO_IMAGE_RECALL_AT_1_DROP: Unit.POINTS,
    GateName.ECE: Unit.SHARE,
    GateName.ECE_INCREASE: Unit.POINTS,
    GateName.ADAPTIVE_ECE_INCREASE: Unit.POINTS,
    GateName.BRIER_INCREASE: Unit.RATIO,
    GateName.COVERAGE_AT_RISK_5: Unit.SHARE,
    GateName.COVERAGE_AT_RISK_5_DROP: Unit.POINTS,
    GateName.SELECTOR_COVERAGE_AT_RISK_1: Unit.SHARE,
    GateName.SELECTOR_COVERAGE_AT_RISK_5: Unit.SHARE,
    GateName.SELECTOR_GAIN_AT_RISK_1: Unit.POINTS,
    GateName.SELECTOR_GAIN_AT_RISK_5: Unit.POINTS,
    GateName.ANSWERED_SHARE: Unit.SHARE,
    GateName.ANSWERED_RISK: Unit.SHARE,
    GateName.TIME_TO_FIRST_TOKEN_MS_P95: Unit.MILLISECONDS,
    GateName.LATENCY_MS_P95: Unit.MILLISECONDS,
    GateName.PEAK_RSS_BYTES: Unit.BYTES,
    GateName.BUNDLE_BYTES: Unit.BYTES,
}

_PREFIXES = ((1e9, " GB"), (1e6, " MB"), (1e3, " kB"))


def quantity(value: float | None, unit: Unit) -> str:
    """As in "98.4%", "0.42 pp", "0.931", "41.3 ms", "184 MB"; a dash for None. Bytes are decimal."""
    if value is None:
        return MISSING
    scale, suffix = _scale(abs(value), unit)
    return _number(value / scale, unit) + suffix


def interval(low: float | None, high: float | None, unit: Unit) -> str:
    """As in "[0.21, 0.83]%"; an open side reads "?"; a dash without any bound."""
    if low is None and high is None:
        return MISSING
    scale, suffix = _scale(max(abs(bound) for bound in (low, high) if bound is not None), unit)
    written = ("?" if bound is None else _number(bound / scale, unit) for bound in (low, high))
    return f"[{', '.join(written)}]{suffix}"


def estimated(estimate: Estimate, unit: Unit) -> str:
    """Value and interval; the value alone where there is no interval."""
    if estimate.low is None and estimate.high is None:
        return quantity(estimate.value, unit)
    return f"{quantity(estimate.value, unit)} {interval(estimate.low, estimate.high, unit)}"


def items(metrics: Metrics) -> str:
    """As in "2,400 clean, 2,000 corrupted and 400 negated items"."""
    parts = [f"{n:,} {kind}" for kind, n in metrics.counts.items()]
    return f"{', '.join(parts[:-1])} and {parts[-1]} items"


def limit(gate: GateResult) -> str:
    """As in "≤ 2%" or "≥ 0.6", without digits that nobody wrote."""
    bound, sign = (gate.max, "≤") if gate.max is not None else (gate.min, "≥")
    assert bound is not None
    unit = UNITS[gate.metric]
    scale, suffix = _scale(abs(bound), unit)
    return f"{sign} {bound / scale:.6g}{suffix}".replace("-", MINUS)


def measured(gate: GateResult) -> str:
    """Value and interval; the value alone for a single measurement."""
    unit = UNITS[gate.metric]
    if gate.value is None or gate.low == gate.high:
        return quantity(gate.value, unit)
    return f"{quantity(gate.value, unit)} {interval(gate.low, gate.high, unit)}"


def _scale(size: float, unit: Unit) -> tuple[float, str]:
    if unit is Unit.BYTES:
        return next(((scale, suffix) for scale, suffix in _PREFIXES if size >= scale), (1.0, " B"))
    return (0.01 if unit in (Unit.SHARE, Unit.POINTS) else 1.0), unit.value


def _number(value: float, unit: Unit) -> str:
    """Shares and points keep two decimals below ten; other units three significant digits."""
    if unit in (Unit.SHARE, Unit.POINTS):
        decimals = 1 if abs(value) >= 9.995 else 2
    elif unit is Unit.RATIO:
        decimals = 3
    elif unit is Unit.BYTES and value == int(value):
        decimals = 0
    else:
        decimals = max(0, 2 - math.floor(math.log10(abs(value)))) if value else 0
    # A tiny negative number must not read "−0.00".
    return f"{round(value, decimals) + 0.0:,.{decimals}f}".replace("-", MINUS)
