"""The samples that quantisation sees: drawn, mixed, written down and pinned by a digest."""

from __future__ import annotations

from edgevlm_deploy.calibration.batch import Batches, batches, inputs
from edgevlm_deploy.calibration.pictures import Content
from edgevlm_deploy.calibration.rows import CalibrationSet, Row, build, load

__all__ = ["Batches", "CalibrationSet", "Content", "Row", "batches", "build", "inputs", "load"]
