"""Any JSON mapping as rows."""

from __future__ import annotations

from edgevlm_deploy.report.inventory import facts


def test_nested_keys_become_dotted_rows() -> None:
    found = facts(
        {
            "id": "demo",
            "revision": "",
            "sizes": {"image": {"side": 96}},
            "flag": True,
            "rate": 0.123456789,
            "none": None,
        }
    )
    assert found.rows == (
        ("id", "demo"),
        ("sizes.image.side", "96"),
        ("flag", "yes"),
        ("rate", "0.12346"),
        ("none", "none"),
    )
    assert not found.grid


def test_mappings_with_the_same_keys_become_a_grid() -> None:
    found = facts({"encoder": {"error": 0.5, "n": 1000}, "decoder": {"error": 0.25, "n": 8}, "seed": 3})
    assert found.columns == ("error", "n")
    assert found.grid == (("encoder", ("0.5", "1,000")), ("decoder", ("0.25", "8")))
    assert found.rows == (("seed", "3"),)


def test_long_lists_are_counted() -> None:
    assert facts({"ids": list(range(2000)), "few": [1, 2], "no": [], "deep": [{}]}).rows == (
        ("ids", "2,000 entries"),
        ("few", "1, 2"),
        ("no", "none"),
        ("deep", "1 entries"),
    )
