"""Limits that the evidence has to keep."""

from __future__ import annotations

from enum import Enum

from pydantic import model_validator

from edgevlm_deploy.config import Frozen


class GateName(str, Enum):
    """What can be gated. `metrics.md`-style definitions stand in the functions that compute them."""

    ACCURACY = "accuracy"
    ACCURACY_DROP = "accuracy_drop"
    DIVERGENCE_RATE = "divergence_rate"
    NEGATIVE_FLIP_RATE = "negative_flip_rate"
    RELATIVE_ROBUSTNESS = "relative_robustness"
    CORRUPTED_ACCURACY = "corrupted_accuracy"
    ROBUSTNESS_GAP = "robustness_gap"
    CORRUPTED_DIVERGENCE_RATE = "corrupted_divergence_rate"
    CORRUPTED_NEGATIVE_FLIP_RATE = "corrupted_negative_flip_rate"
    PERTURBED_DIVERGENCE_RATE = "perturbed_divergence_rate"
    NEGATION_SUCCESS = "negation_success"
    NEGATION_SUCCESS_DROP = "negation_success_drop"
    NEGATION_DIVERGENCE_RATE = "negation_divergence_rate"
    PRIOR_BIAS = "prior_bias"
    PRIOR_BIAS_INCREASE = "prior_bias_increase"
    BACKGROUND_GAP = "background_gap"
    WORST_GROUP_ACCURACY = "worst_group_accuracy"
    WORST_GROUP_ACCURACY_DROP = "worst_group_accuracy_drop"
    RELATIVE_SPURIOUS_GAP_INCREASE = "relative_spurious_gap_increase"
    OOD_AUROC = "ood_auroc"
    OOD_AUROC_DROP = "ood_auroc_drop"
    MCM_AUROC = "mcm_auroc"
    MCM_AUROC_DROP = "mcm_auroc_drop"
    MCM_FPR_AT_LEAST_95 = "mcm_fpr_at_least_95"
    MCM_FPR_AT_LEAST_95_INCREASE = "mcm_fpr_at_least_95_increase"
    TOP_5_ACCURACY = "top_5_accuracy"
    TOP_5_ACCURACY_DROP = "top_5_accuracy_drop"
    IMAGE_TO_TEXT_RECALL_AT_1_DROP = "image_to_text_recall_at_1_drop"
    TEXT_TO_IMAGE_RECALL_AT_1_DROP = "text_to_image_recall_at_1_drop"
    ECE = "ece"
    ECE_INCREASE = "ece_increase"
    ADAPTIVE_ECE_INCREASE = "adaptive_ece_increase"
    BRIER_INCREASE = "brier_increase"
    COVERAGE_AT_RISK_5 = "coverage_at_risk_5"
    COVERAGE_AT_RISK_5_DROP = "coverage_at_risk_5_drop"
    SELECTOR_COVERAGE_AT_RISK_1 = "selector_coverage_at_risk_1"
    SELECTOR_COVERAGE_AT_RISK_5 = "selector_coverage_at_risk_5"
    SELECTOR_GAIN_AT_RISK_1 = "selector_gain_at_risk_1"
    SELECTOR_GAIN_AT_RISK_5 = "selector_gain_at_risk_5"
    ANSWERED_SHARE = "answered_share"
    ANSWERED_RISK = "answered_risk"
    TIME_TO_FIRST_TOKEN_MS_P95 = "time_to_first_token_ms_p95"
    LATENCY_MS_P95 = "latency_ms_p95"
    PEAK_RSS_BYTES = "peak_rss_bytes"
    BUNDLE_BYTES = "bundle_bytes"


OF_CLASS_SCORES = frozenset(
    {
        GateName.MCM_AUROC,
        GateName.MCM_AUROC_DROP,
        GateName.MCM_FPR_AT_LEAST_95,
        GateName.MCM_FPR_AT_LEAST_95_INCREASE,
        GateName.TOP_5_ACCURACY,
        GateName.TOP_5_ACCURACY_DROP,
        GateName.IMAGE_TO_TEXT_RECALL_AT_1_DROP,
        GateName.TEXT_TO_IMAGE_RECALL_AT_1_DROP,
    }
)
"""What only dual encoders have: scores of all classes, or embeddings of pictures and texts."""


class Gate(Frozen):
    """A limit on one metric; passed only when the whole confidence interval is inside it."""

    metric: GateName
    min: float | None = None
    max: float | None = None
    reason: str = ""
    """Why this limit: shown in the report."""

    @model_validator(mode="after")
    def _exactly_one_limit(self) -> Gate:
        if (self.min is None) == (self.max is None):
            raise ValueError("a gate has exactly one of `min` and `max`")
        return self
