"""Language models as judges of a bundle's wrong answers: asked once each, compared with the rules."""

from __future__ import annotations

import dataclasses
import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from edgevlm_deploy import judging
from edgevlm_deploy.errors import BundleError, EndpointError, ImageError
from edgevlm_deploy.judging import prompt
from edgevlm_deploy.metrics.taxonomy import Category, Failure
from edgevlm_deploy.progress import Silent
from edgevlm_deploy.report import terminal


def completion(content: str) -> tuple[int, dict[str, str], bytes]:
    return 200, {}, json.dumps({"choices": [{"message": {"content": content}}]}).encode()


def by_question(request: dict[str, Any]) -> tuple[int, dict[str, str], bytes]:
    """Agrees with the rules but for the ball, and talks at length about the dog."""
    content = request["messages"][1]["content"]
    text = content if isinstance(content, str) else content[0]["text"]
    question = json.loads(text)["question"]
    names = {"cube": "Semantic Drift", "rings": "spatial_error", "ball": "prior_bias"}
    for word, name in names.items():
        if word in question:
            return completion(f'```json\n{{"category": "{name}", "reason": "So it seems."}}\n```')
    return completion("I would rather not say: prior bias, or object blindness?")


def endpoint(server: Any, model: str = "judge-1") -> Any:
    return dataclasses.replace(judging.open_endpoint(server.url, model, attempts=2), sleep=lambda _: None)


def test_the_failures_are_those_of_the_metrics(validated: Path) -> None:
    wrong = judging.wrong_answers(validated)
    assert [one.item.id for one in wrong.rows] == ["q0", "q1", "q2", "q5", "q5@contrast/3"]
    assert wrong.empty == 1
    assert wrong.rows[0].failure == Failure("What color is the cube?", ("red",), "blue", "red")


def test_judges_side_by_side(validated: Path, server: Any) -> None:
    server.always = by_question
    wrong = judging.wrong_answers(validated)
    judging.ask(wrong, endpoint(server), Silent())
    # The dog is asked about on two pictures, which a judge without eyes cannot tell apart.
    assert len(server.requests) == 4
    judged = judging.compare(wrong)
    rules, model = judged.columns
    assert (judged.failures, judged.empty, rules.judge, model.judge) == (6, 1, "rules", "judge-1")
    assert rules.counts == {
        Category.OBJECT_BLINDNESS: 1,
        Category.SEMANTIC_DRIFT: 1,
        Category.PRIOR_BIAS: 2,
        Category.SPATIAL_ERROR: 1,
        Category.OTHER: 0,
    }
    assert model.counts[Category.PRIOR_BIAS] == 1 and model.unparsed == 2 and model.missing == 0
    (agreement,) = judged.agreements
    assert (agreement.same, agreement.kappa.n) == (2, 3)
    # Agreed 2 of 3, expected (1·1 + 1·1) / 9.
    assert agreement.kappa.value == pytest.approx((2 / 3 - 2 / 9) / (1 - 2 / 9))
    told = terminal.judges_table(judged)
    assert "rules and judge-1: 2 of 3 alike, Cohen's κ 0.571" in told
    assert "6 wrong answers, 1 of them empty and judged by nobody." in told and "unparsed" in told


def test_nothing_is_asked_twice_and_half_a_line_is(validated: Path, server: Any) -> None:
    server.always = by_question
    wrong = judging.wrong_answers(validated)
    judging.ask(wrong, endpoint(server), Silent())
    judging.ask(wrong, endpoint(server), Silent())
    assert len(server.requests) == 4
    (kept,) = wrong.folder.glob("*.jsonl")
    kept.write_bytes(kept.read_bytes()[:-20])
    judging.ask(wrong, endpoint(server), Silent())
    assert len(server.requests) == 5
    assert all(json.loads(line) for line in kept.read_text().splitlines())
    assert judging.compare(wrong).columns[1].missing == 0


def test_a_refusal_keeps_what_was_judged(validated: Path, server: Any) -> None:
    server.replies = [completion("other"), completion("other"), (401, {}, b"")]
    server.always = lambda _: (401, {}, b"")
    wrong = judging.wrong_answers(validated)
    with pytest.raises(
        EndpointError, match=r"2 of 4 failures are judged and kept in .*the same command goes on"
    ):
        judging.ask(wrong, endpoint(server), Silent(), parallel=1)
    server.always = by_question
    before = len(server.requests)
    judging.ask(wrong, endpoint(server), Silent())
    assert len(server.requests) == before + 2


