"""A .tflite file against the torch model that computes with the same integers, through the runner itself.

*Exact* is the float file that was built from the dequantised weights: it must agree with torch to
`TOLERANCE`. *Shipped* is the file with integers in it; LiteRT then rounds the inputs of products to int8
while running, and the effect of that is measured and reported, apart from the effect of quantisation itself.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from edgevlm_runner.contract import ModelSpec
from edgevlm_runner.inputs import Inputs
from edgevlm_runner.runtimes.litert import LiteRt
from numpy.typing import NDArray

from edgevlm_deploy.export.verify import (
    TOKENS,
    Floats,
    Verification,
    check_same_tokens,
    conclude,
    observe,
)
from edgevlm_deploy.quantize.table import QuantizedTable

TOLERANCE = 1e-4
"""Largest difference, relative to the largest magnitude in the tensor."""


class ObservedLiteRt(LiteRt):
    """The runner's own runtime; keeps features, logits and hidden states of one question, until `clear`."""

    quantized: Mapping[str, NDArray[np.int8]] = {}
    features: Floats | None
    logits: list[Floats]
    states: list[Floats]

    def clear(self) -> None:
        self.features = None
        self.logits = []
        self.states = []

    def encode_image(self, pixel_values: Floats) -> Floats:
        self.features = super().encode_image(pixel_values)
        return self.features

    def step(self, embeds: Floats, positions: NDArray[np.int64] | None = None) -> Floats:
        self.logits.append(super().step(embeds, positions))
        self.states.append(self.hidden())
        return self.logits[-1]


def verify(
    reference: Any, spec: ModelSpec, exact_root: Path, root: Path, samples: Sequence[Inputs]
) -> Verification:
    """Compare the float file below `exact_root` with `reference`, the fake-quantised torch model, and the
    file below `root` with the float one.

    Short questions run on short caches; a second run takes the longest one, and copies it.
    Raises ExportError when the float file differs from torch by more than `TOLERANCE`.
    """
    roomy = dataclasses.replace(spec, max_new_tokens=TOKENS)
    with ObservedLiteRt(exact_root, roomy) as runtime:
        runtime.clear()
        observed = [observe(runtime, spec, sample) for sample in samples]
    longest = dataclasses.replace(spec, max_new_tokens=spec.max_context)
    with LiteRt(exact_root, longest, in_place=False) as copying:
        check_same_tokens(copying, spec, samples, observed, "short caches in place")
    with LiteRt(root, roomy) as shipped:
        return conclude(reference, QuantizedTable({}), spec, samples, observed, shipped, TOLERANCE)
