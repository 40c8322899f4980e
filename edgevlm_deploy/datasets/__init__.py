"""Evaluation and calibration data as their authors publish them, read into `Sample`s.

| format | recognised by |
|---|---|
| jsonl | a `.jsonl` file, or a folder with exactly one |
| POPE | `coco_pope_*.json`, one file or a folder of them |
| VQAv2 | `*questions.json` with `*annotations.json` beside it, or a folder with one such pair |
| picture folder | a folder without JSON files: one sub-folder per answer |
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from edgevlm_deploy.datasets import folder, jsonl, pope, vqav2
from edgevlm_deploy.datasets.counterfactual import separate
from edgevlm_deploy.datasets.disjoint import check_disjoint, split
from edgevlm_deploy.datasets.sample import Problems, Row, Sample, complete
from edgevlm_deploy.errors import DataError, NotFoundError

__all__ = ["Sample", "check_disjoint", "load", "separate", "split"]

FORMATS = (
    "Known formats: a .jsonl file with `image, question, answers` a line; POPE's coco_pope_*.json; VQAv2's "
    "questions and annotations; a folder with one sub-folder of pictures per answer."
)
_HEAD_BYTES = 1 << 16


def load(
    path: Path, images: Path | None = None, question: str | None = None, labelled: bool = False
) -> tuple[Sample, ...]:
    """Read a data set; its format is what is found at `path`.

    images    where relative picture names are looked up; None: beside the file
    question  what to ask of every picture, for picture folders only
    labelled  every picture has a class, and nothing is asked

    Every picture is decoded once. Raises NotFoundError when there is nothing at `path`, DataError with
    file and line of every bad row, or when the format is unknown or ambiguous.
    """
    if not path.exists():
        raise NotFoundError(f"{path}: no such file or folder. {FORMATS}")
    if images is not None and not images.is_dir():
        raise NotFoundError(f"{images}: no such folder of pictures.")
    problems = Problems(path)
    try:
        return complete(_rows(path, images, question, labelled, problems), problems, labelled)
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error}).") from error


def _rows(
    path: Path, images: Path | None, question: str | None, labelled: bool, problems: Problems
) -> list[Row]:
    files = _files(path)
    if not files:
        return folder.read(path, "" if labelled else question, problems)
    if question is not None:
        raise DataError(f"{path}: a question is given for picture folders only; these data have their own.")
    return [row for file in files for row in _read(file, images, problems)]


def _files(path: Path) -> list[Path]:
    """The question files at `path`; none for a picture folder."""
    if path.is_file():
        return [path]
    found = sorted(one for one in path.iterdir() if one.suffix in (".json", ".jsonl") and one.is_file())
    lines = [one for one in found if one.suffix == ".jsonl"]
    polls = [one for one in found if one.name.startswith("coco_pope_") and one.suffix == ".json"]
    questions = [one for one in found if one.name.endswith("questions.json")]
    candidates = [group for group in (lines, polls, questions) if group]
    if not found and folder.answer_folders(path):
        return []
    if len(candidates) != 1 or len(lines) > 1 or len(questions) > 1:
        listed = ", ".join(one.name for group in candidates for one in group) or "no data"
        raise DataError(f"{path}: found {listed}; name one file. {FORMATS}")
    return candidates[0]


def _read(path: Path, images: Path | None, problems: Problems) -> list[Row]:
    """Told apart by the first line: VQAv2 is one object with `questions`, the others one object a line."""
    with path.open("rb") as stream:
        head = stream.read(_HEAD_BYTES)
    if not head.strip():
        raise DataError(f"{path}: the file is empty. {FORMATS}")
    first = _object(head.lstrip().split(b"\n")[0])
    if first is None or "questions" in first:
        if path.suffix == ".json":
            return vqav2.read(path, images, problems)
        return jsonl.read(path, images, problems)
    if {"question_id", "text"} <= set(first):
        return pope.read(path, images, problems)
    if path.suffix == ".jsonl" or "question" in first:
        return jsonl.read(path, images, problems)
    raise DataError(f"{path}: has the keys {', '.join(sorted(first))}. {FORMATS}")


def _object(line: bytes) -> dict[str, Any] | None:
    """A whole JSON object, or None: VQAv2's single line is longer than the head that is looked at."""
    try:
        data = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return data if isinstance(data, dict) else None
