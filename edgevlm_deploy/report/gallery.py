"""Items that the artifact answered differently, with the picture that both models saw."""

from __future__ import annotations

import base64
import io
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from edgevlm_runner.bundle import Bundle
from edgevlm_runner.contract import CLEAN, PARAPHRASE, PERTURBED, Answer, Item, Kind
from edgevlm_runner.inputs import picture_of
from PIL import Image

from edgevlm_deploy.metrics.confidence import geometric_mean_probability
from edgevlm_deploy.metrics.consistency import Flip
from edgevlm_deploy.metrics.tables import FlippedItem, Metrics

MAX_SHOWN = 300
MAX_PICTURE_BYTES = 3_000_000
"""Of all thumbnails together, before base64 adds a third."""
THUMBNAIL_SIDE = 224
JPEG_QUALITY = 78

DIRECTIONS = {
    Flip.NEGATIVE: "right → wrong",
    Flip.POSITIVE: "wrong → right",
    Flip.NEUTRAL: "other answer, same score",
}
"""In the order in which they are shown. A neutral flip is mostly wrong → wrong in another way."""


@dataclass(frozen=True)
class Thumbnail:
    id: str
    uri: str
    width: int
    height: int


@dataclass(frozen=True)
class Entry:
    """One flipped item. `change` is what was done to the clean one, such as "fog", "perturbed:small_shift" or
    "negated:is_not"; "" for a clean one."""

    id: str
    direction: Flip
    group: str
    condition: str
    kind: Kind
    change: str
    question: str
    accepted: tuple[str, ...]
    """Of the negation probes `is_not` and `absent`: what must not be named."""
    reference: str
    artifact: str
    reference_confidence: float
    artifact_confidence: float
    thumbnail: Thumbnail | None


@dataclass(frozen=True)
class Gallery:
    """`total` counts all flips by direction, `entries` holds those that are shown."""

    entries: tuple[Entry, ...]
    thumbnails: tuple[Thumbnail, ...]
    total: dict[Flip, int]

    @property
    def groups(self) -> tuple[str, ...]:
        return tuple(sorted({entry.group for entry in self.entries if entry.group}))

    @property
    def kinds(self) -> tuple[Kind, ...]:
        found = {entry.kind for entry in self.entries}
        return tuple(kind for kind in Kind if kind in found)

    @property
    def changes(self) -> tuple[str, ...]:
        """Corruptions first, then perturbations and probes."""
        order = list(Kind)
        found = {(order.index(entry.kind), entry.change) for entry in self.entries if entry.change}
        return tuple(change for _, change in sorted(found))

    def shown(self, direction: Flip) -> int:
        return sum(entry.direction is direction for entry in self.entries)


def build(
    bundle: Bundle, reference: Sequence[Answer], artifact: Sequence[Answer], metrics: Metrics
) -> Gallery:
    """Right → wrong first, then clean items first, then all conditions in turn, until the limits are met.

    A picture that several items share is embedded once. Raises ImageError for a picture that cannot
    be read.
    """
    items = {item.id: item for item in bundle.items}
    said_before = {answer.item_id: answer for answer in reference}
    said_now = {answer.item_id: answer for answer in artifact}
    seed = int(bundle.manifest["seeds"]["evaluation"])
    thumbnails: dict[tuple[str, str], Thumbnail] = {}
    entries: list[Entry] = []
    spent = 0
    for flipped in _in_order(metrics.flips)[:MAX_SHOWN]:
        item = items[flipped.id]
        key = (item.image_id, _look(item))
        if item.image and key not in thumbnails:
            picture = picture_of(item, bundle.root, seed)
            assert picture is not None
            thumbnail = _thumbnail(picture, f"picture-{len(thumbnails)}")
            spent += len(thumbnail.uri) * 3 // 4
            if spent > MAX_PICTURE_BYTES:
                break
            thumbnails[key] = thumbnail
        entries.append(_entry(flipped, item, said_before[item.id], said_now[item.id], thumbnails.get(key)))
    counts = Counter(flipped.flip for flipped in metrics.flips)
    return Gallery(
        entries=tuple(entries),
        thumbnails=tuple(thumbnails.values()),
        total={direction: counts[direction] for direction in DIRECTIONS},
    )


def _look(item: Item) -> str:
    """What was done to the picture; probes, paraphrases and other backgrounds are shown as they are."""
    altered = item.corruption is not None and item.corruption[0] != PERTURBED + PARAPHRASE
    return item.condition if altered else CLEAN


def _in_order(flips: Sequence[FlippedItem]) -> list[FlippedItem]:
    directions = list(DIRECTIONS)
    return [
        flipped
        for _, flipped in sorted(
            zip(_turns(flips), flips, strict=True),
            key=lambda row: (directions.index(row[1].flip), row[1].condition != CLEAN, row[0]),
        )
    ]


def _turns(flips: Sequence[FlippedItem]) -> Iterator[int]:
    """0 for the first flip of a direction and condition, 1 for the second …"""
    seen: Counter[tuple[Flip, str]] = Counter()
    for flipped in flips:
        yield seen[flipped.flip, flipped.condition]
        seen[flipped.flip, flipped.condition] += 1


def _entry(
    flipped: FlippedItem, item: Item, before: Answer, now: Answer, thumbnail: Thumbnail | None
) -> Entry:
    return Entry(
        id=item.id,
        direction=flipped.flip,
        group=item.group,
        condition=item.condition,
        kind=item.kind,
        change=item.condition.partition("/")[0] if item.kind is not Kind.CLEAN else "",
        question=item.prompt,
        accepted=tuple(dict.fromkeys(item.answers)),
        reference=before.text,
        artifact=now.text,
        reference_confidence=geometric_mean_probability(before.token_logprobs),
        artifact_confidence=geometric_mean_probability(now.token_logprobs),
        thumbnail=thumbnail,
    )


def _thumbnail(picture: Image.Image, name: str) -> Thumbnail:
    """Never enlarged: what a small picture looks like is part of the evidence."""
    small = picture.convert("RGB")
    small.thumbnail((THUMBNAIL_SIDE, THUMBNAIL_SIDE), Image.Resampling.LANCZOS)
    data = io.BytesIO()
    small.save(data, "JPEG", quality=JPEG_QUALITY, optimize=True)
    uri = "data:image/jpeg;base64," + base64.b64encode(data.getvalue()).decode("ascii")
    return Thumbnail(name, uri, *small.size)
