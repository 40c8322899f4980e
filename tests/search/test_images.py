"""What may be seen less of: chains from mild to harsh, ended where a gate refuses the unquantised model."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgevlm_deploy import resources
from edgevlm_deploy.recipe import GateName, Image, Recipe, Reduction, ReductionMethod
from edgevlm_deploy.search import images
from edgevlm_deploy.search.images import Knob, Menu, Seen
from edgevlm_deploy.search.outlook import Outlook
from edgevlm_deploy.source import Architecture, SourceModel
from edgevlm_deploy.target import Target

TOME = [Reduction(method=ReductionMethod.TOME, keep=share) for share in (0.75, 0.5, 0.33)]


def menu(demo: SourceModel, target: Target, base: Image, most: int, *knobs: Knob) -> Menu:
    assert isinstance(demo.architecture, Architecture)
    return images.menu(base, most, target, demo.architecture, knobs or tuple(Knob))


def seen(image: Image, is_inside: bool) -> Seen:
    gate = Outlook(
        metric=GateName.DIVERGENCE_RATE, value=0.1, bound=0.2, limit=0.1, is_inside=is_inside, excess=1.0
    )
    return Seen(
        image=image,
        label=images.label(image),
        prompt_tokens=1,
        accuracy=1.0,
        divergence_rate=0.0,
        corrupted_divergence_rate=None,
        negative_flip_rate=0.0,
        gates=(gate,),
    )


@pytest.mark.parametrize(
    ("most", "fewer"), [(1, ()), (2, (1,)), (5, (1,)), (6, (5, 1)), (17, (10, 5, 1)), (18, (17, 10, 5, 1))]
)
def test_fewer_tiles_are_whole_squares(most: int, fewer: tuple[int, ...]) -> None:
    assert images.fewer_tiles(most) == fewer


def test_one_tile_leaves_no_knob(demo: SourceModel, host: Target) -> None:
    given = menu(demo, host, Image(), 1)
    assert given.tiles == () and given.absent == ("tiles: a picture is one tile already",)
    assert [chain[0].method for chain in given.reductions] == list(ReductionMethod)
    assert [one.keep for one in given.reductions[2]] == list(images.SHARES)


def test_a_target_without_fastv_has_the_others(demo: SourceModel) -> None:
    given = menu(demo, resources.target("orin"), Image(), 1)
    assert {chain[0].method for chain in given.reductions} == {
        ReductionMethod.VISIONZIP,
        ReductionMethod.TOME,
    }


def test_only_what_was_named_is_turned(demo: SourceModel, host: Target) -> None:
    given = menu(demo, host, Image(), 17, Knob.TILES)
    assert given.tiles == (10, 5, 1) and given.reductions == () and not given.absent


def test_the_reference_keeps_its_tiles(demo: SourceModel, host: Target) -> None:
    """Else it would see as few, and no gate what that costs."""
    one = menu(demo, host, Image(), 17).image(5, None)
    assert (one.max_tiles, one.reference_tiles) == (5, 17) and images.label(one) == "5 of 17 tiles"
    bounded = menu(demo, host, Image(max_tiles=10), 10).image(5, TOME[1])
    assert (bounded.max_tiles, bounded.reference_tiles) == (5, 10)
    assert images.label(bounded) == "5 of 10 tiles, tome 0.5"
    assert menu(demo, host, Image(max_tiles=10), 10).image(None, None) == Image(max_tiles=10)


def test_the_recipes_own_reduction_is_one_of_its_chain(demo: SourceModel, host: Target) -> None:
    own = Reduction(method=ReductionMethod.TOME, keep=0.6)
    given = menu(demo, host, Image(reduction=own), 1)
    assert own in given.reductions[2] and given.first.reduction is None
    kept = menu(demo, host, Image(reduction=own), 1, Knob.TILES)
    assert kept.first.reduction == own and kept.reductions == ()


def test_what_is_outside_ends_its_chain(tmp_path: Path) -> None:
    given = Menu(Image(), 17, (10, 5, 1), (tuple(TOME),), (), True)
    asked: list[str] = []

    def look(image: Image) -> Seen:
        asked.append(images.label(image))
        return seen(image, "5 of" not in asked[-1] and "0.5" not in asked[-1])

    images.examine(given, look, tmp_path, lambda _: None)
    assert asked == ["", "10 of 17 tiles", "5 of 17 tiles", "tome 0.75", "tome 0.5"]
    found = images.choices(given, images.load(tmp_path))
    assert [images.label(one) for one in found] == [
        "",
        "tome 0.75",
        "10 of 17 tiles",
        "10 of 17 tiles, tome 0.75",
    ]


def test_a_killed_examination_goes_on(tmp_path: Path) -> None:
    given = Menu(Image(), 1, (), (tuple(TOME),), (), True)
    asked: list[Image] = []

    def look(image: Image) -> Seen:
        if len(asked) == 2:
            raise KeyboardInterrupt
        asked.append(image)
        return seen(image, True)

    with pytest.raises(KeyboardInterrupt):
        images.examine(given, look, tmp_path, lambda _: None)
    images.examine(given, lambda image: seen(image, True), tmp_path, lambda _: None)
    found = images.load(tmp_path)
    assert [one.image for one in found] == [given.first, *(given.image(None, one) for one in TOME)]


def test_a_model_that_its_gates_refuse_leaves_nothing(tmp_path: Path) -> None:
    given = Menu(Image(), 5, (1,))
    images.examine(given, lambda image: seen(image, False), tmp_path, lambda _: None)
    assert len(images.load(tmp_path)) == 1 and images.choices(given, images.load(tmp_path)) == ()


def test_the_recipes_own_setting_is_where_uniform_precision_is_tried(base: Recipe) -> None:
    own = base.image.model_copy(update={"reduction": TOME[1]})
    given = Menu(own, 1, (), (tuple(TOME),), (), True)
    everything = [seen(given.first, True), *(seen(given.image(None, one), True) for one in TOME)]
    assert images.choices(given, everything)[0] == own
    assert images.choices(given, everything[:2])[0] == given.first
