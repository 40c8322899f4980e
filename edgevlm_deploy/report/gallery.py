"""Items that the artifact answered differently or wrongly, with the picture that both models saw."""

from __future__ import annotations

import base64
import io
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from edgevlm_runner.bundle import Bundle
from edgevlm_runner.contract import CLEAN, PARAPHRASE, PERTURBED, Answer, Item, Kind
from edgevlm_runner.inputs import picture_of
from PIL import Image

from edgevlm_deploy.metrics.confidence import geometric_mean_probability
from edgevlm_deploy.metrics.consistency import Flip
from edgevlm_deploy.metrics.tables import FailedItem, Metrics
from edgevlm_deploy.report.names import CATEGORIES, EMPTY

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
STAYED_WRONG = "wrong as before"
"""Failures whose answer did not change; shown last."""


@dataclass(frozen=True)
class Thumbnail:
    id: str
    uri: str
    width: int
    height: int


@dataclass(frozen=True)
class Entry:
    """One item. `change` is what was done to the clean one, such as "fog", "perturbed:small_shift" or
    "negated:is_not"; "" for a clean one."""

    id: str
    direction: Flip | None
    """None: the answer stayed, and it is wrong."""
    category: str
    """Of the artifact's failure, in words; "" when its answer is right."""
    reason: str
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
    """`total` counts all flips by direction and `stayed_wrong` the failures that are none of them; `entries`
    holds those that are shown."""

    entries: tuple[Entry, ...]
    thumbnails: tuple[Thumbnail, ...]
    total: dict[Flip, int]
    stayed_wrong: int

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

    @property
    def categories(self) -> tuple[str, ...]:
        """In the order of the taxonomy."""
        names = {entry.category for entry in self.entries}
        return tuple(name for name in (*CATEGORIES.values(), EMPTY) if name in names)

    def shown(self, direction: Flip | None) -> int:
        return sum(entry.direction is direction for entry in self.entries)


def build(
    bundle: Bundle,
    reference: Sequence[Answer],
    artifact: Sequence[Answer],
    metrics: Metrics,
    stayed_wrong: bool = True,
) -> Gallery:
    """Right → wrong first, then clean items first, then all conditions and categories in turn, until the
    limits are met. Without `stayed_wrong`, only answers that changed.

    A picture that several items share is embedded once. Raises ImageError for a picture that cannot
    be read.
    """
    items = {item.id: item for item in bundle.items}
    said_before = {answer.item_id: answer for answer in reference}
    said_now = {answer.item_id: answer for answer in artifact}
    failures = {failure.id: failure for failure in metrics.failures}
    flips = {flipped.id: flipped.flip for flipped in metrics.flips}
    stayed = [name for name in failures if name not in flips] if stayed_wrong else []
    seed = int(bundle.manifest["seeds"]["evaluation"])
    thumbnails: dict[tuple[str, str], Thumbnail] = {}
    entries: list[Entry] = []
    spent = 0
    for name in _in_order([*flips, *stayed], items, flips, failures)[:MAX_SHOWN]:
        item = items[name]
        key = _pixels(item)
        if item.image and key not in thumbnails:
            picture = picture_of(item, bundle.root, seed)
            assert picture is not None
            thumbnail = _thumbnail(picture, f"picture-{len(thumbnails)}")
            spent += len(thumbnail.uri) * 3 // 4
            if spent > MAX_PICTURE_BYTES:
                break
            thumbnails[key] = thumbnail
        entries.append(
            _entry(
                item,
                flips.get(name),
                failures.get(name),
                said_before[name],
                said_now[name],
                thumbnails.get(key),
            )
        )
    counts = Counter(flips.values())
    return Gallery(
        entries=tuple(entries),
        thumbnails=tuple(thumbnails.values()),
        total={direction: counts[direction] for direction in DIRECTIONS},
        stayed_wrong=len(stayed),
    )


def _pixels(item: Item) -> tuple[str, str]:
    """What the picture that the models saw depends on; a probe or a paraphrase leaves it as it is."""
    altered = item.corruption is not None and item.corruption[0] != PERTURBED + PARAPHRASE
    return item.image_id, item.condition if altered else CLEAN


def _in_order(
    names: Sequence[str],
    items: Mapping[str, Item],
    flips: Mapping[str, Flip],
    failures: Mapping[str, FailedItem],
) -> list[str]:
    directions: list[Flip | None] = [*DIRECTIONS, None]
    seen: Counter[tuple[Flip | None, str, str]] = Counter()
    keyed = []
    for name in names:
        direction, condition = flips.get(name), items[name].condition
        kind = (direction, condition, _category(failures.get(name)))
        keyed.append(((directions.index(direction), condition != CLEAN, seen[kind]), name))
        seen[kind] += 1
    return [name for _, name in sorted(keyed, key=lambda row: row[0])]


def _category(failure: FailedItem | None) -> str:
    if failure is None:
        return ""
    return EMPTY if failure.category is None else CATEGORIES[failure.category]


def _entry(
    item: Item,
    direction: Flip | None,
    failure: FailedItem | None,
    before: Answer,
    now: Answer,
    thumbnail: Thumbnail | None,
) -> Entry:
    return Entry(
        id=item.id,
        direction=direction,
        category=_category(failure),
        reason=failure.reason if failure else "",
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
