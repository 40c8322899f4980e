"""The mixture: how many of the drawn pictures stay clean, and what becomes of the others.

clean   the file as it is
dark    RGB values × 0.2: an unlit scene
grey    one mid-grey area of the same size: a picture that says nothing, so that the ranges also
        cover answers which rest on the text alone
noise   Gaussian noise of σ = 0.18 on RGB values in 0 … 1, clipped: `gaussian_noise` of severity 3
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from enum import Enum

import numpy as np
from PIL import Image

from edgevlm_deploy.datasets import Sample
from edgevlm_deploy.datasets.disjoint import place
from edgevlm_deploy.recipe import Mixture

DARK_FACTOR = 0.2
MID_GREY = 128
NOISE_SIGMA = 0.18


class Content(str, Enum):
    CLEAN = "clean"
    DARK = "dark"
    GREY = "grey"
    NOISE = "noise"


def assign(samples: Sequence[Sample], mixture: Mixture, seed: int) -> tuple[Content, ...]:
    """What becomes of the picture of each sample; shares are met to within one picture.

    A sample without a picture is clean and counts in no share.
    """
    order = [n for n, sample in enumerate(samples) if sample.image is not None]
    order.sort(key=lambda n: place(seed, f"mixture:{samples[n].id}"))
    contents = [Content.CLEAN] * len(samples)
    start = 0
    for content, count in counts(mixture, len(order)).items():
        for n in order[start : start + count]:
            contents[n] = content
        start += count
    return tuple(contents)


def counts(mixture: Mixture, pictures: int) -> dict[Content, int]:
    """Shares as whole numbers that sum to `pictures`, by largest remainder."""
    exact = {content: getattr(mixture, content.value) * pictures for content in Content}
    whole = {content: int(value + 1e-9) for content, value in exact.items()}
    by_remainder = sorted(Content, key=lambda one: whole[one] - exact[one])
    for content in by_remainder[: pictures - sum(whole.values())]:
        whole[content] += 1
    return whole


def changed(picture: Image.Image, content: Content, seed: int, key: str) -> Image.Image:
    """From RGB to RGB of the same size; `key` (the sample's id) and `seed` determine the noise."""
    if content is Content.DARK:
        return picture.point(lambda value: value * DARK_FACTOR)
    if content is Content.GREY:
        return Image.new("RGB", picture.size, (MID_GREY,) * 3)
    if content is Content.NOISE:
        entropy = hashlib.sha256(f"{seed}:noise:{key}".encode()).digest()
        rng = np.random.default_rng(int.from_bytes(entropy, "big"))
        pixels = np.asarray(picture, np.float32) / 255.0
        noisy = pixels + rng.normal(0.0, NOISE_SIGMA, pixels.shape)
        return Image.fromarray(np.rint(np.clip(noisy, 0.0, 1.0) * 255.0).astype(np.uint8))
    return picture
