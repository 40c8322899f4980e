"""One question about one picture, or one picture and its class, as every data format delivers it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path

from edgevlm_runner.preprocess import load_image
from edgevlm_runner.storage import file_digest

from edgevlm_deploy.errors import DataError, ImageError

SHOWN = 10
"""Bad rows that an error spells out; the others are counted."""


@dataclass(frozen=True)
class Sample:
    """A question, its picture (None for text only) and the accepted answers (none when not known)."""

    id: str
    group: str
    """Kind of question, "" when the data names none."""
    image: Path | None
    image_id: str
    """SHA-256 of the picture's file, "" without a picture."""
    prompt: str
    """"" where nothing is asked: the picture is to be classified."""
    answers: tuple[str, ...]
    background: str = ""
    """What is behind the objects, "" when the data do not say."""
    counterfactual_of: str = ""
    """Id of the sample that this one repeats on a picture with another background; "" for all others."""
    split: str = ""
    """"common" or "counter": whether class and background usually go together."""
    ood: bool = False
    """Whether the picture shows none of the classes."""
    caption: str = ""
    """A sentence that is true of the picture, "" when the data have none."""

    @property
    def cluster(self) -> str:
        """Samples of one picture are not independent; without a picture the question is the cluster."""
        return self.image_id or f"text:{self.prompt}"


@dataclass(frozen=True)
class Row:
    """A sample before its picture was looked at, and where it stands in the data ("file:line")."""

    where: str
    sample: Sample


@dataclass
class Problems:
    """Everything wrong with one source, so that the user hears of all of it at once."""

    source: Path
    found: list[str] = field(default_factory=list)

    def add(self, where: str, what: str) -> None:
        self.found.append(f"{where}: {what}")

    def check(self) -> None:
        """Raises DataError with the first problems and their number, if there are any."""
        if not self.found:
            return
        lines = [f"{self.source}: {len(self.found)} row(s) cannot be used."]
        lines += [f"  {problem}" for problem in self.found[:SHOWN]]
        if len(self.found) > SHOWN:
            lines.append(f"  … and {len(self.found) - SHOWN} more.")
        raise DataError("\n".join(lines))


def complete(rows: list[Row], problems: Problems, labelled: bool) -> tuple[Sample, ...]:
    """Decode every picture once, add its digest, and check what holds for all formats.

    labelled: pictures with a class each, about which nothing is asked.
    Raises DataError that lists every bad row: empty question, repeated id, missing or broken picture.
    """
    pictures: dict[Path, str | ImageError] = {}
    seen: dict[str, str] = {}
    samples: list[Sample] = []
    for row in rows:
        sample = row.sample
        if labelled:
            _check_label(row, problems)
        elif not sample.prompt.strip():
            problems.add(row.where, "the question is empty.")
        if not all(
            map(
                _is_unicode,
                (sample.id, sample.group, sample.prompt, sample.background, sample.caption, *sample.answers),
            )
        ):
            problems.add(row.where, "holds half a surrogate pair, which is no Unicode text.")
        if sample.id in seen:
            problems.add(row.where, f"id {sample.id!r} was used before, at {seen[sample.id]}.")
        seen.setdefault(sample.id, row.where)
        if sample.image is not None:
            identity = pictures.get(sample.image)
            if identity is None:
                identity = pictures[sample.image] = _identify(sample.image)
            if isinstance(identity, ImageError):
                problems.add(row.where, str(identity))
                continue
            sample = replace(sample, image_id=identity)
        samples.append(sample)
    problems.check()
    if not samples:
        raise DataError(f"{problems.source}: holds no questions.")
    return tuple(samples)


def _check_label(row: Row, problems: Problems) -> None:
    sample = row.sample
    if sample.prompt:
        problems.add(row.where, "asks a question; a dual encoder is given a picture and a `label`.")
    if sample.image is None:
        problems.add(row.where, "has no picture to classify.")
    if len(sample.answers) != (0 if sample.ood else 1):
        problems.add(row.where, "a picture has one `label`, and none when it is marked `ood`.")


def _identify(path: Path) -> str | ImageError:
    """The file's digest after a full decode, or what is wrong with it."""
    try:
        load_image(path)
        return file_digest(path)
    except ImageError as error:
        return error


def _is_unicode(value: str) -> bool:
    return not any("\ud800" <= character <= "\udfff" for character in value)


def text(value: object) -> str | None:
    """Strings and JSON numbers as text; None for what is neither (bool, null, lists, objects)."""
    if isinstance(value, str):
        return value
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return str(value)
    return None


def names(keys: Iterable[str]) -> str:
    return ", ".join(sorted(keys))
