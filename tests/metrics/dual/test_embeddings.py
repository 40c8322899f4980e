"""Retrieval and damping from the embeddings that a run leaves behind."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
from edgevlm_runner.contract import Item
from edgevlm_runner.features import Features
from small_dual import SPEC as SMALL

from edgevlm_deploy.metrics import dual
from edgevlm_deploy.metrics.dual.scored import Head, Scored
from edgevlm_deploy.metrics.dual.tables import DualMetrics
from edgevlm_deploy.recipe import OF_CLASS_SCORES, Evaluation

CLASSES = ("cat", "dog", "cow", "pig", "hen", "fox")

SPEC = dataclasses.replace(
    SMALL, text=dataclasses.replace(SMALL.text, classes=CLASSES), projection_size=8, feature_items=12
)
ITEMS = tuple(
    # Pictures 6 and 7 show the same as 0 and 1, and say so; the last has no caption.
    Item(f"q{n}", f"q{n}", "", "clean", f"{n}.png", f"{n}", "", (CLASSES[n % 6],), caption=caption)
    for n, caption in enumerate((*(f"caption {n % 6}" for n in range(8)), "8", "9", "10", ""))
)


@pytest.fixture(scope="module")
def scores() -> DualMetrics:
    """Of twelve pictures: embeddings add to what class scores give."""
    cosines = np.random.default_rng(0).normal(size=(12, 6))
    return dual.compute(
        Scored(
            classes=CLASSES,
            labels=np.arange(12) % 6,
            image_ids=tuple(f"{n}" for n in range(12)),
            conditions=("clean",) * 12,
            groups=("",) * 12,
            splits=("",) * 12,
            reference=cosines,
            artifact=cosines,
            reference_head=Head(20.0),
            artifact_head=Head(20.0),
        ),
        Evaluation(bootstrap_resamples=100),
    )


def embeddings(seed: int) -> Features:
    rng = np.random.default_rng(seed)
    captions = rng.normal(size=(9, 8))
    own = np.concatenate([captions[:6], captions[:2], captions[6:9], rng.normal(size=(1, 8))])
    classes = rng.normal(size=(6, 8))
    return Features(*(one.astype(np.float32) for one in (own, captions, classes)))


def changed(of: Features, **arrays: Any) -> Features:
    return dataclasses.replace(of, **arrays)


def test_pictures_find_their_captions_until_two_are_swapped(scores: DualMetrics) -> None:
    reference = embeddings(0)
    swapped = reference.images[[8, 9, 2, 3, 4, 5, 6, 7, 0, 1, 10, 11]]
    found = dual.added(scores, SPEC, ITEMS, reference, changed(reference, images=swapped), 0.95)
    values = {name: one.value for name, one in found.estimates.items()}
    for way in ("image_to_text", "text_to_image"):
        assert values[f"reference_{way}_recall_at_1"] == 1.0 and values[f"reference_{way}_median_rank"] == 1
    # Captions 0 and 1 find pictures 6 and 7 with the same score as 8 and 9, and wrong ones go first.
    assert values["image_to_text_recall_at_1_drop"] == pytest.approx(4 / 11)
    assert values["text_to_image_recall_at_1_drop"] == pytest.approx(4 / 9)
    assert values["text_to_image_recall_at_5_drop"] == pytest.approx(2 / 9)
    assert found.estimates["image_to_text_recall_at_1_drop"].n == 11
    assert {gate.value for gate in OF_CLASS_SCORES} <= set(found.estimates)
    assert DualMetrics.model_validate_json(found.model_dump_json()) == found


def test_the_spectrum_is_that_of_the_kept_pictures(scores: DualMetrics) -> None:
    reference = embeddings(1)
    found = dual.added(
        scores, SPEC, ITEMS, reference, changed(reference, images=1.1 * reference.images), 0.95
    )
    assert found.spectral is not None and len(found.spectral.sqnr_db) == 8
    assert found.spectral.sqnr_db == pytest.approx([20.0] * 8, abs=1e-3)
    for band in found.spectral.bands:
        assert band.reference_accuracy == band.artifact_accuracy


def test_without_captions_or_embeddings_retrieval_is_undefined_and_says_why(scores: DualMetrics) -> None:
    reference = embeddings(2)
    without = [dataclasses.replace(item, caption="") for item in ITEMS]
    silent = changed(reference, captions=np.zeros((0, 8), np.float32))
    found = dual.added(scores, SPEC, without, silent, silent, 0.95)
    assert found.retrieval is None and found.spectral is not None
    assert "has a caption" in found.estimates["image_to_text_recall_at_1_drop"].note
    none = dual.added(scores, dataclasses.replace(SPEC, feature_items=0), ITEMS, None, None, 0.95)
    assert none.retrieval is None and none.spectral is None
    assert "evaluation.feature_items" in none.estimates["text_to_image_recall_at_1_drop"].note
    assert {gate.value for gate in OF_CLASS_SCORES} <= set(none.estimates)
