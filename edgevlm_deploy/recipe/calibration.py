"""What quantisation sees of the data."""

from __future__ import annotations

from enum import Enum
from typing import Annotated

from pydantic import Field, model_validator

from edgevlm_deploy.config import Frozen, Share


class Mixture(Frozen):
    """Shares of clean, dark, grey and noisy pictures among the calibration samples."""

    clean: Share = 1.0
    dark: Share = 0.0
    grey: Share = 0.0
    noise: Share = 0.0

    @model_validator(mode="after")
    def _sums_to_one(self) -> Mixture:
        total = self.clean + self.dark + self.grey + self.noise
        if abs(total - 1.0) > 1e-6:
            raise ValueError(f"shares must sum to 1, they sum to {total:g}")
        return self


class ObserverName(str, Enum):
    """How much of an activation's range 8 bits cover; see `quantize.observers`."""

    MINMAX = "minmax"
    PERCENTILE = "percentile"
    MSE = "mse"
    ENTROPY = "entropy"


class Composition(str, Enum):
    """Which part of a calibration sample the model is shown."""

    MIXED = "mixed"
    """Picture, question and answer, as in use."""
    TEXT_ONLY = "text_only"
    """Question and answer without the picture: the vision encoder sees nothing."""
    IMAGE_ONLY = "image_only"
    """The picture without question and answer."""


class Calibration(Frozen):
    samples: Annotated[int, Field(ge=1, le=4096)] = 128
    seed: int = 0
    mixture: Mixture = Mixture()
    modality_balanced: bool = True
    """Draw evenly over kinds of question (`group`), so that no modality or task dominates the ranges."""
    composition: Composition = Composition.MIXED
    observer: ObserverName = ObserverName.MINMAX
    """From the values of an activation to its calibrated range."""

    @model_validator(mode="after")
    def _text_has_no_pictures_to_mix(self) -> Calibration:
        if self.composition is Composition.TEXT_ONLY and self.mixture.clean < 1:
            raise ValueError("composition text_only shows no pictures; leave `mixture` out")
        return self
