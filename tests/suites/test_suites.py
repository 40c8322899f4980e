"""The table of items: deterministic, spread over groups and pictures."""

from __future__ import annotations

import dataclasses
import random
from collections import Counter

import pytest
from edgevlm_runner.contract import TEMPERATURE, Item

from edgevlm_deploy import suites
from edgevlm_deploy.errors import DataError
from edgevlm_deploy.recipe import Corruption, CorruptionProfile, Evaluation, Perturbation


def item(number: int, *, group: str = "", image: int | None = 0) -> Item:
    picture = "" if image is None else f"picture{image}"
    return Item(
        id=f"q{number}",
        base_id=f"q{number}",
        group=group,
        condition="clean",
        image=f"images/{picture}.png" if picture else "",
        image_id=picture,
        prompt="What is it?",
        answers=("cube",),
    )


def questions(count: int, pictures: int) -> list[Item]:
    return [item(n, group=("count", "colour", "shape")[n % 3], image=n % pictures) for n in range(count)]


def test_clean_items_are_spread_over_groups_and_pictures() -> None:
    chosen = suites.select(questions(900, pictures=300), 90, seed=0)
    assert Counter(one.group for one in chosen) == {"count": 30, "colour": 30, "shape": 30}
    assert max(Counter(one.image_id for one in chosen).values()) == 1


def test_a_small_group_gives_all_it_has() -> None:
    items = [item(n, group="large", image=n) for n in range(50)]
    items += [item(50 + n, group="small", image=n) for n in range(3)]
    chosen = suites.select(items, 20, seed=0)
    assert Counter(one.group for one in chosen) == {"large": 17, "small": 3}


def test_fewer_items_than_asked_for_are_all_taken() -> None:
    assert len(suites.select(questions(7, pictures=2), 100, seed=0)) == 7


def test_the_order_of_the_items_does_not_matter_and_the_seed_does() -> None:
    items = questions(400, pictures=100)
    evaluation = Evaluation(clean_items=50, items_per_condition=5)
    table = suites.build(items, evaluation)
    assert suites.build(random.Random(1).sample(items, len(items)), evaluation) == table
    other = suites.build(items, Evaluation(clean_items=50, items_per_condition=5, seed=1))
    assert {one.id for one in other} != {one.id for one in table}


def test_corrupted_items_name_their_clean_item_and_condition() -> None:
    evaluation = Evaluation(
        clean_items=30,
        corruptions=(Corruption.FOG, Corruption.CONTRAST),
        severities=(1, 5),
        items_per_condition=4,
    )
    table = suites.build(questions(60, pictures=20), evaluation)
    clean = {one.id: one for one in table if one.condition == "clean"}
    variants = [one for one in table if one.condition != "clean"]
    assert len(clean) == 30
    conditions = ("fog/1", "fog/5", "contrast/1", "contrast/5")
    assert Counter(one.condition for one in variants) == dict.fromkeys(conditions, 4)
    for one in variants:
        assert one.id == f"{one.base_id}@{one.condition}"
        assert (one.prompt, one.image_id) == (clean[one.base_id].prompt, clean[one.base_id].image_id)
        assert one.corruption == (one.condition.split("/")[0], int(one.condition.split("/")[1]))
    assert len({one.id for one in table}) == len(table)


def test_pictures_are_used_evenly() -> None:
    clean = suites.select(questions(300, pictures=100), 300, seed=0)
    variants = suites.corrupted(clean, ["fog", "contrast"], [1, 2, 3, 4, 5], 50, seed=0)
    used = Counter(one.image_id for one in variants)
    assert set(used.values()) == {5}
    for condition in {one.condition for one in variants}:
        pictures = [one.image_id for one in variants if one.condition == condition]
        assert len(set(pictures)) == len(pictures)


