"""The columns of `benchmarks.precisions`, and what it measures of a compiled CLIP beside its answers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from benchmarks import embeddings, precisions
from edgevlm_deploy.metrics import Metrics, dual

pytestmark = pytest.mark.filterwarnings("error")


@pytest.fixture(autouse=True)
def build(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precisions, "BUILD", tmp_path)


@pytest.mark.parametrize(("model", "refused"), [("demo", set()), ("demo-clip", {"W4 MBQ"})])
def test_only_what_has_no_meaning_is_refused(model: str, refused: set[str]) -> None:
    subject = precisions.SUBJECTS[model]
    why = {
        one: precisions.refusal(model, precisions.written(model, one, subject.recipe))
        for one in subject.precisions
    }
    assert {name for name, sentence in why.items() if sentence} == refused
    assert all("an encoder sees one of the two" in why[name] for name in refused)


def test_columns_are_those_of_the_model() -> None:
    found = precisions.arguments(["--model", "demo-clip"])
    assert found.precisions == list(precisions.CLIP_PRECISIONS)
    assert found.recipe.name == "precisions_clip.yaml"
    with pytest.raises(SystemExit):
        precisions.arguments(["--precisions", "W5"])


def test_the_verdict_is_that_on_answers() -> None:
    def outcomes(*gates: tuple[str, str]) -> dict[str, str]:
        verdict = {"gates": [{"metric": name, "outcome": one} for name, one in gates], "outcome": "fail"}
        metrics = Metrics.model_construct()
        return precisions.Judged("W4 RTN", Path(), metrics, verdict, 0).outcomes

    slow = ("latency_ms_p95", "fail")
    assert outcomes(("accuracy_drop", "pass"), slow) == {"accuracy_drop": "pass", "verdict": "pass"}
    assert outcomes(("accuracy_drop", "inconclusive"), slow)["verdict"] == "inconclusive"
    assert outcomes(("accuracy_drop", "fail"), ("ece_increase", "inconclusive"))["verdict"] == "fail"


def test_rows_of_retrieval_and_spectrum() -> None:
    rng = np.random.default_rng(0)
    features, projection, texts = (rng.normal(size=size) for size in ((40, 8), (8, 4), (5, 4)))
    embedded = embeddings.Embedded(features, features @ projection, texts, features[:6], texts)
    np.testing.assert_allclose(embedded.projection, projection)
    labels = rng.integers(5, size=40)
    noisy = features + 0.1 * rng.normal(size=features.shape)
    spectra = {
        name: dual.spectral_table(features, now, texts, texts, labels, (projection, projection))
        for name, now in (("same", features), ("noisy", noisy))
    }
    rows = list(embeddings._bands(spectra))
    assert [row[0] for row in rows[::2]] == ["1: SQNR, dB", "2–4: SQNR, dB", "5–8: SQNR, dB"]
    assert all(row[1] == "∞" and 10 < float(row[2]) < 35 for row in rows[::2])
    similarity = rng.normal(size=(30, 30))
    relevant = np.eye(30, dtype=bool)
    best = similarity + 9 * np.eye(30)
    lost = {
        "same": dual.retrieval_table(best, best, relevant, 0.95),
        "lost": dual.retrieval_table(best, similarity, relevant, 0.95),
    }
    first = next(iter(embeddings._retrieval_rows(lost)))
    assert first[0] == "picture → text, R@1, %" and first[1].startswith("100.00 [") and "**" in first[2]
