"""Which of the given questions are asked."""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Sequence

from edgevlm_runner.contract import CLEAN, Item

from edgevlm_deploy.errors import DataError


def select(items: Sequence[Item], count: int, *, seed: int) -> tuple[Item, ...]:
    """At most `count` clean items, spread evenly over groups first and over pictures second.

    The draw is a function of the seed and of the items' ids alone: another order of `items`
    gives the same table, and so does another machine.
    Raises DataError when there are no items, ids repeat, an item is not clean or has no answer.
    """
    _check(items)
    groups: dict[str, list[Item]] = defaultdict(list)
    for item in spread_over_images(items, seed=seed):
        groups[item.group].append(item)
    # One item of each group in turn, until the groups or the count run out.
    rounds = sorted((place, group) for group, members in groups.items() for place in range(len(members)))
    return tuple(groups[group][place] for place, group in rounds[:count])


def spread_over_images(items: Sequence[Item], *, seed: int) -> list[Item]:
    """`items` in an order in which every picture has had its first turn before any has its second."""
    turns: Counter[str] = Counter()
    keyed: list[tuple[int, str, Item]] = []
    for item in sorted(items, key=lambda item: (digest(seed, item.id), item.id)):
        picture = item.image_id or item.id
        keyed.append((turns[picture], digest(seed, picture, item.id), item))
        turns[picture] += 1
    return [item for _, _, item in sorted(keyed, key=lambda row: row[:2])]


def digest(seed: int, *parts: str) -> str:
    """A pseudo-random sort key that no library version can change."""
    return hashlib.sha256("\n".join((str(seed), *parts)).encode()).hexdigest()


def _check(items: Sequence[Item]) -> None:
    if not items:
        raise DataError("the evaluation set has no items; give at least one question with its answer.")
    repeated = [name for name, times in Counter(item.id for item in items).items() if times > 1]
    if repeated:
        raise DataError(f"item ids must be unique; {len(repeated)} repeat, for instance {repeated[0]!r}.")
    for item in items:
        if item.condition != CLEAN or item.base_id != item.id:
            raise DataError(
                f"item {item.id!r}: expected a clean item (condition {CLEAN!r}, base_id equal to id), "
                f"got condition {item.condition!r} and base_id {item.base_id!r}; variants are made here."
            )
        if not item.answers:
            raise DataError(f"item {item.id!r} has no accepted answer; give at least one.")