def test_another_model_picture_or_answer_is_another_opinion(validated: Path, server: Any) -> None:
    wrong = judging.wrong_answers(validated)
    judging.ask(wrong, endpoint(server), Silent())
    judging.ask(wrong, endpoint(server, "judge-2"), Silent(), most=2)
    judging.ask(wrong, endpoint(server), Silent(), pictures=True)
    assert len(server.requests) == 4 + 2 + 5
    pictures = [one["messages"][1]["content"][1]["image_url"]["url"] for one in server.requests[6:]]
    assert len(set(pictures)) == 2 and all(one.startswith("data:image/png;base64,iVBOR") for one in pictures)
    judged = judging.compare(wrong)
    assert {one.judge: one.missing for one in judged.columns[1:]} == {
        "judge-1": 0,
        "judge-1 with pictures": 0,
        "judge-2": judged.columns[-1].missing,
    }
    assert judged.columns[-1].missing in (2, 3)
    assert len(judged.agreements) == 6
    changed = dataclasses.replace(
        wrong,
        rows=tuple(
            dataclasses.replace(one, failure=dataclasses.replace(one.failure, said="green"))
            for one in wrong.rows
        ),
    )
    assert [one.missing for one in judging.compare(changed).columns] == [0, 5, 5, 5]


@pytest.mark.parametrize(
    ("answer", "category"),
    [
        ('{"category": "spatial_error", "reason": "r"}', Category.SPATIAL_ERROR),
        ('Sure:\n```json\n{"category": "Object Blindness"}\n```', Category.OBJECT_BLINDNESS),
        ('{"category": "semantic-drift", "reason": 7}', Category.SEMANTIC_DRIFT),
        ("**Prior bias**", Category.PRIOR_BIAS),
        ('"other"', Category.OTHER),
        ('{"category": "hallucination"}', None),
        ('{"category": ["other"]}', None),
        ("prior_bias or spatial_error", None),
        ("[1, 2]", None),
        ("{", None),
        ("", None),
    ],
)
def test_only_a_category_counts(answer: str, category: Category | None) -> None:
    parsed = prompt.parse(answer)
    assert (parsed[0] if parsed else None) is category


def test_what_a_judge_is_told() -> None:
    failure = Failure("Is it?", ("yes", "yes"), "x" * 5000, reference="yes", blind="no")
    told = json.loads(prompt.user(failure))
    assert told["accepted_answers"] == ["yes"] and len(told["wrong_answer"]) == 1001
    assert told["uncompressed_model_says"] == "yes"
    assert told["same_model_without_the_picture_says"] == "no"
    assert set(json.loads(prompt.user(Failure("Is it?", ("yes",), "no")))) == {
        "question",
        "accepted_answers",
        "wrong_answer",
    }


def test_a_bundle_without_evidence_or_with_old_metrics(validated: Path) -> None:
    metrics = validated.with_suffix(".evidence") / "metrics.json"
    old = {key: value for key, value in json.loads(metrics.read_text()).items() if key != "taxonomy"}
    metrics.write_text(json.dumps(old))
    with pytest.raises(BundleError, match="before failures were sorted"):
        judging.wrong_answers(validated)
    for file in validated.with_suffix(".evidence").iterdir():
        file.unlink()
    validated.with_suffix(".evidence").rmdir()
    with pytest.raises(BundleError, match="no evidence yet"):
        judging.wrong_answers(validated)


def test_the_command(validated: Path, server: Any) -> None:
    server.always = by_question

    def edgevlm(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "edgevlm_deploy.cli", "judge", str(validated), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    alone = edgevlm()
    assert alone.returncode == 0 and "prior bias" in alone.stdout and "κ" not in alone.stdout
    told = edgevlm("--endpoint", server.url, "--model", "judge-1", "--json")
    assert told.returncode == 0, told.stderr
    data = json.loads(told.stdout)
    assert [one["judge"] for one in data["columns"]] == ["rules", "judge-1"]
    assert data["agreements"][0]["kappa"]["n"] == 3
    server.always = lambda _: (401, {}, b"")
    refused = edgevlm("--endpoint", server.url, "--model", "judge-3")
    assert refused.returncode == 26 and "0 of 4 failures" in refused.stderr
    assert "Traceback" not in refused.stderr


def test_an_interrupt_does_not_wait_for_the_endpoint(validated: Path, server: Any) -> None:
    server.always = lambda _: 60.0
    command = [sys.executable, "-m", "edgevlm_deploy.cli", "judge", str(validated), "--endpoint", server.url]
    process = subprocess.Popen([*command, "--model", "judge-1"], stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 60
    while len(server.requests) < 4 and time.monotonic() < deadline:
        time.sleep(0.05)
    began = time.monotonic()
    process.send_signal(signal.SIGINT)
    _, told = process.communicate(timeout=30)
    assert process.returncode == 130 and time.monotonic() - began < 20
    assert "interrupted; finished stages are kept" in told and "Traceback" not in told


def test_a_picture_that_cannot_be_read_ends_it(validated: Path, server: Any) -> None:
    wrong = judging.wrong_answers(validated)
    for picture in (validated / "images").iterdir():
        picture.write_bytes(b"no picture")
    with pytest.raises(ImageError):
        judging.ask(wrong, endpoint(server), Silent(), pictures=True)
    assert server.requests == []
