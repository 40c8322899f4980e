"""The evidence that is gathered: suites and how many items of each."""

from __future__ import annotations

from enum import Enum
from typing import Annotated

from pydantic import Field, model_validator

from edgevlm_deploy.config import Frozen


class Corruption(str, Enum):
    GAUSSIAN_NOISE = "gaussian_noise"
    SHOT_NOISE = "shot_noise"
    IMPULSE_NOISE = "impulse_noise"
    DEFOCUS_BLUR = "defocus_blur"
    MOTION_BLUR = "motion_blur"
    FOG = "fog"
    BRIGHTNESS = "brightness"
    CONTRAST = "contrast"
    JPEG_COMPRESSION = "jpeg_compression"
    PIXELATE = "pixelate"
    GLASS_BLUR = "glass_blur"
    ZOOM_BLUR = "zoom_blur"
    SNOW = "snow"
    FROST = "frost"
    ELASTIC_TRANSFORM = "elastic_transform"
    LOW_LIGHT = "low_light"
    ROLLING_MOTION = "rolling_motion"
    LENS_DIRT = "lens_dirt"
    THERMAL_BANDING = "thermal_banding"
    BLOCK_LOSS = "block_loss"


EDGE_SUITE = tuple(Corruption)[:10]
"""The ten of EdgeVLM-Bench, in its order; then the other five of ImageNet-C, then the edge sensors."""

SENSOR_SUITE = tuple(Corruption)[15:]


class CorruptionProfile(str, Enum):
    """Which constants the five severities stand for."""

    IMAGENET_C = "imagenet-c"
    CIFAR_C = "cifar-c"
    """Milder. It has no edge sensors and no elastic transform."""


class Perturbation(str, Enum):
    SMALL_SHIFT = "small_shift"
    JPEG_QUALITY = "jpeg_quality"
    BRIGHTNESS_SHIFT = "brightness_shift"
    PARAPHRASE = "paraphrase"


class ProbeForm(str, Enum):
    """Negation probes; `docs/probes.md` has their words and which items they are made of."""

    IS_NOT = "is_not"
    ABSENT = "absent"
    FALSE_YN = "false_yn"
    COUNTER = "counter"
    TRUE_YN = "true_yn"
    """The affirmative control: no part of the success of negation."""


class Negation(Frozen):
    """Probes that deny what a picture shows, on clean items (Erol, arXiv 2603.26769)."""

    items: Annotated[int, Field(ge=1)] = 100
    """At most this many clean items per form; 100 as published."""
    forms: Annotated[tuple[ProbeForm, ...], Field(min_length=1)] = tuple(ProbeForm)
    blind: bool = True
    """Whether each probe is asked without its picture too: what succeeds there does not come from seeing."""


class Evaluation(Frozen):
    clean_items: Annotated[int, Field(ge=1)] = 2000
    """At most this many clean items."""
    corruptions: tuple[Corruption, ...] = EDGE_SUITE
    corruption_profile: CorruptionProfile = CorruptionProfile.IMAGENET_C
    perturbations: tuple[Perturbation, ...] = ()
    """Changes that should change no answer; `severities` are their levels."""
    severities: tuple[Annotated[int, Field(ge=1, le=5)], ...] = (1, 2, 3, 4, 5)
    items_per_condition: Annotated[int, Field(ge=1)] = 50
    """Items per corruption or perturbation and severity, drawn from the clean ones."""
    negation: Negation | None = None
    """Negation probes; none by default."""
    blind_items: Annotated[int, Field(ge=0)] = 0
    """Clean items that are asked again without their picture."""
    grey_items: Annotated[int, Field(ge=0)] = 0
    """Clean items that are asked again about one grey area."""
    background_items: Annotated[int, Field(ge=0)] = 0
    """At most this many rows with `counterfactual_of` are asked: the clean item on another background."""
    ood_items: Annotated[int, Field(ge=0)] = 500
    """At most this many questions of another distribution are asked, when such are given (`--ood`)."""
    temperature_items: Annotated[int, Field(ge=0)] = 128
    """At most this many calibration questions are asked too, to fit the temperature of the confidence."""
    feature_items: Annotated[int, Field(ge=0, le=4096)] = 0
    """Of a dual encoder: so many of the first clean pictures leave their embeddings in the evidence, which
    retrieval and the spectral analysis are computed from. 0: none of them; 500 of CLIP's take 1 MB."""
    seed: int = 0
    confidence_level: Annotated[float, Field(gt=0.5, lt=1.0)] = 0.95
    bootstrap_resamples: Annotated[int, Field(ge=100)] = 10_000

    @model_validator(mode="after")
    def _profile_has_the_corruptions(self) -> Evaluation:
        lacking = {Corruption.ELASTIC_TRANSFORM, *SENSOR_SUITE} & set(self.corruptions)
        if self.corruption_profile is CorruptionProfile.CIFAR_C and lacking:
            names = ", ".join(sorted(corruption.value for corruption in lacking))
            raise ValueError(f"corruption_profile cifar-c has no constants for {names}; leave them out")
        return self

    @property
    def corruption_names(self) -> tuple[str, ...]:
        """As items' conditions have them: those of CIFAR-C are named so."""
        return self.named(self.corruptions)

    def named(self, corruptions: tuple[Corruption, ...]) -> tuple[str, ...]:
        prefix = "cifar-c:" if self.corruption_profile is CorruptionProfile.CIFAR_C else ""
        return tuple(prefix + corruption.value for corruption in corruptions)
