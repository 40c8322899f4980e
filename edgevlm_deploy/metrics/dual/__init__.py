"""Metrics of dual encoders, from the scores of all classes and, where they are kept, from features."""

from __future__ import annotations

from edgevlm_deploy.metrics.dual.embeddings import added, retrieval_table, spectral_table
from edgevlm_deploy.metrics.dual.estimates import estimates
from edgevlm_deploy.metrics.dual.summary import compute, merged

__all__ = ["added", "compute", "estimates", "merged", "retrieval_table", "spectral_table"]
