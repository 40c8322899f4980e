"""Results of a sweep, from made-up answers through the real metrics."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from edgevlm_runner.contract import Answer, Item

from edgevlm_deploy import metrics, suites
from edgevlm_deploy.metrics import Metrics
from edgevlm_deploy.recipe import Corruption, Evaluation
from edgevlm_deploy.sweep.rows import Results, Row, of_conditions

EVALUATION = Evaluation(
    corruptions=(Corruption.GAUSSIAN_NOISE, Corruption.FOG),
    severities=(1, 3),
    items_per_condition=12,
    bootstrap_resamples=100,
)
SHARED: dict[str, Any] = {
    "sweep": "grid",
    "target": "host-cpu",
    "latency_ms_p50": 4.0,
    "latency_ms_p95": 5.0,
    "time_to_first_token_ms_p95": 3.0,
    "alone": True,
    "peak_rss_bytes": 100_000_000,
    "model_bytes": 4_000_000,
    "bundle_bytes": 9_000_000,
    "outcome": "pass",
    "cpu": "test CPU",
    "bundle": "ab" * 32,
    "edgevlm_version": "0.1.0",
}


def measured(right: float) -> Metrics:
    """Of an artifact that is right on that share of the items."""
    rng = np.random.default_rng(0)
    items = suites.build(
        [
            Item(f"q{n}", f"q{n}", "", "clean", f"{n}.png", f"picture{n}", "What color is it?", ("red",))
            for n in range(40)
        ],
        EVALUATION,
    )

    def answers(share: float) -> list[Answer]:
        said = np.where(rng.random(len(items)) < share, "red", "blue")
        return [
            Answer(item.id, str(one), (5, 2), (-0.1, -0.1), True)
            for item, one in zip(items, said, strict=True)
        ]

    return metrics.compute(items, answers(0.9), answers(right), EVALUATION)


@pytest.fixture(scope="session")
def results() -> Results:
    rows: list[Row] = []
    for recipe, right in (("int8", 0.9), ("int3", 0.6)):
        rows += of_conditions(measured(right), {**SHARED, "model": "demo", "recipe": recipe})
    return Results("grid", tuple(rows), {"demo × int2": "QuantizationError <b>no</b> such scheme"})
