"""The demo's scenes as a data set on disk, in edgevlm's JSONL format."""

from __future__ import annotations

import io
import json
from pathlib import Path

from edgevlm_deploy import datasets
from edgevlm_deploy.artifacts import write_bytes_atomic, write_text_atomic
from edgevlm_deploy.datasets import Sample
from edgevlm_deploy.demo.backgrounds import GROUNDS
from edgevlm_deploy.demo.questions import ask_any
from edgevlm_deploy.demo.scenes import SMOOTH, Scene, Split, generator, scene

QUESTION_STREAM = 1
"""Stream of `scenes.generator` that draws the questions; 0 draws the scene."""


def samples(
    split: Split, pictures: int, questions_per_picture: int, directory: Path, repainted: int = 0
) -> tuple[Sample, ...]:
    """Render the first scenes of `split` into `directory` and load them back.

    Writes `<split>.jsonl` and `<split>-<scene>.png`; ids are "<split>-<scene>-<question>". The first
    `repainted` scenes are there a second time, with the same questions on another ground.
    """
    name = split.name.lower()
    directory.mkdir(parents=True, exist_ok=True)
    lines = []
    for index in range(pictures):
        one = scene(split, index)
        picture = f"{name}-{index:06d}.png"
        _write(one, directory / picture)
        ground = GROUNDS[index % len(GROUNDS)]
        if index < repainted:
            _write(scene(split, index, ground=ground), directory / f"{name}-{index:06d}-{ground}.png")
        asked = ask_any(one, questions_per_picture, generator(split, index, QUESTION_STREAM))
        for number, question in enumerate(asked):
            row = {
                "id": f"{name}-{index:06d}-{number}",
                "group": question.kind,
                "image": picture,
                "question": question.text,
                "answer": question.answer,
            }
            if repainted:
                row["background"] = SMOOTH
            lines.append(json.dumps(row, ensure_ascii=False) + "\n")
            if index < repainted:
                row |= {
                    "id": f"{row['id']}-{ground}",
                    "counterfactual_of": row["id"],
                    "image": f"{name}-{index:06d}-{ground}.png",
                    "background": ground,
                }
                lines.append(json.dumps(row, ensure_ascii=False) + "\n")
    questions = directory / f"{name}.jsonl"
    write_text_atomic(questions, "".join(lines))
    return datasets.load(questions)


def _write(one: Scene, path: Path) -> None:
    png = io.BytesIO()
    one.image.save(png, "PNG")
    write_bytes_atomic(path, png.getvalue())
