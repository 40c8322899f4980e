from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from edgevlm_deploy.artifacts import file_digest, tree_digest
from edgevlm_deploy.calibration import Content, Row, build, load
from edgevlm_deploy.calibration.draw import draw
from edgevlm_deploy.calibration.pictures import assign, changed, counts
from edgevlm_deploy.calibration.rows import commonest
from edgevlm_deploy.datasets import Sample
from edgevlm_deploy.demo.dataset import samples as demo_samples
from edgevlm_deploy.demo.questions import KINDS
from edgevlm_deploy.demo.scenes import Split
from edgevlm_deploy.errors import DataError
from edgevlm_deploy.recipe import Calibration, Composition, Mixture

MIXTURE = Mixture(clean=0.5, dark=0.2, grey=0.2, noise=0.1)


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> tuple[Sample, ...]:
    return demo_samples(Split.CALIBRATION, 30, 8, tmp_path_factory.mktemp("demo"))


def invented(groups: dict[str, int], pictures: int) -> tuple[Sample, ...]:
    """`groups` gives the number of samples of each kind."""
    return tuple(
        Sample(
            f"{group}-{n}", group, Path(f"{n % pictures}.png"), f"{n % pictures:064x}", f"{group} {n}?", ()
        )
        for group, count in groups.items()
        for n in range(count)
    )


def test_kinds_take_turns() -> None:
    drawn = draw(invented({"a": 1000, "b": 20, "c": 3}, 500), 30, 0, balanced=True)
    assert Counter(s.group for s in drawn) == {"a": 14, "b": 13, "c": 3}
    skewed = draw(invented({"a": 1000, "b": 20, "c": 3}, 500), 30, 0, balanced=False)
    assert Counter(s.group for s in skewed)["a"] >= 25


def test_pictures_are_spread() -> None:
    drawn = draw(invented({"a": 60, "b": 60}, 20), 20, 0, balanced=True)
    assert len({s.image_id for s in drawn}) == 20
    twice = Counter(s.image_id for s in draw(invented({"a": 60, "b": 60}, 20), 40, 0, balanced=True))
    assert set(twice.values()) == {2}


@given(seed=st.integers(0, 10), count=st.integers(1, 60), shuffled=st.permutations(range(60)))
def test_a_draw_depends_on_seed_and_content_alone(seed: int, count: int, shuffled: list[int]) -> None:
    every = invented({"a": 30, "b": 20, "c": 10}, 17)
    drawn = draw(every, count, seed, balanced=True)
    assert len({s.id for s in drawn}) == len(drawn) == count
    assert draw([every[n] for n in shuffled], count, seed, balanced=True) == drawn


def test_too_little_data_is_refused() -> None:
    with pytest.raises(DataError, match="asks for 4 samples, the data has 3"):
        draw(invented({"a": 3}, 3), 4, 0, balanced=True)


@given(weights=st.lists(st.integers(0, 10), min_size=4, max_size=4).filter(any), pictures=st.integers(0, 300))
def test_shares_become_whole_pictures(weights: list[int], pictures: int) -> None:
    shares = [weight / sum(weights) for weight in weights]
    mixture = Mixture(**dict(zip(("clean", "dark", "grey", "noise"), shares, strict=True)))
    whole = counts(mixture, pictures)
    assert sum(whole.values()) == pictures
    for content, share in zip(Content, shares, strict=True):
        assert abs(whole[content] - share * pictures) < 1
        assert share or not whole[content]


def test_text_only_samples_take_part_in_no_share() -> None:
    text = tuple(Sample(f"t{n}", "", None, "", f"{n}?", ()) for n in range(10))
    contents = assign(text + invented({"a": 10}, 10), Mixture(clean=0, grey=1), 0)
    assert contents == (Content.CLEAN,) * 10 + (Content.GREY,) * 10


def test_what_becomes_of_a_picture() -> None:
    picture = Image.effect_noise((40, 30), 60).convert("RGB")
    clean = np.asarray(picture, float)
    pixels = {content: np.asarray(changed(picture, content, 0, "id"), float) for content in Content}
    assert np.array_equal(pixels[Content.CLEAN], clean)
    assert np.abs(pixels[Content.DARK] - 0.2 * clean).max() < 1
    assert np.unique(pixels[Content.GREY]).tolist() == [128]
    difference = (pixels[Content.NOISE] - clean)[(clean > 100) & (clean < 155)] / 255
    assert difference.std() == pytest.approx(0.18, rel=0.1)
    assert np.array_equal(pixels[Content.NOISE], np.asarray(changed(picture, Content.NOISE, 0, "id")))
    assert not np.array_equal(pixels[Content.NOISE], np.asarray(changed(picture, Content.NOISE, 0, "other")))


