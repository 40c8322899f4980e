"""edgevlm's own format: one JSON object a line.

    {"image": "cat.jpg", "question": "What animal is this?", "answers": ["cat", "kitten"]}

`image` is relative to the file (or to the given picture folder), absolute, or null for a question
without a picture. `answers` is a list, `answer` a single one; both may be absent in calibration data.
`id` (default: the line number), `group` and `background` (default: "") are optional. With
`counterfactual_of` a row names another one whose question it asks again about the same picture on another
background. Pictures that are only classified have a class in place of question and answers:

    {"image": "cat.jpg", "label": "cat", "background": "beach", "split": "counter"}

`split` ("common" or "counter") is optional, and so is `caption`, a sentence that is true of the picture. A
picture of none of the classes has `"ood": true` and no label.
The file is the user's own, so absolute paths and `..` are followed.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from edgevlm_deploy.datasets.sample import Problems, Row, Sample, names, text
from edgevlm_deploy.errors import DataError

KEYS = {
    *("image", "question", "answer", "answers", "id", "group", "background", "counterfactual_of"),
    *("label", "split", "ood", "caption"),
}
SPLITS = ("", "common", "counter")


def read(path: Path, images: Path | None, problems: Problems) -> list[Row]:
    """One row per non-empty line; what is wrong goes to `problems`."""
    root = images or path.parent
    rows = []
    for number, data in objects(path, problems):
        where = f"{path.name}:{number}"
        sample = _sample(data, f"{number:06d}", root, where, problems)
        if sample is not None:
            rows.append(Row(where, sample))
    return rows


def objects(path: Path, problems: Problems) -> list[tuple[int, dict[str, Any]]]:
    """(line number, object) of every non-empty line that is a JSON object."""
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read as UTF-8 text ({error}).") from error
    found = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            data = json.loads(line)
        except (ValueError, RecursionError) as error:
            problems.add(f"{path.name}:{number}", f"not JSON ({error}).")
            continue
        if isinstance(data, dict):
            found.append((number, data))
        else:
            problems.add(f"{path.name}:{number}", f"expected an object, got {type(data).__name__}.")
    return found


def _sample(
    data: dict[str, Any], default_id: str, root: Path, where: str, problems: Problems
) -> Sample | None:
    before = len(problems.found)
    if unknown := set(data) - KEYS:
        problems.add(where, f"unknown key {names(unknown)}; known are {names(KEYS)}.")
    if len({"answer", "answers", "label"} & set(data)) > 1:
        problems.add(where, "has more than one of `answer`, `answers` and `label`; keep one.")
    image = data.get("image")
    if image is not None and (not isinstance(image, str) or not image):
        problems.add(where, f"image: expected a path or null, got {image!r}.")
    is_classified = "label" in data or "ood" in data
    question = text(data.get("question", "" if is_classified else None))
    if question is None:
        problems.add(where, f"question: expected text, got {data.get('question')!r}.")
    empty = dict.fromkeys(("group", "background", "counterfactual_of", "split", "caption"), "")
    defaults = {"id": default_id, **empty}
    values = {key: text(data.get(key, default)) for key, default in defaults.items()}
    for key, value in values.items():
        if value is None:
            problems.add(where, f"{key}: expected text, got {data[key]!r}.")
    if values["split"] not in SPLITS:
        problems.add(where, f'split: expected "common" or "counter", got {data["split"]!r}.')
    if not isinstance(data.get("ood", False), bool):
        problems.add(where, f"ood: expected true or false, got {data['ood']!r}.")
    single = [data[key] for key in ("answer", "label") if key in data]
    answers = data.get("answers", single)
    accepted = [text(one) for one in answers] if isinstance(answers, list) else [None]
    if None in accepted:
        problems.add(where, f"answers: expected text or a list of texts, got {answers!r}.")
    if len(problems.found) > before:
        return None
    return Sample(
        id=str(values["id"]),
        group=str(values["group"]),
        image=root / image if image else None,
        image_id="",
        prompt=str(question),
        answers=tuple(str(one) for one in accepted),
        background=str(values["background"]),
        split=str(values["split"]),
        ood=bool(data.get("ood", False)),
        counterfactual_of=str(values["counterfactual_of"]),
        caption=str(values["caption"]),
    )
