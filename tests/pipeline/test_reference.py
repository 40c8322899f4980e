"""Reference answers: batching changes nothing that matters, and a killed run goes on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from edgevlm_runner.bundle import Bundle, open_bundle
from edgevlm_runner.contract import Answer, read_jsonl
from edgevlm_runner.inputs import Inputs

from edgevlm_deploy import reference, source

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def bundle(compiled: Path) -> Bundle:
    return open_bundle(compiled)


@pytest.fixture(scope="module")
def model(checkpoint: Path) -> Any:
    return source.load(source.inspect(checkpoint))


def answers(bundle: Bundle, model: Any, out: Path) -> tuple[list[Answer], list[int]]:
    """What `reference.answer` writes, and the steps of its progress."""
    steps: list[int] = []
    seed = bundle.manifest["seeds"]["evaluation"]
    tokenizer = bundle.path("tokenizer/tokenizer.json")
    out.mkdir(exist_ok=True)
    reference.answer(model, bundle.items, bundle.root, seed, bundle.model, tokenizer, out, steps.append)
    return read_jsonl(out / "answers.jsonl", Answer), steps


def test_batched_and_single_answers_agree(bundle: Bundle, model: Any, tmp_path: Path) -> None:
    batched, steps = answers(bundle, model, tmp_path)
    again = read_jsonl(tmp_path / "again.jsonl", Answer)
    by_id = {one.item_id: one for one in batched}
    assert [one.item_id for one in batched] == [item.id for item in bundle.items]
    assert sum(steps) == len(bundle.items)
    for one in again:
        assert one.token_ids == by_id[one.item_id].token_ids
        assert one.token_logprobs == pytest.approx(by_id[one.item_id].token_logprobs, abs=1e-4)
    assert batched == read_jsonl(bundle.path("reference.jsonl"), Answer)


def test_a_killed_run_keeps_whole_lines_only(bundle: Bundle, model: Any, tmp_path: Path) -> None:
    whole, _ = answers(bundle, model, tmp_path / "whole")
    killed = tmp_path / "killed"
    killed.mkdir()
    lines = (tmp_path / "whole" / "answers.jsonl").read_text().splitlines(keepends=True)
    (killed / "partial.jsonl").write_text("".join(lines[:5]) + lines[5][:20])
    resumed, steps = answers(bundle, model, killed)
    assert steps[0] == 5
    assert [one.token_ids for one in resumed] == [one.token_ids for one in whole]
    assert not (killed / "partial.jsonl").exists()


def test_collate_pads_on_the_left_and_leaves_absent_tiles_empty(bundle: Bundle) -> None:
    short = Inputs(None, np.array([[5, 6]]))
    long = Inputs(np.ones((1, 3, 96, 96), np.float32), np.array([[1, 2, 3]]))
    made = reference.collate([short, long], bundle.model)
    assert made["attention_mask"].tolist() == [[0, 1, 1], [1, 1, 1]]
    assert made["input_ids"][0, 1:].tolist() == [5, 6]
    assert not made["pixel_attention_mask"][0].any()
    assert made["pixel_attention_mask"][1].all()
