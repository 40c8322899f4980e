"""Each published format, read from files of its published shape."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from edgevlm_deploy import datasets
from edgevlm_deploy.artifacts import file_digest
from edgevlm_deploy.datasets import Sample
from edgevlm_deploy.errors import DataError, NotFoundError


def picture(path: Path, grey: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 6), (grey, grey, grey)).save(path)
    return path


def lines(path: Path, *rows: dict[str, Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_jsonl(tmp_path: Path) -> None:
    image = picture(tmp_path / "pictures" / "a.png")
    elsewhere = picture(tmp_path / "elsewhere" / "b.png", 9)
    path = lines(
        tmp_path / "items.jsonl",
        {"image": "pictures/a.png", "question": "What?", "answers": ["cat", "kitten"]},
        {"image": str(elsewhere), "question": "How many?", "answer": 2, "group": "count", "id": "x"},
        {"image": None, "question": "Who?"},
    )
    assert datasets.load(path) == (
        Sample("000001", "", image, file_digest(image), "What?", ("cat", "kitten")),
        Sample("x", "count", elsewhere, file_digest(elsewhere), "How many?", ("2",)),
        Sample("000003", "", None, "", "Who?", ()),
    )
    assert datasets.load(tmp_path) == datasets.load(path)


def test_jsonl_takes_pictures_from_the_given_folder(tmp_path: Path) -> None:
    image = picture(tmp_path / "pictures" / "a.png")
    path = lines(tmp_path / "items.jsonl", {"image": "a.png", "question": "What?", "answer": "x"})
    assert datasets.load(path, images=tmp_path / "pictures")[0].image == image
    with pytest.raises(NotFoundError, match="no such folder of pictures"):
        datasets.load(path, images=tmp_path / "nowhere")


def test_every_bad_row_is_named_at_once(tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    truncated = picture(tmp_path / "truncated.png")
    truncated.write_bytes(truncated.read_bytes()[:-30])
    (tmp_path / "text.png").write_text("no picture")
    good = {"image": "a.png", "question": "What?", "answer": "x"}
    path = lines(
        tmp_path / "items.jsonl",
        {**good, "id": "twice"},
        {**good, "id": "twice"},
        {**good, "img": 1},
        {**good, "question": None},
        {**good, "answers": ["y"]},
        {**good, "image": "missing.png"},
        {**good, "image": "truncated.png"},
        {**good, "image": "text.png"},
        {**good, "question": "  "},
        {**good, "answer": [1]},
        {**good, "id": False},
    )
    path.write_text(path.read_text() + "{broken\n[]\n")
    with pytest.raises(DataError) as caught:
        datasets.load(path)
    message = str(caught.value)
    assert f"{path}: 12 row(s) cannot be used." in message
    for expected in (
        "items.jsonl:3: unknown key img; known are answer, answers, background, caption,",
        "items.jsonl:4: question: expected text, got None.",
        "items.jsonl:5: has more than one of `answer`, `answers` and `label`",
        "items.jsonl:10: answers: expected text or a list of texts, got [[1]].",
        "items.jsonl:11: id: expected text, got False.",
        "items.jsonl:12: not JSON",
        "items.jsonl:13: expected an object, got list.",
        "items.jsonl:2: id 'twice' was used before, at items.jsonl:1.",
        "missing.png: no such picture",
        "… and 2 more.",
    ):
        assert expected in message, expected
    path.write_text(json.dumps({**good, "image": "truncated.png"}) + "\n")
    with pytest.raises(DataError, match=r"items\.jsonl:1: .*truncated\.png: (not a picture|cannot)"):
        datasets.load(path)


def test_truncated_jpeg_is_found_although_its_header_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    Image.effect_noise((64, 64), 90).convert("RGB").save(path)
    path.write_bytes(path.read_bytes()[:-600])
    rows = lines(tmp_path / "items.jsonl", {"image": "a.jpg", "question": "What?", "answer": "x"})
    with pytest.raises(DataError, match="cannot be decoded"):
        datasets.load(rows)


def test_a_picture_that_would_fill_the_memory_is_refused(tmp_path: Path) -> None:
    Image.new("1", (9000, 9000)).save(tmp_path / "bomb.png")
    rows = lines(tmp_path / "items.jsonl", {"image": "bomb.png", "question": "What?", "answer": "x"})
    with pytest.raises(DataError, match=r"bomb\.png"):
        datasets.load(rows)


@pytest.mark.parametrize("content", ["", "\n \n"])
def test_an_empty_file_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "items.jsonl").write_text(content)
    with pytest.raises(DataError, match="empty"):
        datasets.load(tmp_path / "items.jsonl")


def test_pope(tmp_path: Path) -> None:
    picture(tmp_path / "COCO_val2014_000000000001.jpg")
    row = {"image": "COCO_val2014_000000000001.jpg", "text": "Is there a dog in the image?", "label": "no"}
    for setting in ("random", "popular"):
        lines(tmp_path / f"coco_pope_{setting}.json", {"question_id": 1, **row}, {"question_id": 2, **row})
    samples = datasets.load(tmp_path)
    assert [s.id for s in samples] == ["popular-1", "popular-2", "random-1", "random-2"]
    assert samples[0].group == "popular"
    assert samples[0].answers == ("no",)
    assert samples[0].prompt == row["text"]
    lines(tmp_path / "coco_pope_random.json", {"question_id": 1, **row, "label": "No"})
    with pytest.raises(
        DataError, match=r'coco_pope_random.json:1: label: expected "yes" or "no", got \'No\''
    ):
        datasets.load(tmp_path / "coco_pope_random.json")


def vqav2(folder: Path, **changes: Any) -> Path:
    questions = {
        "info": {},
        "data_subtype": "val2014",
        "questions": [{"image_id": 42, "question": "What color?", "question_id": 42000}],
    }
    answers = [
        {"answer": "red" if n else "pink", "answer_confidence": "yes", "answer_id": n} for n in range(10)
    ]
    annotation = {
        "question_type": "what color",
        "multiple_choice_answer": "red",
        "answers": answers,
        "image_id": 42,
        "answer_type": "other",
        "question_id": 42000,
        **changes,
    }
    (folder / "v2_OpenEnded_mscoco_val2014_questions.json").write_text(json.dumps(questions))
    (folder / "v2_mscoco_val2014_annotations.json").write_text(json.dumps({"annotations": [annotation]}))
    return folder / "v2_OpenEnded_mscoco_val2014_questions.json"


def test_vqav2(tmp_path: Path) -> None:
    image = picture(tmp_path / "val2014" / "COCO_val2014_000000000042.jpg")
    path = vqav2(tmp_path)
    (sample,) = datasets.load(path)
    assert sample == Sample(
        "42000", "other", image, file_digest(image), "What color?", ("pink",) + ("red",) * 9
    )
    assert datasets.load(tmp_path) == (sample,)
    path.write_text(json.dumps(json.loads(path.read_text()), indent=2))
    assert datasets.load(path) == (sample,)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image_id": 1}, "its annotation is about image 1"),
        ({"question_id": 1}, "question 42000 has no annotation"),
        ({"answers": []}, "expected 10 answers with text, got 0"),
        ({"answers": "red"}, "answers must be a list"),
    ],
)
def test_vqav2_that_does_not_fit_together(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    picture(tmp_path / "COCO_val2014_000000000042.jpg")
    with pytest.raises(DataError, match=message):
        datasets.load(vqav2(tmp_path, **changes))


def test_vqav2_without_annotations(tmp_path: Path) -> None:
    path = vqav2(tmp_path)
    (tmp_path / "v2_mscoco_val2014_annotations.json").unlink()
    with pytest.raises(DataError, match=r"beside it, v2_mscoco_val2014_annotations\.json"):
        datasets.load(path)


def test_picture_folder(tmp_path: Path) -> None:
    image = picture(tmp_path / "polar_bear" / "1.png")
    picture(tmp_path / "cat" / "1.png", 3)
    with pytest.raises(DataError, match=r"question\.txt"):
        datasets.load(tmp_path)
    (tmp_path / "question.txt").write_text("Which animal is this?\n")
    samples = datasets.load(tmp_path)
    assert [s.id for s in samples] == ["cat/1.png", "polar_bear/1.png"]
    question = "Which animal is this?"
    assert samples[1] == Sample("polar_bear/1.png", "", image, file_digest(image), question, ("polar bear",))
    assert datasets.load(tmp_path, question="What?")[0].prompt == "What?"
    (tmp_path / "cat" / "notes.md").write_text("")
    with pytest.raises(DataError, match=r"cat/notes\.md: not a picture"):
        datasets.load(tmp_path)


def test_what_is_ambiguous_or_unknown_is_refused_with_the_known_formats(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="no such file or folder"):
        datasets.load(tmp_path / "nothing")
    with pytest.raises(DataError, match="found no data; name one file"):
        datasets.load(tmp_path)
    row = {"image": None, "question": "What?", "answer": "x"}
    lines(tmp_path / "a.jsonl", row)
    with pytest.raises(DataError, match="picture folders only"):
        datasets.load(tmp_path, question="What?")
    lines(tmp_path / "b.jsonl", row)
    with pytest.raises(DataError, match=r"found a\.jsonl, b\.jsonl; name one file"):
        datasets.load(tmp_path)
    other = lines(tmp_path / "other.json", {"prompt": "?"})
    with pytest.raises(DataError, match="has the keys prompt"):
        datasets.load(other)
    (tmp_path / "binary.jsonl").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match="UTF-8"):
        datasets.load(tmp_path / "binary.jsonl")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.characters() | st.just("a.png"),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=4,
)


def objects(*keys: str) -> st.SearchStrategy[dict[str, Any]]:
    """Objects with some of the keys that a format knows, and any values."""
    return st.fixed_dictionaries({}, optional=dict.fromkeys(keys, JSON))


QUESTIONS = objects("question_id", "image_id", "question")
ANNOTATIONS = objects("question_id", "image_id", "answer_type", "answers")


@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    ours=st.lists(objects("image", "question", "answer", "answers", "id", "group"), max_size=3),
    polls=st.lists(objects("question_id", "image", "text", "label"), max_size=3),
    asked=st.fixed_dictionaries(
        {"questions": JSON | st.lists(QUESTIONS, max_size=3)}, optional={"data_subtype": JSON}
    ),
    said=st.fixed_dictionaries({"annotations": JSON | st.lists(ANNOTATIONS, max_size=3)}),
    raw=st.binary(max_size=40),
)
def test_whatever_a_file_holds_the_answer_is_samples_or_a_sentence(
    tmp_path: Path,
    ours: list[dict[str, Any]],
    polls: list[dict[str, Any]],
    asked: dict[str, Any],
    said: dict[str, Any],
    raw: bytes,
) -> None:
    picture(tmp_path / "a.png")
    (tmp_path / "raw.json").write_bytes(raw)
    (tmp_path / "raw.jsonl").write_bytes(raw)
    lines(tmp_path / "ours.jsonl", *ours)
    lines(tmp_path / "coco_pope_random.json", *polls)
    lines(tmp_path / "x_questions.json", asked)
    lines(tmp_path / "x_annotations.json", said)
    for name in ("raw.json", "raw.jsonl", "ours.jsonl", "coco_pope_random.json", "x_questions.json"):
        with contextlib.suppress(DataError):
            for sample in datasets.load(tmp_path / name):
                assert sample.prompt.encode().strip()


def test_published_pope_questions(real_data: Path, tmp_path: Path) -> None:
    """The three published files; the COCO pictures are stood in for by blank ones."""
    names = {
        json.loads(line)["image"]
        for path in sorted((real_data / "scoring" / "pope").glob("*.json"))
        for line in path.read_text().splitlines()
    }
    for name in names:
        Image.new("L", (1, 1)).save(tmp_path / name)
    samples = datasets.load(real_data / "scoring" / "pope", images=tmp_path)
    settings = [sample.group for sample in samples]
    assert all(settings.count(one) == 3000 for one in ("random", "popular", "adversarial"))
    yes = sum(s.answers == ("yes",) for s in samples) / len(samples)
    assert 0.49 < yes < 0.52


def test_published_easy_vqa(real_data: Path, tmp_path: Path) -> None:
    """Another data set becomes ours by a loop of a few lines."""
    test = real_data / "easy_vqa" / "test"
    rows = json.loads((test / "questions.json").read_text())
    path = lines(
        tmp_path / "easy_vqa.jsonl",
        *(
            {"image": f"{image}.png", "question": question, "answer": answer}
            for question, answer, image in rows
        ),
    )
    samples = datasets.load(path, images=test / "images")
    assert len(samples) == 9673
    assert len({s.image_id for s in samples}) <= len({s.image for s in samples}) == 1000
    assert len({s.answers for s in samples}) == 13
    calibration, evaluation = datasets.split(samples, seed=0, count=128)
    datasets.check_disjoint(calibration, evaluation)
