"""What training shows the demo model, against what inference shows it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from edgevlm_runner import prompt
from edgevlm_runner.inputs import load_tokenizer

from edgevlm_deploy import backends, resources, source
from edgevlm_deploy.demo import model as demo
from edgevlm_deploy.demo.lessons import ATTRIBUTES, IGNORE, PADDING, PREFIX, ROW, Lesson, Lessons
from edgevlm_deploy.demo.questions import ask_any
from edgevlm_deploy.demo.scenes import COLUMNS, MOST_OBJECTS, SHAPES, Split, generator, scene
from edgevlm_deploy.demo.train import Schedule, most_objects, train
from edgevlm_deploy.target import Backend

PICTURES = 6


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return demo.load_tokenizer(resources.DEMO_CHECKPOINT)


@pytest.fixture(scope="module")
def lesson(tokenizer: Any) -> Lesson:
    return Lessons(tokenizer, Split.TRAIN, 0, PICTURES, [MOST_OBJECTS] * 4)[1]


def test_a_packed_question_is_the_prompt_of_inference_and_its_labels_are_the_answer(
    lesson: Lesson, tokenizer: Any
) -> None:
    model = source.inspect(resources.DEMO_CHECKPOINT)
    graphs = backends.graph_names(Backend.ONNXRUNTIME)
    spec = source.model_spec(model, resources.recipe("default"), Backend.ONNXRUNTIME.value, graphs)
    on_device = load_tokenizer(model.tokenizer)
    for row in range(PICTURES):
        number = PICTURES + row  # the second lesson
        asked = ask_any(scene(Split.TRAIN, number), 8, generator(Split.TRAIN, number, 2))
        prefix = lesson.ids[row][lesson.segment[row] == PREFIX]
        segments = sorted(set(lesson.segment[row].tolist()) - {PREFIX, PADDING})
        assert len(segments) >= 5
        for segment in segments:
            question = asked[segment - 1]
            own = lesson.segment[row] == segment
            labels = lesson.labels[row][own]
            answer = labels[labels != IGNORE]
            assert tokenizer.decode(answer) == f" {question.answer}<end_of_utterance>"
            whole = torch.cat([prefix, lesson.ids[row][own]])[: len(prefix) + int(own.sum()) - len(answer)]
            shown = prompt.encode(on_device, prompt.build(question.text, (0, 0), spec.prompt))
            assert whole.tolist() == shown[0].tolist()
            positions = lesson.positions[row][own]
            assert positions.tolist() == list(range(len(prefix), len(prefix) + int(own.sum())))


def test_cells_say_what_the_scene_holds(lesson: Lesson) -> None:
    for row in range(PICTURES):
        one = scene(Split.TRAIN, PICTURES + row)
        assert np.array_equal(lesson.pixels[row].numpy(), one.pixels)
        occupied = {thing.row * COLUMNS + thing.column: thing for thing in one.things}
        for cell in range(COLUMNS * COLUMNS):
            found = lesson.cells[:, row, cell].tolist()
            if cell in occupied:
                expected = [values.index(getattr(occupied[cell], name)) for name, values in ATTRIBUTES]
            else:
                expected = [len(SHAPES)] + [IGNORE] * (len(ATTRIBUTES) - 1)
            assert found == expected


def test_a_row_has_one_length_and_whole_questions_only(tokenizer: Any) -> None:
    lesson = Lessons(tokenizer, Split.TUNING, 0, 40, [MOST_OBJECTS])[0]
    assert lesson.ids.shape == (40, ROW)
    for labels, segment in zip(lesson.labels, lesson.segment, strict=True):
        for number in set(segment.tolist()) - {PREFIX, PADDING}:
            own = labels[segment == number]
            assert own[own != IGNORE][-1] == tokenizer.eos_token_id


def test_the_curriculum_ends_with_full_scenes() -> None:
    most = most_objects(100)
    assert most == sorted(most)
    assert most[0] == 1
    assert most[-1] == MOST_OBJECTS


@pytest.mark.filterwarnings("ignore:.*script_method:DeprecationWarning")  # torch's own, on importing Dynamo
def test_training_writes_a_checkpoint_that_loads(tmp_path: Path) -> None:
    """Two steps of each stage; compiled kernels would take a minute."""
    with torch.compiler.set_stance("force_eager"):
        train(tmp_path, 0, Schedule(vision_steps=2, steps=2, pictures=2), torch.device("cpu"))
    model = source.inspect(tmp_path)
    assert model.parameters < 6_000_000
    assert source.load(model).dtype == torch.float32
    rows = [json.loads(line) for line in (tmp_path / "training.jsonl").read_text().splitlines()]
    assert {row["stage"] for row in rows} == {"cells", "answers"}
    assert 0 <= rows[-1]["all"] <= 1
