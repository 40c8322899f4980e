"""Every metric of a dual encoder from class scores, against sums by hand and the identities."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from edgevlm_runner.contract import Certainty
from hypothesis import given, settings
from hypothesis import strategies as st

from edgevlm_deploy.errors import DataError
from edgevlm_deploy.metrics import dual
from edgevlm_deploy.metrics.dual import scored
from edgevlm_deploy.metrics.dual.scored import OUTSIDE, Head, Scored
from edgevlm_deploy.metrics.dual.tables import DualMetrics
from edgevlm_deploy.recipe import Evaluation

EVALUATION = Evaluation(bootstrap_resamples=200)
CLASSES = ("cat", "dog", "cow", "pig", "hen", "fox")


def table() -> Scored:
    """60 scenes, each common, counter, corrupted and for the temperature; 40 pictures from outside."""
    rng = np.random.default_rng(0)
    scenes = np.arange(60)
    conditions = (("clean", "common"), ("clean", "counter"), ("fog/3", "common"), ("temperature", ""))
    labels = np.concatenate([*[scenes % 6] * 4, np.full(40, OUTSIDE)])
    strength = np.repeat([0.25, 0.15, 0.08, 0.2, 0.0], [60, 60, 60, 60, 40])
    reference = rng.normal(0.1, 0.08, (len(labels), 6))
    reference[np.arange(240), labels[:240]] += strength[:240]
    return Scored(
        classes=CLASSES,
        labels=labels,
        image_ids=tuple(f"scene {n}" for n in np.tile(scenes, 4)) + tuple(f"far {n}" for n in range(40)),
        conditions=tuple(c for c, _ in conditions for _ in scenes) + ("clean",) * 40,
        groups=tuple(f"{CLASSES[n % 6]} {split}" for _, split in conditions for n in scenes) + ("",) * 40,
        splits=tuple(split for _, split in conditions for _ in scenes) + ("",) * 40,
        reference=reference,
        artifact=reference + rng.normal(0, 0.05, reference.shape),
        reference_head=Head(20.0),
        artifact_head=Head(20.0),
    )


@pytest.fixture(scope="module")
def given_scores() -> Scored:
    return table()


@pytest.fixture(scope="module")
def metrics(given_scores: Scored) -> DualMetrics:
    return dual.compute(given_scores, EVALUATION)


def test_by_hand(given_scores: Scored, metrics: DualMetrics) -> None:
    right = given_scores.artifact.argmax(axis=1) == given_scores.labels
    common, counter, fog = right[:60].mean(), right[60:120].mean(), right[120:180].mean()
    estimates, answers = metrics.estimates, metrics.answers
    assert answers.estimates["accuracy"].value == pytest.approx(right[:120].mean())
    assert answers.estimates["relative_robustness"].value == pytest.approx(fog / right[:120].mean())
    assert estimates["relative_spurious_gap"].value == pytest.approx((common - counter) / common)
    groups = {row.group: row.comparison.artifact_accuracy.value for row in answers.groups}
    assert len(groups) == 12
    assert estimates["worst_group_accuracy"].value == min(one for one in groups.values() if one is not None)
    assert estimates["mcm_auroc"].n == 160
    assert metrics.logit_scale["artifact"].n == 60


def test_identities(metrics: DualMetrics) -> None:
    found = {name: one.value for name, one in metrics.answers.estimates.items()}
    gained = found["positive_flip_rate"] - found["negative_flip_rate"]  # type: ignore[operator]
    assert found["accuracy"] - found["reference_accuracy"] == pytest.approx(gained)  # type: ignore[operator]
    assert found["mean_accuracy_drop"] == pytest.approx(
        found["accuracy"] * (1 - found["relative_robustness"])  # type: ignore[operator]
    )


def test_every_value_lies_in_its_interval_and_every_change_is_the_difference(metrics: DualMetrics) -> None:
    estimates = metrics.estimates
    for name, one in estimates.items():
        assert one.value is not None and one.low is not None and one.high is not None, name
        assert one.low <= one.value + 1e-12 and one.value - 1e-12 <= one.high, name
        assert one.high > one.low, name
        for ending, sign in (("_drop", -1), ("_increase", 1)):
            if name.endswith(ending):
                base = name.removesuffix(ending)
                moved = estimates[base].value - estimates[f"reference_{base}"].value  # type: ignore[operator]
                assert one.value == pytest.approx(sign * moved)


def test_an_artifact_that_is_the_reference_moves_nothing_but_is_not_certain(given_scores: Scored) -> None:
    same = dual.compute(replace(given_scores, artifact=given_scores.reference), EVALUATION)
    for name, one in same.estimates.items():
        if name.endswith(("_drop", "_increase")):
            assert one.value == 0.0
            assert one.low is not None and one.high is not None
            assert one.low < 0 < one.high
    assert same.answers.estimates["divergence_rate"].value == 0
    assert all(row.relative_degradation == 0 for row in same.degradations)
    assert same.logit_scale["artifact"] == same.logit_scale["reference"]


def test_degradation_is_the_drop_over_the_reference(given_scores: Scored, metrics: DualMetrics) -> None:
    rows = {row.condition: row.relative_degradation for row in metrics.degradations}
    before, now = (
        (cosines.argmax(axis=1) == given_scores.labels)[120:180].mean()
        for cosines in (given_scores.reference, given_scores.artifact)
    )
    assert rows == {"clean": pytest.approx(rows["clean"]), "fog/3": pytest.approx((before - now) / before)}


@settings(max_examples=25)
@given(st.integers(0, 10**6))
def test_the_order_of_the_pictures_does_not_matter(seed: int) -> None:
    scores = table()
    order = np.random.default_rng(seed).permutation(len(scores.labels))
    shuffled = Scored(
        scores.classes,
        scores.labels[order],
        *(
            tuple(column[place] for place in order)
            for column in (scores.image_ids, scores.conditions, scores.groups, scores.splits)
        ),
        scores.reference[order],
        scores.artifact[order],
        scores.reference_head,
        scores.artifact_head,
    )
    few = Evaluation(bootstrap_resamples=100)
    once, again = dual.estimates(scores, few), dual.estimates(shuffled, few)
    for name, one in once.items():
        assert again[name].value == pytest.approx(one.value), name
        assert again[name].low == pytest.approx(one.low), name


def test_what_the_data_lack_is_undefined_and_says_why(given_scores: Scored) -> None:
    inside = given_scores.labels != OUTSIDE
    kept = int(inside.sum())
    plain = replace(
        given_scores,
        labels=given_scores.labels[:kept],
        image_ids=given_scores.image_ids[:kept],
        conditions=given_scores.conditions[:kept],
        groups=("",) * kept,
        splits=("",) * kept,
        reference=given_scores.reference[:kept],
        artifact=given_scores.artifact[:kept],
    )
    found = dual.estimates(plain, EVALUATION)
    assert found["mcm_auroc_drop"].note == "no pictures from outside the classes"
    assert found["worst_group_accuracy"].note == "no class has 10 pictures on one background"
    assert found["relative_spurious_gap"].value is None
    assert found["top_5_accuracy"].value is not None
    five = replace(
        plain,
        classes=CLASSES[:5],
        labels=np.minimum(plain.labels, 4),
        reference=plain.reference[:, :5],
        artifact=plain.artifact[:, :5],
    )
    top = dual.estimates(five, EVALUATION)["top_5_accuracy_drop"]
    assert (top.value, top.note) == (None, "there are no more than 5 classes")


def test_a_group_of_nine_is_no_group(given_scores: Scored) -> None:
    """The nine pictures that the artifact has all wrong count; as a group they would be the worst."""
    worst = np.flatnonzero(np.array(given_scores.groups) == "cat common")[:9]
    groups = np.array(given_scores.groups)
    groups[worst] = "nine"
    artifact = given_scores.artifact.copy()
    artifact[worst] = np.eye(6)[1]
    nine = replace(given_scores, groups=tuple(groups.tolist()), artifact=artifact)
    found = dual.estimates(nine, EVALUATION)["worst_group_accuracy"]
    assert found.value is not None and found.value > 0
    groups[np.flatnonzero(groups == "cat counter")[0]] = "nine"
    ten = dual.estimates(replace(nine, groups=tuple(groups.tolist())), EVALUATION)["worst_group_accuracy"]
    assert ten.value is not None and ten.value <= 0.1


def test_gates_see_one_table(given_scores: Scored, metrics: DualMetrics) -> None:
    """Class scores add their estimates, and the temperature that the logit scale amounts to."""
    one = dual.merged(metrics.answers, metrics)
    assert one.estimates["worst_group_accuracy"] == metrics.estimates["worst_group_accuracy"]
    assert one.estimates["mcm_auroc_drop"] == metrics.estimates["mcm_auroc_drop"]
    assert one.estimates["accuracy"] == metrics.answers.estimates["accuracy"]
    fitted = metrics.logit_scale["artifact"]
    assert one.scaling["artifact"].temperature == pytest.approx(20.0 / fitted.fitted)
    assert one.scaling["artifact"].ece_after == fitted.ece_after and not one.scaling["artifact"].shipped
    swapped = metrics.estimates["worst_group_accuracy"].model_copy(update={"value": 0.5})
    undefined = metrics.estimates["mcm_auroc"].model_copy(update={"value": None})
    answers = metrics.answers.model_copy(
        update={"estimates": {**metrics.answers.estimates, "worst_group_accuracy": swapped}}
    )
    lacking = {**metrics.estimates, "worst_group_accuracy": undefined}
    kept = dual.merged(answers, metrics.model_copy(update={"estimates": lacking}))
    assert kept.estimates["worst_group_accuracy"] == swapped


def test_the_logit_scale_that_ships_is_the_one_that_is_reported(given_scores: Scored) -> None:
    certainty = Certainty(temperature=0.8, fitted_on=99)
    found = dual.compute(given_scores, EVALUATION, certainty=certainty).logit_scale
    row, before = found["artifact"], found["reference"]
    assert (row.shipped, before.shipped, row.n) == (True, False, 99)
    assert row.fitted == pytest.approx(25.0) and row.scaling.temperature == pytest.approx(0.8)
    assert row.all_before is not None and row.all_after is not None, "fog is corrupted"


def test_siglip_confidences_are_sigmoids_and_have_no_logit_scale(given_scores: Scored) -> None:
    head = Head(60.0, -12.0)
    said = scored.answers(given_scores, given_scores.artifact, head)
    best = given_scores.artifact[:240].max(axis=1)
    assert np.exp([one.token_logprobs[0] for one in said]) == pytest.approx(1 / (1 + np.exp(12 - 60 * best)))
    found = dual.compute(replace(given_scores, reference_head=head, artifact_head=head), EVALUATION)
    assert found.logit_scale == {}
    assert set(found.answers.scaling) == {"reference", "artifact"}


def test_the_table_survives_json(given_scores: Scored, metrics: DualMetrics) -> None:
    rng = np.random.default_rng(1)
    features, texts = rng.normal(size=(30, 8)), rng.normal(size=(30, 8))
    relevant = np.eye(30, dtype=np.bool_)
    whole = metrics.model_copy(
        update={
            "retrieval": dual.retrieval_table(features @ texts.T, features @ texts.T, relevant, 0.95),
            "spectral": dual.spectral_table(features, features, texts, texts, np.arange(30)),
        }
    )
    assert DualMetrics.model_validate_json(whole.model_dump_json()) == whole


def test_retrieval_table() -> None:
    rng = np.random.default_rng(2)
    texts = rng.normal(size=(200, 16))
    similarity = (texts + rng.normal(0, 1.5, texts.shape)) @ texts.T
    worse = similarity + rng.normal(0, 4.0, similarity.shape)
    found = dual.retrieval_table(similarity, worse, np.eye(200, dtype=np.bool_), 0.95)
    for direction in (found.image_to_text, found.text_to_image):
        values = {name: one.value for name, one in direction.estimates.items()}
        assert values["recall_at_1"] < values["recall_at_5"] < values["recall_at_10"] < 1  # type: ignore[operator]
        assert values["recall_at_1_drop"] == pytest.approx(
            values["reference_recall_at_1"] - values["recall_at_1"]  # type: ignore[operator]
        )
        assert values["median_rank"] >= values["reference_median_rank"] >= 1  # type: ignore[operator]


def test_spectral_table() -> None:
    """Classes live in the two strongest directions; noise of one size drowns the weak ones."""
    rng = np.random.default_rng(3)
    labels = np.arange(120) % 4
    texts = np.eye(4, 10)
    features = 5 * texts[labels] + rng.normal(0, 0.05, (120, 10))
    wrong = features + rng.normal(0, 0.05, features.shape)
    found = dual.spectral_table(features, wrong, texts, texts, labels)
    assert [(band.first, band.last) for band in found.bands] == [(1, 1), (2, 4), (5, 10)]
    assert found.sqnr_db[0] > 35 > 5 > found.sqnr_db[-1]  # type: ignore[operator]
    assert sum(found.share) == pytest.approx(1.0)
    assert found.bands[2].reference_accuracy < 0.6 < found.bands[1].reference_accuracy
    same = dual.spectral_table(features, features, texts, texts, labels)
    assert set(same.sqnr_db) == {None}
    projected = dual.spectral_table(features, wrong, texts[:, :4], texts[:, :4], labels, (np.eye(10, 4),) * 2)
    assert projected.bands[0].reference_accuracy == found.bands[0].reference_accuracy


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"groups": ("",)}, r"expected 280 entries in every column, one per label; got \{'groups': 1\}"),
        ({"artifact": np.zeros((280, 5))}, r"280 pictures × 6 classes from the artifact, got \[280, 5\]"),
        ({"reference": np.full((280, 6), np.nan)}, "the reference's hold NaN"),
        ({"labels": np.full(280, 6)}, "labels must lie between -1 and 5"),
    ],
)
def test_columns_that_do_not_fit_are_refused(
    given_scores: Scored, change: dict[str, object], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        replace(given_scores, **change)  # type: ignore[arg-type]
