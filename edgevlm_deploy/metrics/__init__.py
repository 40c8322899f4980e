"""Metrics: pure functions of items and answers."""

from __future__ import annotations

from edgevlm_deploy.metrics.statistics import Estimate
from edgevlm_deploy.metrics.summary import compute, noise_floor
from edgevlm_deploy.metrics.tables import Metrics

__all__ = ["Estimate", "Metrics", "compute", "noise_floor"]
