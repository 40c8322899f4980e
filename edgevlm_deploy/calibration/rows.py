"""A calibration set on disk: `rows.jsonl` and `pictures/<SHA-256>.<extension>`."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgevlm_runner.preprocess import load_image

from edgevlm_deploy.artifacts import (
    canonical_json,
    digest,
    file_digest,
    write_bytes_atomic,
    write_text_atomic,
)
from edgevlm_deploy.calibration.draw import draw
from edgevlm_deploy.calibration.pictures import Content, assign, changed
from edgevlm_deploy.datasets import Sample
from edgevlm_deploy.errors import DataError
from edgevlm_deploy.recipe import Calibration, Composition

ROWS = "rows.jsonl"


@dataclass(frozen=True)
class Row:
    """One sample as quantisation sees it."""

    sample_id: str
    group: str
    content: Content
    image: str
    """`pictures/<SHA-256 of that file>.<extension>`, "" without a picture."""
    source_image_id: str
    """SHA-256 of the picture before it was darkened or the like: what must not be evaluated on."""
    prompt: str
    answer: str
    """The commonest accepted answer, "" when none is known."""


@dataclass(frozen=True)
class CalibrationSet:
    directory: Path
    digest: str
    """Over all rows, and through the names of the pictures over every pixel."""
    rows: tuple[Row, ...]

    @property
    def composition(self) -> dict[str, int]:
        """Number of pictures by content, for the manifest."""
        found = Counter(row.content for row in self.rows if row.image)
        return {content.value: found[content] for content in Content if found[content]}


def build(samples: Sequence[Sample], settings: Calibration, directory: Path) -> CalibrationSet:
    """Draw `settings.samples` of the samples, mix the pictures and write them to `directory`.

    Deterministic in (samples, settings). Raises DataError when the data is too small.
    """
    drawn = draw(samples, settings.samples, settings.seed, settings.modality_balanced)
    drawn = tuple(_shown(sample, settings.composition) for sample in drawn)
    contents = assign(drawn, settings.mixture, settings.seed)
    (directory / "pictures").mkdir(parents=True, exist_ok=True)
    rows = tuple(
        Row(
            sample_id=sample.id,
            group=sample.group,
            content=content,
            image=_write_picture(sample, content, settings.seed, directory),
            source_image_id=sample.image_id,
            prompt=sample.prompt,
            answer=commonest(sample.answers),
        )
        for sample, content in zip(drawn, contents, strict=True)
    )
    write_text_atomic(directory / ROWS, "".join(canonical_json(row) + "\n" for row in rows))
    return CalibrationSet(directory, digest(rows), rows)


def _shown(sample: Sample, composition: Composition) -> Sample:
    """Raises DataError when nothing of the sample would be left."""
    if composition is Composition.TEXT_ONLY:
        return dataclasses.replace(sample, image=None)
    if composition is Composition.IMAGE_ONLY:
        if sample.image is None:
            raise DataError(
                f"calibration sample {sample.id} has no picture, and `calibration.composition: image_only` "
                "shows nothing else. Give pictures or choose another composition."
            )
        return dataclasses.replace(sample, prompt="", answers=())
    return sample


def load(directory: Path) -> CalibrationSet:
    """Read what `build` wrote. Raises DataError when a row or a picture is not as it was."""
    path = directory / ROWS
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
        rows = tuple(_row(json.loads(line)) for line in lines)
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise DataError(
            f"{path}: not a calibration set ({error}). Remove the folder and build it again."
        ) from error
    for name in sorted({row.image for row in rows if row.image}):
        picture = directory / name
        if not picture.is_file() or file_digest(picture) != picture.stem:
            raise DataError(f"{picture}: missing or altered. Remove {directory} and build it again.")
    return CalibrationSet(directory, digest(rows), rows)


def commonest(answers: Sequence[str]) -> str:
    """The answer that most people gave, the first of them on a tie."""
    return Counter(answers).most_common(1)[0][0] if answers else ""


def _row(data: dict[str, Any]) -> Row:
    if set(data) != {field.name for field in dataclasses.fields(Row)}:
        raise ValueError(f"unexpected keys {sorted(data)}")
    return Row(**{**data, "content": Content(data["content"])})


def _write_picture(sample: Sample, content: Content, seed: int, directory: Path) -> str:
    """A clean picture is copied byte by byte, a changed one is written as PNG."""
    if sample.image is None:
        return ""
    data, suffix = sample.image.read_bytes(), sample.image.suffix.lower()
    if content is not Content.CLEAN:
        png = io.BytesIO()
        changed(load_image(data), content, seed, sample.id).save(png, "PNG")
        data, suffix = png.getvalue(), ".png"
    name = f"pictures/{hashlib.sha256(data).hexdigest()}{suffix}"
    if content is Content.CLEAN and sample.image_id not in name:
        raise DataError(f"{sample.image}: changed since sample {sample.id} was read.")
    if not (directory / name).exists():
        write_bytes_atomic(directory / name, data)
    return name
