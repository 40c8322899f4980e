"""POPE (Li et al., EMNLP 2023) as published: `coco_pope_{random,popular,adversarial}.json`.

Each file is JSON Lines in spite of its name: `question_id, image, text, label`. The pictures are
COCO val2014. Question ids repeat between the files, so a sample's id is "<group>-<question_id>".
"""

from __future__ import annotations

from pathlib import Path

from edgevlm_deploy.datasets.jsonl import objects
from edgevlm_deploy.datasets.sample import Problems, Row, Sample, names, text

KEYS = {"question_id", "image", "text", "label"}
SETTINGS = ("random", "popular", "adversarial")
"""How the absent object was drawn; it is the group of a sample."""


def read(path: Path, images: Path | None, problems: Problems) -> list[Row]:
    """Rows of one published file; the group comes from the file's name."""
    root = images or path.parent
    setting = path.stem.rpartition("_")[2]
    group = setting if setting in SETTINGS else "existence"
    rows = []
    for number, data in objects(path, problems):
        where = f"{path.name}:{number}"
        missing, unknown = KEYS - set(data), set(data) - KEYS
        if missing or unknown:
            problems.add(
                where, f"lacks {names(missing) or 'nothing'}, has unknown keys {names(unknown) or 'none'}."
            )
            continue
        question, image, identity = (text(data[key]) for key in ("text", "image", "question_id"))
        if question is None or not image or identity is None:
            problems.add(where, "question_id, image and text must be text or numbers.")
        elif data["label"] not in ("yes", "no"):
            problems.add(where, f'label: expected "yes" or "no", got {data["label"]!r}.')
        else:
            sample = Sample(f"{group}-{identity}", group, root / image, "", question, (data["label"],))
            rows.append(Row(where, sample))
    return rows
