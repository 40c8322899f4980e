"""Families of vision-language models from a checkpoint to a sealed bundle, each by another quantiser."""

from __future__ import annotations

from pathlib import Path

import pytest
import tiny_families

from edgevlm_deploy import pipeline, quiet, validation
from edgevlm_deploy.progress import Silent
from edgevlm_deploy.verdict import Outcome

RECIPE = """
name: small
description: Few items, loose gates; what is tested is the line, not the model.
components:
  vision_encoder: {scheme: w8a8}
  projector: {scheme: w8a8}
  embedding: {scheme: w8a16}
  decoder: {scheme: w4a16_g32, algorithm: ALGORITHM}
  head: {scheme: w8a16}
calibration: {samples: 8}
generation: {max_new_tokens: 6, max_context: 256}
evaluation:
  clean_items: 12
  corruptions: [gaussian_noise]
  severities: [2]
  items_per_condition: 4
  bootstrap_resamples: 200
gates:
  - {metric: divergence_rate, max: 1.0}
target_budgets: report
"""
ALGORITHMS = {"llava_next": "gptq", "paligemma": "awq"}
"""Tiles, and a prompt that sees all of itself; the others are parts of these."""


@pytest.mark.slow
@pytest.mark.parametrize("family", ALGORITHMS)
def test_a_quantised_bundle_is_validated(family: str, tmp_path: Path) -> None:
    recipe = tmp_path / "small.yaml"
    recipe.write_text(RECIPE.replace("ALGORITHM", ALGORITHMS[family]))
    with quiet.libraries():
        tiny_families.save(family, tmp_path / family)
    order = pipeline.Order(
        model=str(tmp_path / family), target="host-cpu", recipe=str(recipe), out=tmp_path / "build"
    )
    bundle = pipeline.compile(order, Silent())
    assert validation.validate(bundle, False, Silent()).verdict.outcome is Outcome.PASS
