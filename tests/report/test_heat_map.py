"""The heat map repeats the metrics, cell by cell."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from edgevlm_deploy.recipe import Corruption
from edgevlm_deploy.report import heat_map
from edgevlm_deploy.report.heat_map import level


def test_every_condition_has_its_cell(small_case: Any) -> None:
    built = heat_map.build(small_case.metrics)
    assert built is not None
    assert [row.corruption for row in built.rows] == [corruption.value for corruption in Corruption]
    rows = {row.corruption: row for row in built.rows}
    for condition in small_case.metrics.conditions:
        place = built.severities.index(condition.severity)
        cells = rows[condition.corruption].cells
        for view, estimate in (
            ("accuracy", condition.comparison.artifact_accuracy),
            ("drop", condition.comparison.accuracy_drop),
            ("flips", condition.comparison.negative_flip_rate),
        ):
            cell = cells[view][place]
            assert cell is not None
            assert float(cell.text.replace("−", "-")) == pytest.approx(100 * estimate.value, abs=0.051)
            assert cell.sure == (view != "drop" or estimate.low > 0 or estimate.high < 0)


def test_without_corruptions_there_is_no_map(make_case: Callable[..., Any]) -> None:
    assert heat_map.build(make_case(pictures=12, corruptions=()).metrics) is None


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (0.0, "plus-0"),
        (0.05, "plus-5"),
        (0.4, "plus-10"),
        (-0.02, "minus-2"),
        (-0.001, "plus-0"),
    ],
)
def test_heat_levels(value: float, expected: str) -> None:
    assert level(value, 0.1) == expected
