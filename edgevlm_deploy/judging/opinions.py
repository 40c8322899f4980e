"""What a language model said about failures: one file a judge, a line an opinion, written as they come.

A killed run leaves whole lines and at most one half; what is there is not asked again.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from edgevlm_runner.contract import Item
from edgevlm_runner.storage import storage_errors
from pydantic import ValidationError

from edgevlm_deploy.artifacts import digest
from edgevlm_deploy.config import Frozen
from edgevlm_deploy.judging import prompt
from edgevlm_deploy.metrics.taxonomy import Category, Failure

SUFFIX = ".judgements"
"""Of the folder beside a bundle."""
_MAX_KEPT = 2000
"""Characters of an answer."""

Line = TypeVar("Line", bound=Frozen)


class Judge(Frozen):
    """Who judges, and on what: another prompt or another picture setting is another judge."""

    model: str
    endpoint: str
    pictures: bool
    """Whether it sees the pictures."""
    system: str = prompt.SYSTEM

    @property
    def name(self) -> str:
        return f"{self.model} with pictures" if self.pictures else self.model

    @property
    def file(self) -> str:
        slug = re.sub(r"[^A-Za-z0-9._-]+", "-", self.model).strip("-.")[:60] or "model"
        return f"{slug}-{digest(self)[:12]}.jsonl"


class Opinion(Frozen):
    """The answer to one failure, as it was given; what it means is read off it again each time."""

    item: str
    about: str
    """`identity` of the failure: an opinion about another answer to the item does not count."""
    answer: str

    @property
    def category(self) -> Category | None:
        """None: the answer cannot be parsed."""
        parsed = prompt.parse(self.answer)
        return parsed[0] if parsed else None


@dataclass(frozen=True)
class Wrong:
    """One wrong answer of the artifact that is not empty."""

    item: Item
    failure: Failure

    def identity(self, pictures: bool) -> str:
        """Digest of what a judge is shown. Without pictures, two items may be one and the same failure."""
        seen = [self.item.image_id, self.item.condition] if pictures else None
        return digest({"failure": self.failure, "picture": seen})[:16]


@dataclass(frozen=True)
class Opinions:
    """The file of one judge."""

    judge: Judge
    path: Path

    def read(self) -> dict[str, Opinion]:
        """Identity of a failure → opinion."""
        return {one.about: one for one in _lines(self.path, Opinion)}

    def append(self, wrong: Wrong, answer: str) -> None:
        """Raises StorageError when the disk is full."""
        about = wrong.identity(self.judge.pictures)
        opinion = Opinion(item=wrong.item.id, about=about, answer=answer[:_MAX_KEPT])
        with storage_errors(self.path), self.path.open("a", encoding="utf-8") as file:
            file.write(opinion.model_dump_json() + "\n")
            file.flush()
            os.fsync(file.fileno())


def open_opinions(folder: Path, judge: Judge) -> Opinions:
    """The judge's file in `folder`; begun, with the judge in its first line, where there is none.

    Half a line at the end, of a run that was killed, is cut off.
    """
    path = folder / judge.file
    with storage_errors(path):
        folder.mkdir(exist_ok=True)
        if not path.exists():
            path.write_text(judge.model_dump_json() + "\n", encoding="utf-8")
        data = path.read_bytes()
        if not data.endswith(b"\n"):
            whole = data[: data.rfind(b"\n") + 1]
            path.write_bytes(whole or f"{judge.model_dump_json()}\n".encode())
    return Opinions(judge, path)


def all_opinions(folder: Path) -> list[Opinions]:
    """Of every judge that was asked with the prompt of this edgevlm."""
    found = []
    for path in sorted(folder.glob("*.jsonl")) if folder.is_dir() else ():
        judge = next(_lines(path, Judge), None)
        if judge is not None and judge.system == prompt.SYSTEM and judge.file == path.name:
            found.append(Opinions(judge, path))
    return found


def _lines(path: Path, cls: type[Line]) -> Iterator[Line]:
    """The lines that hold a `cls`; others (the judge's own, half ones) are passed over."""
    with storage_errors(path):
        text = path.read_text(encoding="utf-8", errors="replace")
    for line in text.split("\n"):
        found = _parsed(line, cls)
        if found is not None:
            yield found


def _parsed(line: str, cls: type[Line]) -> Line | None:
    try:
        return cls.model_validate_json(line)
    except ValidationError:
        return None
