"""All metrics of one artifact, on tables small enough to count by hand and on large ones."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable

import numpy as np
import pytest
from edgevlm_runner.contract import Answer, Item
from hypothesis import given, settings
from hypothesis import strategies as st

from edgevlm_deploy import metrics, suites
from edgevlm_deploy.errors import DataError
from edgevlm_deploy.metrics import Estimate, Metrics
from edgevlm_deploy.metrics.consistency import Flip
from edgevlm_deploy.recipe import OF_CLASS_SCORES, Corruption, Evaluation, GateName, Perturbation

QUICK = Evaluation(bootstrap_resamples=200)
DEVICE_GATES = {
    GateName.TIME_TO_FIRST_TOKEN_MS_P95,
    GateName.LATENCY_MS_P95,
    GateName.PEAK_RSS_BYTES,
    GateName.BUNDLE_BYTES,
}


def question(number: int, *, image: int, group: str = "colour") -> Item:
    return Item(
        id=f"q{number}",
        base_id=f"q{number}",
        group=group,
        condition="clean",
        image=f"images/{image}.png",
        image_id=f"picture{image}",
        prompt="What colour is it?",
        answers=("blue",),
    )


def answer(item: Item, text: str, logprob: float = -0.1) -> Answer:
    return Answer(item.id, text, tuple(ord(letter) for letter in text), (logprob, logprob), True)


def answers(items: tuple[Item, ...], right: Callable[[Item], bool]) -> list[Answer]:
    return [answer(item, "blue" if right(item) else "red") for item in items]


def table(questions: int, pictures: int, per_condition: int) -> tuple[Item, ...]:
    items = [question(n, image=n % pictures, group=("colour", "shape")[n % 2]) for n in range(questions)]
    evaluation = Evaluation(
        clean_items=questions,
        corruptions=(Corruption.FOG, Corruption.CONTRAST),
        severities=(1, 3),
        items_per_condition=per_condition,
    )
    return suites.build(items, evaluation)


def test_counted_by_hand() -> None:
    items = tuple(question(n, image=n) for n in range(10))
    reference = [answer(item, "blue" if n < 8 else "red") for n, item in enumerate(items)]
    # One negative flip (q0), one positive (q9), one wrong → differently wrong (q8).
    said = ["red", *["Blue."] * 7, "green", "blue"]
    artifact = [answer(item, text) for item, text in zip(items, said, strict=True)]
    result = metrics.compute(items, reference, artifact, QUICK)
    values = {name: estimate.value for name, estimate in result.estimates.items()}
    assert values["reference_accuracy"] == 0.8
    assert values["accuracy"] == 0.8
    assert values["accuracy_drop"] == pytest.approx(0.0)
    assert values["divergence_rate"] == pytest.approx(0.3)
    assert values["negative_flip_rate"] == values["positive_flip_rate"] == pytest.approx(0.1)
    assert result.mcnemar_p == 1.0
    assert [(flip.id, flip.flip) for flip in result.flips] == [
        ("q0", Flip.NEGATIVE),
        ("q8", Flip.NEUTRAL),
        ("q9", Flip.POSITIVE),
    ]
    assert result.flips[1].first_divergence == 0
    assert values["ece"] == pytest.approx(abs(0.8 - np.exp(-0.1)))
    assert result.estimates["divergence_rate"].method == "wilson"


def test_every_answer_gate_has_its_estimate() -> None:
    items = table(20, 20, 5)
    said = answers(items, lambda item: True)
    result = metrics.compute(items, said, said, QUICK)
    assert {gate.value for gate in set(GateName) - DEVICE_GATES - OF_CLASS_SCORES} <= set(result.estimates)


@settings(max_examples=25)
@given(st.integers(0, 2**32 - 1), st.integers(1, 12))
def test_identities(seed: int, pictures: int) -> None:
    rng = np.random.default_rng(seed)
    items = table(24, pictures, 4)
    reference = answers(items, lambda item: bool(rng.random() < 0.8))
    artifact = answers(items, lambda item: bool(rng.random() < 0.6))
    result = metrics.compute(items, reference, artifact, QUICK)
    values = {name: estimate.value for name, estimate in result.estimates.items()}
    assert values["accuracy"] - values["reference_accuracy"] == pytest.approx(
        values["positive_flip_rate"] - values["negative_flip_rate"]
    )
    assert values["accuracy_drop"] == pytest.approx(values["reference_accuracy"] - values["accuracy"])
    for change, metric in (
        ("ece_increase", "ece"),
        ("adaptive_ece_increase", "adaptive_ece"),
        ("brier_increase", "brier"),
    ):
        assert values[change] == pytest.approx(values[metric] - values[f"reference_{metric}"])
    assert values["coverage_at_risk_5_drop"] == pytest.approx(
        values["reference_coverage_at_risk_5"] - values["coverage_at_risk_5"]
    )
    if values["relative_robustness"] is not None:
        assert values["mean_accuracy_drop"] == pytest.approx(
            values["accuracy"] * (1 - values["relative_robustness"])
        )
    for name, estimate in result.estimates.items():
        if estimate.low is not None and estimate.high is not None:
            assert estimate.low - 1e-9 <= estimate.value <= estimate.high + 1e-9, name
    assert sum(row.comparison.n for row in result.conditions) == result.corrupted_items
    assert sum(row.comparison.n for row in result.corruptions) == result.corrupted_items
    assert sum(row.comparison.n for row in result.groups) == result.clean_items
    assert Metrics.model_validate_json(result.model_dump_json()) == result


def test_robustness_gap_is_paired_with_the_clean_side() -> None:
    """Corruption costs the reference nothing and the artifact every fog item: gap 1/2, mCE undefined."""
    items = table(40, 40, 10)
    reference = answers(items, lambda item: True)
    artifact = answers(items, lambda item: not item.condition.startswith("fog"))
    result = metrics.compute(items, reference, artifact, QUICK)
    assert result.estimates["robustness_gap"].value == pytest.approx(0.5)
    assert result.estimates["corrupted_accuracy"].value == pytest.approx(0.5)
    assert result.estimates["relative_robustness"].value == pytest.approx(0.5)
    assert result.estimates["mce"].value is None
    assert result.estimates["perturbed_divergence_rate"].note == "no perturbed items"
    assert "loses nothing" in result.estimates["mce"].note
    gaps = {row.condition: row.robustness_gap.value for row in result.conditions}
    assert gaps == {"fog/1": 1.0, "fog/3": 1.0, "contrast/1": 0.0, "contrast/3": 0.0}
    assert {row.corruption: row.corruption_error for row in result.corruptions} == {
        "fog": None,
        "contrast": None,
    }


def test_corruption_errors_have_the_reference_as_base() -> None:
    items = table(80, 80, 20)
    corrupted = [item.id for item in items if item.corruption]
    half, quarter = set(corrupted[::2]), set(corrupted[::4])
    reference = answers(items, lambda item: item.id not in quarter)
    artifact = answers(items, lambda item: item.id not in half)
    result = metrics.compute(items, reference, artifact, QUICK)
    assert result.estimates["mce"].value == pytest.approx(2.0)
    assert result.estimates["relative_mce"].value == pytest.approx(2.0)


def test_no_events_do_not_make_a_zero_width_interval() -> None:
    items = table(200, 50, 20)
    said = answers(items, lambda item: True)
    result = metrics.compute(items, said, said, QUICK)
    for name in ("accuracy", "accuracy_drop", "divergence_rate", "negative_flip_rate", "robustness_gap"):
        estimate = result.estimates[name]
        assert estimate.low is not None and estimate.high is not None
        assert estimate.high - estimate.low > 0.005, name
    robust = result.estimates["relative_robustness"]
    assert robust.low is not None and robust.low < 0.99


def test_few_pictures_count_as_few_items() -> None:
    def accuracy(pictures: int) -> Estimate:
        items = table(60, pictures, 5)
        said = answers(items, lambda item: True)
        return metrics.compute(items, said, said, QUICK).estimates["accuracy"]

    many, few = accuracy(60), accuracy(2)
    assert many.low is not None and few.low is not None and few.low < many.low
    assert "fewer than" in few.note


def test_without_corrupted_items_their_metrics_are_undefined() -> None:
    items = tuple(question(n, image=n) for n in range(12))
    said = answers(items, lambda item: True)
    result = metrics.compute(items, said, said, QUICK)
    assert result.estimates["relative_robustness"].note == "no corrupted items"
    assert result.estimates["mce"].value is None
    assert result.estimates["perturbed_divergence_rate"].note == "no perturbed items"
    assert result.conditions == ()


def test_perturbed_items_are_neither_clean_nor_corrupted() -> None:
    items = suites.build(
        [question(n, image=n) for n in range(40)],
        Evaluation(
            corruptions=(Corruption.FOG,),
            severities=(1, 2),
            items_per_condition=10,
            perturbations=(Perturbation.SMALL_SHIFT, Perturbation.PARAPHRASE),
        ),
    )
    said = answers(items, lambda item: True)
    flipped = {item.id for item in items if item.condition == "perturbed:paraphrase/2"}
    now = answers(items, lambda item: item.id not in flipped)
    result = metrics.compute(items, said, now, QUICK)
    assert (result.clean_items, result.corrupted_items, result.perturbed_items) == (40, 20, 40)
    assert result.estimates["perturbed_divergence_rate"].value == pytest.approx(0.25)
    assert result.estimates["perturbed_negative_flip_rate"].value == pytest.approx(0.25)
    assert result.estimates["corrupted_divergence_rate"].value == 0.0
    assert (
        result.estimates["corrupted_accuracy"].value == result.estimates["relative_robustness"].value == 1.0
    )
    assert [row.condition for row in result.conditions] == ["fog/1", "fog/2"]
    rates = {row.perturbation: row.comparison.divergence_rate.value for row in result.perturbations}
    assert rates == {"perturbed:small_shift": 0.0, "perturbed:paraphrase": 0.5}


def test_noise_floor_is_the_divergence_from_itself() -> None:
    items = tuple(question(n, image=n) for n in range(50))
    said = answers(items, lambda item: True)
    again = answers(items, lambda item: item.id != "q7")
    assert metrics.noise_floor(items, said, again, QUICK).value == pytest.approx(0.02)


def test_tables_that_do_not_fit_are_refused() -> None:
    items = table(4, 4, 2)
    said = answers(items, lambda item: True)
    with pytest.raises(DataError, match="artifact answers: 1 of"):
        metrics.compute(items, said, said[1:], QUICK)
    with pytest.raises(DataError, match="one per item"):
        metrics.compute(items, [*said, said[0]], said, QUICK)
    variants = tuple(item for item in items if item.corruption)
    with pytest.raises(DataError, match="lack their clean item"):
        metrics.compute(variants, said, said, QUICK)
    own_base = tuple(dataclasses.replace(item, base_id=item.id) for item in variants)
    with pytest.raises(DataError, match="no clean items"):
        metrics.compute(own_base, said, said, QUICK)


def test_a_full_evaluation_takes_seconds() -> None:
    items = [question(n, image=n // 2, group=f"group{n % 6}") for n in range(2000)]
    everything = suites.build(items, Evaluation())
    assert len(everything) == 4500
    rng = np.random.default_rng(0)
    reference = answers(everything, lambda item: bool(rng.random() < 0.85))
    artifact = answers(everything, lambda item: bool(rng.random() < 0.83))
    start = time.process_time()
    metrics.compute(everything, reference, artifact, Evaluation())
    assert time.process_time() - start < 5.0


def test_the_temperature_is_fitted_on_items_that_nothing_counts() -> None:
    """Too sure where it is fitted, too sure where it is judged: scaling helps, and no count moves."""
    items = tuple(question(n, image=n) for n in range(300))
    asked = suites.held_out([question(n, image=n) for n in range(300, 500)], 200, seed=0)
    everything = (*items, *asked)
    said = [
        answer(item, "blue" if number % 5 < 3 else "red", -0.01 - 0.3 * (number % 7 == 0))
        for number, item in enumerate(everything)
    ]
    with_them = metrics.compute(everything, said, said, QUICK)
    without = metrics.compute(items, said, said, QUICK)
    assert with_them.estimates == without.estimates and with_them.selective == without.selective
    assert (with_them.clean_items, with_them.corrupted_items, with_them.images) == (300, 0, 300)
    assert without.scaling == {}
    scaling = with_them.scaling["artifact"]
    assert scaling.n == 200 and scaling.temperature > 2
    assert scaling.ece_before == pytest.approx(with_them.estimates["ece"].value)
    assert scaling.ece_after < scaling.ece_before / 3
    right = answers(everything, lambda item: True)
    assert metrics.compute(everything, right, right, QUICK).scaling == {}