def test_a_set_is_written_and_read(samples: tuple[Sample, ...], tmp_path: Path) -> None:
    built = build(samples, Calibration(samples=64, mixture=MIXTURE), tmp_path / "a")
    assert load(tmp_path / "a") == built
    assert built.composition == {"clean": 32, "dark": 13, "grey": 13, "noise": 6}
    assert set(Counter(row.group for row in built.rows).values()) == {64 // len(KINDS)}
    sources = {sample.id: sample for sample in samples}
    for row in built.rows:
        source = sources[row.sample_id]
        assert (row.source_image_id, row.prompt, (row.answer,)) == (
            source.image_id,
            source.prompt,
            source.answers,
        )
        assert file_digest(tmp_path / "a" / row.image) == Path(row.image).stem
        assert (row.image == f"pictures/{source.image_id}.png") == (row.content is Content.CLEAN)


def test_the_digest_pins_everything(samples: tuple[Sample, ...], tmp_path: Path) -> None:
    first = build(samples, Calibration(samples=24, mixture=MIXTURE), tmp_path / "a")
    again = build(samples, Calibration(samples=24, mixture=MIXTURE), tmp_path / "b")
    assert first.digest == again.digest
    assert tree_digest(tmp_path / "a") == tree_digest(tmp_path / "b")
    others = [
        build(samples, settings, tmp_path / name)
        for name, settings in {
            "seed": Calibration(samples=24, mixture=MIXTURE, seed=1),
            "fewer": Calibration(samples=23, mixture=MIXTURE),
            "clean": Calibration(samples=24),
        }.items()
    ]
    assert len({first.digest, *(other.digest for other in others)}) == 4


def test_a_set_that_was_touched_is_refused(samples: tuple[Sample, ...], tmp_path: Path) -> None:
    built = build(samples, Calibration(samples=2), tmp_path)
    picture = tmp_path / built.rows[0].image
    good = picture.read_bytes()
    picture.write_bytes(good + b"x")
    with pytest.raises(DataError, match="missing or altered"):
        load(tmp_path)
    picture.unlink()
    with pytest.raises(DataError, match="missing or altered"):
        load(tmp_path)
    for text in ("{}\n", "[]\n", "{", json.dumps({**vars(built.rows[0]), "content": "odd"})):
        (tmp_path / "rows.jsonl").write_text(text)
        with pytest.raises(DataError, match="not a calibration set"):
            load(tmp_path)


def test_a_picture_that_changed_meanwhile_is_noticed(tmp_path: Path) -> None:
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    sample = Sample("1", "", tmp_path / "a.png", "0" * 64, "?", ())
    with pytest.raises(DataError, match="changed since sample 1 was read"):
        build([sample], Calibration(samples=1), tmp_path / "set")


def test_the_commonest_answer_is_kept() -> None:
    assert commonest(("two", "2", "2", "two", "3")) == "two"
    assert commonest(()) == ""
    assert {"answer", "content"} <= set(Row.__dataclass_fields__)


def test_compositions_show_a_part_of_each_sample(samples: tuple[Sample, ...], tmp_path: Path) -> None:
    both, text, image = (
        build(samples, Calibration(samples=12, composition=one), tmp_path / one.value) for one in Composition
    )
    assert len({one.digest for one in (both, text, image)}) == 3
    for shown, words, picture in zip(both.rows, text.rows, image.rows, strict=True):
        assert shown.sample_id == words.sample_id == picture.sample_id
        assert (words.image, words.prompt, words.answer) == ("", shown.prompt, shown.answer)
        assert (picture.image, picture.prompt, picture.answer) == (shown.image, "", "")
        # What the questions are about must not be evaluated on either.
        assert shown.source_image_id == words.source_image_id == picture.source_image_id != ""
    assert load(tmp_path / "text_only") == text and text.composition == {}


def test_pictures_alone_need_pictures(tmp_path: Path) -> None:
    sample = Sample("a", "", None, "", "Who?", ("me",))
    with pytest.raises(DataError, match="sample a has no picture"):
        build([sample], Calibration(samples=1, composition=Composition.IMAGE_ONLY), tmp_path)


def test_text_alone_has_no_pictures_to_mix() -> None:
    with pytest.raises(ValueError, match="text_only shows no pictures"):
        Calibration(composition=Composition.TEXT_ONLY, mixture=Mixture(clean=0.5, dark=0.5))
