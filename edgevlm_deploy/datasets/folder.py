"""A folder of pictures sorted into one folder per answer: `FOLDER/<answer>/<picture>`.

One question is asked of every picture: the given one, else the text of `FOLDER/question.txt`; where
pictures are classified, none. An underscore in a folder's name stands for a space in the answer.
"""

from __future__ import annotations

from pathlib import Path

from edgevlm_deploy.datasets.sample import Problems, Row, Sample
from edgevlm_deploy.errors import DataError

SUFFIXES = {".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp"}
QUESTION = "question.txt"


def read(path: Path, question: str | None, problems: Problems) -> list[Row]:
    """One row per picture; files that are no pictures, and deeper folders, are problems.

    question: "" asks nothing, None takes the folder's own.
    """
    asked = _question(path) if question is None else question
    rows = []
    for folder in answer_folders(path):
        answer = folder.name.replace("_", " ")
        for picture in sorted(folder.iterdir()):
            if picture.name.startswith("."):
                continue
            name = f"{folder.name}/{picture.name}"
            if not picture.is_file() or picture.suffix.lower() not in SUFFIXES:
                problems.add(name, f"not a picture ({', '.join(sorted(SUFFIXES))}).")
                continue
            rows.append(Row(name, Sample(name, "", picture, "", asked, (answer,))))
    return rows


def answer_folders(path: Path) -> list[Path]:
    return sorted(one for one in path.iterdir() if one.is_dir() and not one.name.startswith("."))


def _question(path: Path) -> str:
    file = path / QUESTION
    if not file.is_file():
        raise DataError(
            f"{path}: a picture folder needs the question to ask. Write it into {file} or pass one."
        )
    try:
        return file.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{file}: cannot be read as UTF-8 text ({error}).") from error
