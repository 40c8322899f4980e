"""VQAv2 (Goyal et al., CVPR 2017) as published: one questions file, one annotations file.

Ten answers a question; the picture is `COCO_<data_subtype>_<image_id, 12 digits>.jpg` in the given
folder, in `<data_subtype>/` beside the questions, or beside the questions themselves.
The group of a sample is the annotation's `answer_type` (yes/no, number, other).
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from edgevlm_deploy.datasets.sample import Problems, Row, Sample
from edgevlm_deploy.errors import DataError

ANSWERS = 10


def read(questions: Path, images: Path | None, problems: Problems) -> list[Row]:
    """Rows of a questions file; its annotations stand beside it."""
    annotations = annotations_of(questions)
    asked, said = _load(questions), _load(annotations)
    subtype = asked.get("data_subtype")
    if not isinstance(subtype, str) or not re.fullmatch(r"[A-Za-z0-9-]+", subtype):
        raise DataError(f'{questions}: data_subtype: expected a name like "val2014", got {subtype!r}.')
    beside = questions.parent / subtype
    root = images or (beside if beside.is_dir() else questions.parent)
    by_id = {
        one["question_id"]: one
        for one in _objects(said, "annotations", annotations)
        if isinstance(one.get("question_id"), int)
    }
    rows = []
    for number, question in enumerate(_objects(asked, "questions", questions)):
        where = f"{questions.name}: questions[{number}]"
        identity, image_id = question.get("question_id"), question.get("image_id")
        if not isinstance(identity, int) or not isinstance(image_id, int) or image_id < 0:
            problems.add(where, "question_id and image_id must be whole numbers.")
            continue
        if identity not in by_id:
            problems.add(where, f"question {identity} has no annotation in {annotations.name}.")
            continue
        image = root / f"COCO_{subtype}_{image_id:012d}.jpg"
        sample = _sample(question, by_id[identity], image, where, problems)
        if sample is not None:
            rows.append(Row(where, sample))
    return rows


def annotations_of(questions: Path) -> Path:
    """`v2_OpenEnded_mscoco_val2014_questions.json` → `v2_mscoco_val2014_annotations.json` beside it."""
    subset = questions.name.replace("OpenEnded_", "").replace("MultipleChoice_", "")
    annotations = questions.with_name(subset.replace("questions", "annotations"))
    if annotations == questions or not annotations.is_file():
        expected = annotations.name if annotations != questions else "…_annotations.json"
        raise DataError(
            f"{questions}: its annotations are missing. VQAv2 has a file …_questions.json and, beside it, "
            f"{expected}."
        )
    return annotations


def _sample(
    question: dict[str, Any], annotation: dict[str, Any], image: Path, where: str, problems: Problems
) -> Sample | None:
    prompt, kind, answers = question.get("question"), annotation.get("answer_type"), annotation.get("answers")
    if not isinstance(prompt, str) or not isinstance(kind, str):
        problems.add(where, "question and answer_type must be text.")
        return None
    if not isinstance(answers, list):
        problems.add(where, f"answers must be a list, got {answers!r}.")
        return None
    if annotation.get("image_id") != question["image_id"]:
        problems.add(where, f"its annotation is about image {annotation.get('image_id')!r}.")
        return None
    said = [one.get("answer") for one in answers if isinstance(one, dict)]
    texts = tuple(one for one in said if isinstance(one, str))
    if len(texts) != ANSWERS:
        problems.add(where, f"expected {ANSWERS} answers with text, got {len(texts)}.")
        return None
    return Sample(str(question["question_id"]), kind, image, "", prompt, texts)


def _load(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path}: not a JSON file ({error}).") from error
    if not isinstance(data, dict):
        raise DataError(f"{path}: expected a JSON object, got {type(data).__name__}.")
    return data


def _objects(data: dict[str, Any], key: str, path: Path) -> list[dict[str, Any]]:
    values = data.get(key)
    if not isinstance(values, list) or not all(isinstance(one, dict) for one in values):
        raise DataError(f"{path}: `{key}` must be a list of objects, as VQAv2 publishes it.")
    return values
