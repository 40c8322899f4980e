"""The page and the text of a search, from its JSON alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from edgevlm_deploy.report import frontier

GATE = {"metric": "corrupted_divergence_rate", "value": 0.02, "limit": 0.03}


def trial(number: int, size: int, bound: float, origin: str = "sampled") -> dict[str, Any]:
    return {
        "number": number,
        "origin": origin,
        "algorithm": "gptq",
        "schemes": ["w4a16_g64", "w8a8", "w8a8"],
        "image_label": "",
        "judged": {
            "weight_bytes": size,
            "memory_bytes": size,
            "first_token_macs": 10**8,
            "latency_ms": None,
            "accuracy": 0.99,
            "negative_flip_rate": 0.001,
            "relative_robustness": 0.8,
            "corrupted_divergence_rate": bound - 0.01,
            "mean_kl": 0.001,
            "gates": [{**GATE, "bound": bound, "excess": (bound - 0.03) / 0.03}],
        },
    }


def seen(label: str, is_inside: bool) -> dict[str, Any]:
    return {
        "label": label,
        "prompt_tokens": 38,
        "accuracy": 0.9,
        "divergence_rate": 0.1,
        "corrupted_divergence_rate": 0.2,
        "negative_flip_rate": 0.01,
        "gates": [{**GATE, "is_inside": is_inside}],
    }


def proof(number: int, sealed: bool) -> dict[str, Any]:
    return {
        "trial": number,
        "recipe": f"default-{number}.yaml",
        "bundle": "b.edgevlm",
        "outcome": "pass" if sealed else "inconclusive",
        "sealed": sealed,
        "holds": sealed,
        "bundle_bytes": 3_100_000,
        "latency_ms_p95": 8.0,
        "peak_rss_bytes": None,
        "estimates": {
            "corrupted_divergence_rate": 0.021,
            "negative_flip_rate": 0.0,
            "relative_robustness": 0.82,
        },
        "open_gates": [] if sealed else ["corrupted_divergence_rate"],
    }


@pytest.fixture
def found() -> dict[str, Any]:
    sensitivity = {
        "block": "lm_head",
        "scheme": "w4a16_g128",
        "kl": 0.001,
        "shift": 0.004,
        "divergence_rate": 0.0,
        "corrupted_divergence_rate": 0.01,
        "negative_flip_rate": 0.0,
        "confidence_change": -0.001,
        "ece_increase": None,
        "weight_error": {"w4a16_g128": 0.015},
    }
    return {
        "model": "demo",
        "target": "host-cpu",
        "recipe": "default",
        "emulated": False,
        "items": 1100,
        "share": 0.25,
        "blocks": ["a", "b", "<c>"],
        "seen": [seen("", True), seen("tome 0.5", False)],
        "absent": ["tiles: a picture is one tile already"],
        "sensitivities": [sensitivity, {**sensitivity, "block": "<script>", "kl": 0.0}],
        "trials": [
            trial(0, 4_000_000, 0.01, "uniform"),
            trial(1, 3_000_000, 0.02),
            trial(2, 2_000_000, 0.05),
        ],
        "front": [1, 0],
        "proofs": [proof(0, True), proof(1, True)],
        "best_uniform": 0,
        "winner": 1,
        "deciding_gate": "corrupted_divergence_rate",
        "passes": [0, 1],
    }


def test_the_page_shows_every_candidate(found: dict[str, Any], tmp_path: Path) -> None:
    frontier.render(found, tmp_path / "front.html")
    page = (tmp_path / "front.html").read_text()
    assert page.count('class="mark') == 3 and page.count('class="winner"') == 1
    assert "25.0% less than the best uniform precision" in page
    assert "<script" not in page and "&lt;script&gt;" in page
    assert "://" not in page


def test_points_lie_where_their_numbers_say(found: dict[str, Any]) -> None:
    drawn = frontier.scatter(found)
    assert drawn is not None and drawn.limit is not None
    uniform, best, refused = drawn.points
    assert uniform.x > best.x > refused.x
    assert uniform.y > best.y > drawn.limit > refused.y, "down is better"
    assert (uniform.label, best.label) == ("w8a8 gptq", "")
    assert best.wins and best.on_front and not refused.passes


def test_the_text_says_what_was_saved(found: dict[str, Any]) -> None:
    said = frontier.text(found, Path("build/search-demo"))
    assert said.startswith("The smallest that passes takes 3 MB of weights, 25.0% less than")
    assert "not searched: tiles: a picture is one tile already." in said
    assert "build/search-demo/winner.yaml" in said and "sealed" in said


@pytest.mark.parametrize(
    ("winner", "best_uniform", "expected"),
    [
        (
            None,
            None,
            "3 candidates, 2 predicted to pass. What refused most: Divergence rate under corruption.",
        ),
        (1, None, "no uniform precision does"),
        (0, 0, "Nothing smaller than the best uniform precision passes"),
    ],
)
def test_every_outcome_has_its_sentence(
    found: dict[str, Any], winner: int | None, best_uniform: int | None, expected: str
) -> None:
    assert expected in frontier.headline({**found, "winner": winner, "best_uniform": best_uniform})


def test_evidence_without_the_device_is_no_seal(found: dict[str, Any], tmp_path: Path) -> None:
    emulated = {**found, "target": "orin", "emulated": True}
    assert frontier.headline(emulated).startswith(
        "The smallest that keeps every gate that can be judged here"
    )
    frontier.render(emulated, tmp_path / "front.html")
    page = (tmp_path / "front.html").read_text()
    assert "ONNX Runtime stood in for orin" in page and "it is not sealed" in page
    assert "compiled and passed" not in page and 'class="verdict pass"' not in page


def test_fewer_tokens_are_shown(found: dict[str, Any], tmp_path: Path) -> None:
    found["trials"][1]["image_label"] = "tome 0.5"
    found["trials"][1]["judged"]["memory_bytes"] = 3_200_000
    assert "3 MB of weights and 200 kB of cache, 20.0% less" in frontier.headline(found)
    frontier.render(found, tmp_path / "front.html")
    page = (tmp_path / "front.html").read_text()
    assert page.count('<path class="mark') == 1 and "no: corrupted_divergence_rate" in page


def test_gates_that_refuse_the_model_itself_are_named(found: dict[str, Any], tmp_path: Path) -> None:
    ended = {
        **found,
        **dict.fromkeys(("trials", "front", "proofs", "sensitivities", "passes"), ()),
        "seen": [seen("", False)],
        "winner": None,
        "deciding_gate": None,
    }
    assert "Divergence rate under corruption is 2.00%, limit 3.00%" in frontier.headline(ended)
    frontier.render(ended, tmp_path / "front.html")
    page = (tmp_path / "front.html").read_text()
    assert "No precision can pass" in page and "<table" not in page


def test_without_a_predictable_gate_there_is_no_plot(found: dict[str, Any], tmp_path: Path) -> None:
    unknown = {**found, "deciding_gate": None}
    assert frontier.scatter(unknown) is None
    frontier.render(unknown, tmp_path / "front.html")
    assert "<circle" not in (tmp_path / "front.html").read_text()
