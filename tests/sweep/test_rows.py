"""Rows in Parquet, and the table and page that are made of them."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from edgevlm_deploy.errors import DataError, MissingExtraError
from edgevlm_deploy.sweep import page, rows, table
from edgevlm_deploy.sweep.rows import Results

pyarrow = pytest.importorskip("pyarrow", reason="pyarrow is not installed (extra `cluster`)")


def test_one_row_per_condition_and_one_for_the_clean_items(results: Results) -> None:
    for (model, _), one in rows.by_cell(results.rows).items():
        assert model == "demo"
        assert [(row.corruption, row.severity) for row in one] == [
            ("clean", 0),
            ("gaussian_noise", 1),
            ("gaussian_noise", 3),
            ("fog", 1),
            ("fog", 3),
        ]
        assert [row.items for row in one] == [40, 12, 12, 12, 12]
        clean, corrupted = one[0], one[1:]
        # The definitions of metrics: RS = mean A(c,s) / A0, mean drop = A0 (1 − RS).
        mean = sum(row.accuracy or 0.0 for row in corrupted) / len(corrupted)
        assert clean.relative_robustness == pytest.approx(mean / (clean.accuracy or 0.0))
        assert clean.mean_accuracy_drop == pytest.approx((clean.accuracy or 0.0) - mean)
        for row in one:
            assert row.accuracy_drop == pytest.approx((row.reference_accuracy or 0.0) - (row.accuracy or 0.0))
            assert row.accuracy_low is not None and row.accuracy_low <= (row.accuracy or 0.0)


def test_parquet_round_trip(results: Results, tmp_path: Path) -> None:
    path = tmp_path / "grid.parquet"
    rows.write(results, path)
    assert rows.read(path) == results
    schema = pyarrow.parquet.read_schema(path)
    assert str(schema.field("severity").type) == "int64" and str(schema.field("alone").type) == "bool"
    assert [one.name for one in tmp_path.iterdir()] == ["grid.parquet"]
    rows.write(Results("none", (), {}), path)
    assert rows.read(path) == Results("none", (), {})


def test_a_file_that_is_something_else(tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    path.write_bytes(b"PAR1 no")
    with pytest.raises(DataError, match="not the results of a sweep"):
        rows.read(path)
    pyarrow.parquet.write_table(pyarrow.table({"a": [1]}), path)
    with pytest.raises(DataError, match="not the results of a sweep"):
        rows.read(path)


def test_without_pyarrow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(MissingExtraError, match=r"edgevlm\[cluster\]"):
        rows.require_parquet()


def test_the_table_begins_with_the_reference(results: Results) -> None:
    reference, int8, int3 = table.summary(results)
    assert (reference.recipe, int8.recipe, int3.recipe) == (table.REFERENCE, "int8", "int3")
    clean = results.rows[0]
    assert reference.clean_accuracy == clean.reference_accuracy
    flipped = sum((row.negative_flip_rate or 0.0) * row.items for row in results.rows[:5])
    assert int8.negative_flip_rate == pytest.approx(flipped / 88)
    assert int8.cells()[6:] == ("4 MB", "5.00 ms", "pass")
    assert len(int8.cells()) == len(table.HEAD)


def test_the_page(results: Results, tmp_path: Path) -> None:
    out = tmp_path / "grid.html"
    page.render(results, out)
    text = out.read_text()
    assert "<script" not in text and "http" not in text.replace("http-equiv", "")
    assert "1 cell failed" in text and "QuantizationError &lt;b&gt;no&lt;/b&gt; such scheme" in text
    assert "demo: recipes side by side" in text and "demo, int3" in text
    assert text.count("<table") == text.count("<caption>") == 1 + 3 + 1
    fog = next(
        row for row in results.rows if (row.recipe, row.corruption, row.severity) == ("int3", "fog", 3)
    )
    assert f">{100 * (fog.accuracy or 0.0):.1f}</span>" in text.split("<h3>demo, int3</h3>")[1]


def test_heat_of_recipes_is_the_mean_over_severities(results: Results) -> None:
    side_by_side = page.heat_tables(results.rows)[0]
    assert side_by_side.columns == ("int8", "int3") and side_by_side.corruptions == ("gaussian_noise", "fog")
    fog = [row.accuracy or 0.0 for row in results.rows if (row.recipe, row.corruption) == ("int8", "fog")]
    cell = side_by_side.cells["accuracy"][1][0]
    assert cell is not None and cell.sure and cell.text == f"{100 * sum(fog) / len(fog):.1f}"


def test_a_sweep_whose_cells_all_failed_has_a_page(tmp_path: Path) -> None:
    page.render(Results("none", (), {"a × b": "why", "a × c": "why"}), tmp_path / "page.html")
    assert "2 cells failed" in (tmp_path / "page.html").read_text()
    assert "No cell was finished." in (tmp_path / "page.html").read_text()


def test_a_drop_is_sure_when_some_interval_excludes_zero(results: Results) -> None:
    tables = page.heat_tables(results.rows)
    for recipe, one in zip(("int8", "int3"), tables[1:], strict=True):
        corrupted = [row for row in results.rows if row.recipe == recipe and row.severity]
        sure = [cell.sure for row in one.cells["drop"] for cell in row if cell is not None]
        assert sure == [
            (row.accuracy_drop_low or 0.0) > 0 or (row.accuracy_drop_high or 0.0) < 0 for row in corrupted
        ]