def test_questions_without_a_picture_are_not_corrupted() -> None:
    clean = [item(0, image=None), item(1, image=1)]
    assert {one.base_id for one in suites.corrupted(clean, ["fog"], [1], 10, seed=0)} == {"q1"}
    with pytest.raises(DataError, match="no clean item has a picture"):
        suites.corrupted(clean[:1], ["fog"], [1], 10, seed=0)
    assert suites.corrupted(clean[:1], [], [1], 10, seed=0) == ()


def test_perturbed_items_keep_the_picture_or_the_question() -> None:
    evaluation = Evaluation(
        clean_items=30,
        corruptions=(Corruption.FOG,),
        perturbations=tuple(Perturbation),
        severities=(2, 5),
        items_per_condition=4,
    )
    table = suites.build(questions(60, pictures=20), evaluation)
    clean = {one.id: one for one in table if one.condition == "clean"}
    perturbed = [one for one in table if one.perturbed]
    assert len(perturbed) == 4 * 2 * 4 and len(table) == 30 + 8 + 32
    for one in perturbed:
        base = clean[one.base_id]
        assert one.corruption is not None and (one.image, one.answers) == (base.image, base.answers)
        assert (one.prompt == base.prompt) == (one.corruption[0] != "perturbed:paraphrase")
    reworded = {one.corruption[1]: one.prompt for one in perturbed if one.corruption and one.prompt[0] != "W"}
    assert reworded == {2: "what is it?", 5: "Please answer: What is it?"}


def test_five_rewordings_of_a_question() -> None:
    clean = [item(number, image=number) for number in range(5)]
    found = suites.perturbed(clean, ["paraphrase"], [1, 2, 3, 4, 5], 1, seed=0)
    expected = ("What is it? ", "what is it?", "what is it?", "What is it", "Please answer: What is it?")
    assert tuple(one.prompt for one in found) == expected


def test_the_profile_is_part_of_the_condition() -> None:
    mild = Evaluation(
        corruptions=(Corruption.FOG,), severities=(1,), corruption_profile=CorruptionProfile.CIFAR_C
    )
    table = suites.build([item(1)], mild)
    assert [one.condition for one in table] == ["clean", "cifar-c:fog/1"]
    assert table[1].corruption == ("cifar-c:fog", 1) and not table[1].perturbed


def test_the_milder_profile_refuses_what_it_has_no_constants_for() -> None:
    with pytest.raises(ValueError, match="cifar-c has no constants for block_loss, elastic_transform"):
        Evaluation(
            corruptions=(Corruption.FOG, Corruption.BLOCK_LOSS, Corruption.ELASTIC_TRANSFORM),
            corruption_profile=CorruptionProfile.CIFAR_C,
        )


def test_unusable_items_are_refused() -> None:
    with pytest.raises(DataError, match="no items"):
        suites.build([], Evaluation())
    with pytest.raises(DataError, match="unique"):
        suites.build([item(1), item(1)], Evaluation())
    variant = suites.corrupted([item(1)], ["fog"], [1], 1, seed=0)[0]
    with pytest.raises(DataError, match="expected a clean item"):
        suites.build([variant], Evaluation())


def test_calibration_questions_come_last_under_names_and_a_condition_of_their_own() -> None:
    judged, calibration = questions(20, pictures=20), questions(9, pictures=3)
    unknown = dataclasses.replace(item(99), answers=())
    evaluation = Evaluation(corruptions=(Corruption.FOG,), severities=(1,), temperature_items=4)
    table = suites.build(judged, evaluation, [*calibration, unknown])
    plain = suites.build(judged, evaluation)
    assert table[: len(plain)] == plain and len(table) == len(plain) + 4
    for one in table[len(plain) :]:
        assert one.id == one.base_id and one.id.endswith("@temperature")
        assert one.condition == TEMPERATURE and one.corruption is None and one.answers
    assert len({one.id for one in table}) == len(table)
    assert table == suites.build(judged, evaluation, [unknown, *reversed(calibration)])
    assert suites.held_out([unknown], 4, seed=0) == suites.held_out(calibration, 0, seed=0) == ()
