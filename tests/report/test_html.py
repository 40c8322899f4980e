"""The page as text: self-contained, escaped, bounded, complete."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from edgevlm_deploy.errors import DataError
from edgevlm_deploy.metrics.consistency import Flip
from edgevlm_deploy.metrics.tables import Metrics, Scaling
from edgevlm_deploy.recipe import Gate, GateName, ProbeForm
from edgevlm_deploy.report import gallery, html
from edgevlm_deploy.report.names import CATEGORIES
from edgevlm_deploy.report.quantity import Unit, estimated, quantity
from edgevlm_deploy.verdict import judge

VOID = {"meta", "link", "input", "br", "img"}


class Page(HTMLParser):
    """Tags with their attributes and the text of the page; proves that every tag is closed in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def rendered(case: Any, out: Path, **changes: Any) -> str:
    given = {**vars(case), **changes}
    html.render(**given, out=out)
    return out.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def text(small_case: Any, tmp_path_factory: pytest.TempPathFactory) -> str:
    return rendered(small_case, tmp_path_factory.mktemp("report") / "report.html")


def test_the_page_loads_nothing_and_runs_only_its_own_script(text: str) -> None:
    page = Page(text)
    for _, attributes in page.tags:
        for name, value in attributes.items():
            assert not name.startswith("on") and name != "style", name
            if name in ("src", "href"):
                assert value is not None and value.startswith(("#", "data:"))
    assert "http:" not in text and "https:" not in text and "@import" not in text
    (policy,) = [m["content"] for m in page.all("meta") if m.get("http-equiv") == "Content-Security-Policy"]
    assert policy is not None and policy.startswith("default-src 'none'") and "unsafe" not in policy
    for tag in ("style", "script"):
        (content,) = re.findall(rf"<{tag}>(.*?)</{tag}>", text, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in policy


def test_what_models_say_stays_text(text: str) -> None:
    page = Page(text)
    assert not page.all("img") and not page.all("b")
    assert any('</script><img src=x onerror="document.title=1">' in part for part in page.text)


def test_ids_are_unique_and_references_resolve(text: str) -> None:
    page = Page(text)
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    for _, attributes in page.tags:
        target = attributes.get("href") or ""
        labelled = (attributes.get("aria-labelledby") or "").split()
        assert not target.startswith("#") or target[1:] in ids
        assert set(labelled) <= set(ids)


def test_every_table_has_a_caption_and_scopes(text: str) -> None:
    page = Page(text)
    assert len(page.all("caption")) == len(page.all("table"))
    assert all(attributes.get("scope") for attributes in page.all("th"))
    assert [tag for tag, _ in page.tags if tag in ("h1", "h2")][:2] == ["h1", "h2"]


def stayed_wrong(case: Any) -> int:
    """Failures whose answer did not change."""
    return len({one.id for one in case.metrics.failures} - {one.id for one in case.metrics.flips})


def test_every_flip_failure_and_gate_is_on_the_page(small_case: Any, text: str) -> None:
    page = Page(text)
    shown = [a["data-direction"] for a in page.all("article")]
    assert len(shown) == len(small_case.metrics.flips) + stayed_wrong(small_case)
    directions = [*(direction.value for direction in gallery.DIRECTIONS), "stayed"]
    assert shown == sorted(shown, key=lambda one: directions.index(one or "")), "right → wrong first"
    for gate in small_case.verdict.gates:
        assert gate.reason in "".join(page.text)
    assert len(text) < 5_000_000


def test_what_abstaining_buys_is_drawn_and_told(small_case: Any, text: str, tmp_path: Path) -> None:
    assert text.count("coverage at 5% risk") == 4, "of reference and artifact, of MaxProb and Selector"
    for whose in ("reference", "artifact"):
        assert f'<polyline class="{whose}"' in text.split("Answering only when sure")[1]
        for one in small_case.metrics.selective[whose].points:
            assert one.threshold is None or f"{one.threshold:.4f}" in text
    for risk in ("0.5%", "1%", "5%", "10%", "20%"):
        assert text.count(f'<th scope="row">{risk}</th>') == 1 and text.count(f">C@{risk}<") == 1
    gain = small_case.metrics.selector[1].gains[0].gain
    assert f"a difference of {estimated(gain, Unit.POINTS)}" in text
    assert "By its own threshold the bundle answers" in text and "When the questions drift" in text
    before = small_case.metrics.model_copy(update={"selective": {}, "selector": (), "mixture": None})
    old = rendered(small_case, tmp_path / "old.html", metrics=before)
    assert "Answering only when sure" not in old and "MaxProb and Selector" not in old


def test_the_temperature_is_told_where_there_is_one(small_case: Any, text: str, tmp_path: Path) -> None:
    assert "Temperature of the artifact, shipped with it and fitted on 500 held-out answers: 1.400" in text
    without = small_case.metrics.model_copy(update={"scaling": {}})
    assert "Temperature of the" not in rendered(small_case, tmp_path / "without.html", metrics=without)
    scaling = {"artifact": Scaling(temperature=1.5, n=128, ece_before=0.09, ece_after=0.03)}
    metrics = small_case.metrics.model_copy(update={"scaling": scaling})
    told = rendered(small_case, tmp_path / "scaled.html", metrics=metrics)
    assert "fitted on 128 held-out answers: 1.500; with it ECE 9.00% → 3.00%" in told


def test_a_picture_is_embedded_once_and_as_the_models_saw_it(small_case: Any) -> None:
    built = _gallery(small_case)
    assert len({one.uri for one in built.thumbnails}) == len(built.thumbnails)
    by_id = {item.id: item for item in small_case.bundle.items}
    seen: dict[str, tuple[str, str]] = {}
    for entry in built.entries:
        item = by_id[entry.id]
        assert (entry.thumbnail is None) == (not item.image)
        if entry.thumbnail is not None:
            altered = item.corruption and item.corruption[0] != "perturbed:paraphrase"
            shown = (item.image_id, item.condition if altered else "clean")
            assert seen.setdefault(entry.thumbnail.id, shown) == shown
    assert len(seen) == len(built.thumbnails)


def test_failures_are_counted_by_kind_and_told_on_their_cards(small_case: Any, text: str) -> None:
    page = Page(text)
    table = text.split('<table class="kinds">')[1].split("</table>")[0]
    assert [name.split(",")[0] for name in re.findall(r'colspan="4"[^>]*>([^<]*)<', table)] == [
        "clean",
        "corrupted",
        "perturbed",
    ]
    for title, row in zip(CATEGORIES.values(), table.split('<th scope="row">')[1:], strict=False):
        assert row.startswith(title)
        counts = [int(one) for one in re.findall(r'class="number(?: first)?">([\d,]+)<', row)]
        category = next(key for key, name in CATEGORIES.items() if name == title)
        rows = [
            next(row for row in one.rows if row.category is category)
            for one in small_case.metrics.taxonomy.values()
        ]
        assert counts == [count for row in rows for count in (row.reference, row.artifact)]
    named = [a["data-category"] for a in page.all("article")]
    assert len([name for name in named if name]) == len(small_case.metrics.failures)
    assert {one.reason for one in small_case.metrics.failures} <= set(page.text)


@pytest.mark.parametrize(("limit", "value"), [("MAX_SHOWN", 5), ("MAX_PICTURE_BYTES", 12_000)])
def test_the_gallery_is_bounded(
    small_case: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: str, value: int
) -> None:
    monkeypatch.setattr(gallery, limit, value)
    built = _gallery(small_case)
    assert sum(built.total.values()) == len(small_case.metrics.flips)
    assert built.stayed_wrong == stayed_wrong(small_case) > 0
    assert 0 < len(built.entries) < len(small_case.metrics.flips)
    assert built.entries[0].direction is Flip.NEGATIVE
    text = rendered(small_case, tmp_path / "report.html")
    assert f"The page holds {len(built.entries)} of them" in text


@pytest.mark.parametrize(
    ("gate", "headline"),
    [
        (Gate(metric=GateName.ACCURACY, min=0.01), "Deployable"),
        (Gate(metric=GateName.ACCURACY, max=0.01), "Not deployable"),
        (Gate(metric=GateName.LATENCY_MS_P95, max=1.0), "Inconclusive"),
    ],
)
def test_the_banner_says_what_the_verdict_says(
    small_case: Any, tmp_path: Path, gate: Gate, headline: str
) -> None:
    verdict = judge([gate], small_case.metrics)
    text = rendered(small_case, tmp_path / "report.html", verdict=verdict)
    assert f'<section class="verdict {verdict.outcome.value}"' in text
    assert f'<h2 id="verdict">{headline}</h2>' in text
    assert ("was not judged: not measured on a device" in text) == (headline == "Inconclusive")


def test_perturbations_have_a_table_of_their_own(small_case: Any, tmp_path: Path) -> None:
    text = rendered(small_case, tmp_path / "report.html")
    assert "Perturbations: changes that should change no answer" in text
    for row in small_case.metrics.perturbations:
        title = row.perturbation.replace("perturbed:", "").replace("_", " ")
        assert f'<th scope="row">{title}</th>' in text
    assert len(small_case.metrics.perturbations) == 4
    found = small_case.metrics
    assert (
        f"{found.clean_items:,} clean, {found.corrupted_items:,} corrupted, {found.perturbed_items:,} p"
        in text
    )


def test_probes_have_a_section_of_their_own(
    small_case: Any, make_case: Callable[..., Any], tmp_path: Path
) -> None:
    found, text = small_case.metrics, rendered(small_case, tmp_path / "report.html")
    assert f"{found.probed_items:,} negated and {found.background_items:,} background items on" in text
    section = text.split('<section id="probes"')[1].split("</section>")[0]
    assert [row.form for row in found.negation] == [form.value for form in ProbeForm]
    for row in found.negation:
        assert f"{row.comparison.n}<small>of {row.asked}</small>" in section
        assert quantity(row.artifact_lenient.value, Unit.SHARE) in section
    for name in (
        "negation_success",
        "negation_divergence_rate",
        "reference_negation_success",
        "prior_bias",
        "relative_spurious_gap",
    ):
        assert quantity(found.estimates[name].value, Unit.SHARE) in section
    assert "true yn (control)" in section and "20 of another distribution" in section
    assert "<dt>not to name</dt>" in text and 'data-change="negated:false_yn"' in text
    without = make_case(pictures=12, corruptions=())
    assert 'id="probes"' not in rendered(without, tmp_path / "without.html")
    older = without.metrics.model_dump()
    for name in ("negation", "blind", "backgrounds", "probed_items", "background_items", "foreign_items"):
        del older[name]
    older["estimates"] = {name: one for name, one in older["estimates"].items() if "negation" not in name}
    assert rendered(without, tmp_path / "older.html", metrics=Metrics.model_validate(older))


def test_a_recipe_without_corruptions(make_case: Callable[..., Any], tmp_path: Path) -> None:
    text = rendered(make_case(pictures=12, corruptions=()), tmp_path / "report.html")
    Page(text)
    assert "The recipe asks for no corruptions." in text and 'id="heat-drop"' not in text


def test_an_artifact_that_answers_like_the_reference(make_case: Callable[..., Any], tmp_path: Path) -> None:
    case = make_case(pictures=12, corruptions=())
    unchanged = case.metrics.model_copy(update={"flips": (), "failures": (), "taxonomy": {}})
    text = rendered(case, tmp_path / "report.html", metrics=unchanged)
    assert "The artifact gave the reference's answer to every item, and all of them are right." in text
    assert not Page(text).all("article") and "Kinds of failure" not in text


def test_evidence_of_another_bundle_is_refused(small_case: Any, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="validate this bundle first"):
        rendered(small_case, tmp_path / "report.html", evidence={**small_case.evidence, "bundle": "00" * 32})
    assert not list(tmp_path.iterdir())


def _gallery(case: Any) -> gallery.Gallery:
    from edgevlm_runner.contract import Answer, read_jsonl

    reference = read_jsonl(case.bundle.path("reference.jsonl"), Answer)
    return gallery.build(case.bundle, reference, case.answers, case.metrics)


def test_throttling_and_the_boards_readings_are_shown(small_case: Any, tmp_path: Path) -> None:
    board = {"source": "tegrastats", "power_w_mean": 13.907, "throttled": True, "throttled_by": ["oc3 (+2)"]}
    given = {
        **vars(small_case),
        "evidence": {**small_case.evidence, "board": board, "device_bytes": 10**9, "build_seconds": 312.4},
    }
    html.render(**given, out=tmp_path / "hot.html")
    text = (tmp_path / "hot.html").read_text()
    assert "throttled while it was measured (oc3 (+2))" in text
    assert "312 s" in text
    assert "board.power_w_mean" in text and "13.907" in text and "memory on the accelerator" in text
