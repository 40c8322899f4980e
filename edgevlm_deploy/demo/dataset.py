"""The demo's scenes as a data set on disk, in edgevlm's JSONL format.

`python -m edgevlm_deploy.demo.dataset OUT` writes it for `edgevlm compile demo --data`.
"""

from __future__ import annotations

import argparse
import io
import json
from functools import partial
from pathlib import Path

from edgevlm_deploy import datasets
from edgevlm_deploy.artifacts import write_bytes_atomic, write_text_atomic
from edgevlm_deploy.datasets import Sample
from edgevlm_deploy.demo.backgrounds import GROUNDS
from edgevlm_deploy.demo.questions import ask_any
from edgevlm_deploy.demo.scenes import SMOOTH, Scene, Split, crowded, generator, scene

QUESTION_STREAM = 1
"""Stream of `scenes.generator` that draws the questions; 0 draws the scene."""
CROWDED = " in a crowd"
"""What the group of a question about a crowded scene ends in."""


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m edgevlm_deploy.demo.dataset",
        description="Write scenes of the demo, with questions, for `edgevlm compile demo --data`.",
    )
    parser.add_argument("out", type=Path, help="folder for the pictures and SPLIT.jsonl")
    names = [split.name.lower() for split in Split]
    parser.add_argument("--split", choices=names, default=Split.EVALUATION.name.lower())
    parser.add_argument("--pictures", type=int, default=600)
    parser.add_argument("--questions", type=int, default=4, help="per picture")
    parser.add_argument("--repainted", type=int, default=0, help="so many of them also on another ground")
    parser.add_argument(
        "--crowded", action="store_true", help="crowd every second scene: more than the demo learnt"
    )
    given = parser.parse_args()
    split = Split[given.split.upper()]
    made = samples(split, given.pictures, given.questions, given.out, given.repainted, given.crowded)
    print(f"{given.out / given.split}.jsonl: {len(made):,} questions")


def samples(
    split: Split,
    pictures: int,
    questions_per_picture: int,
    directory: Path,
    repainted: int = 0,
    crowds: bool = False,
) -> tuple[Sample, ...]:
    """Render the first scenes of `split` into `directory` and load them back.

    Writes `<split>.jsonl` and `<split>-<scene>.png`; ids are "<split>-<scene>-<question>". The first
    `repainted` scenes are there a second time, with the same questions on another ground. With `crowds`
    every second scene is a crowded one, and its questions are groups of their own; since grounds take turns
    too, all crowds are repainted with the same one.
    """
    name = split.name.lower()
    directory.mkdir(parents=True, exist_ok=True)
    lines = []
    for index in range(pictures):
        is_crowded = crowds and index % 2 == 1
        painted = partial(crowded if is_crowded else scene, split, index)
        one = painted()
        picture = f"{name}-{index:06d}.png"
        _write(one, directory / picture)
        ground = GROUNDS[index % len(GROUNDS)]
        if index < repainted:
            _write(painted(ground=ground), directory / f"{name}-{index:06d}-{ground}.png")
        asked = ask_any(one, questions_per_picture, generator(split, index, QUESTION_STREAM))
        for number, question in enumerate(asked):
            row = {
                "id": f"{name}-{index:06d}-{number}",
                "group": question.kind + (CROWDED if is_crowded else ""),
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


if __name__ == "__main__":
    main()
