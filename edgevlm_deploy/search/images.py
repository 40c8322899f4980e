"""What a candidate may see of a picture: its number of tiles, and the image tokens that reach the decoder.

Each choice is examined alone first, everything else in floating point, from the mildest to the harshest. What
is outside of a gate's limit even then is no choice, and neither is what takes away more by the same means.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from enum import Enum
from math import isqrt
from pathlib import Path

from edgevlm_deploy import reduction
from edgevlm_deploy.artifacts import pretty_json, write_text_atomic
from edgevlm_deploy.config import Frozen
from edgevlm_deploy.recipe import Image, Reduction, ReductionMethod
from edgevlm_deploy.search.outlook import Outlook
from edgevlm_deploy.source import Architecture
from edgevlm_deploy.target import Target

SHARES = (0.75, 0.5, 0.33, 0.22, 0.11)
"""Of the image tokens that are kept; the last three as published."""


class Knob(str, Enum):
    """What is searched besides schemes and algorithms."""

    TILES = "tiles"
    REDUCTION = "reduction"


class Seen(Frozen):
    """One choice alone, everything else in floating point, judged like a candidate."""

    image: Image
    label: str
    prompt_tokens: int
    """Of the longest question."""
    accuracy: float
    divergence_rate: float
    corrupted_divergence_rate: float | None
    negative_flip_rate: float
    gates: tuple[Outlook, ...]

    @property
    def is_inside(self) -> bool:
        """No gate's value is outside of its limit, whatever the intervals."""
        return all(gate.is_inside for gate in self.gates)


@dataclass(frozen=True)
class Menu:
    """What is examined. Own settings come first; a chain goes from mild to harsh."""

    base: Image
    """The recipe's."""
    most_tiles: int
    """What a picture becomes with the recipe's own tiles."""
    tiles: tuple[int, ...] = ()
    """Fewer than the recipe's own."""
    reductions: tuple[tuple[Reduction, ...], ...] = ()
    """A chain for each method."""
    absent: tuple[str, ...] = ()
    """Why a knob has nothing to turn, a sentence each."""
    keeps_all: bool = False
    """Whether all image tokens are a choice, too; else the recipe's own reduction stands first."""

    def image(self, tiles: int | None, fewer: Reduction | None) -> Image:
        """tiles: None for the recipe's own."""
        if tiles is None:
            return self.base.model_copy(update={"reduction": fewer})
        # The reference keeps the tiles that it has, so that gates see what fewer cost.
        kept = self.base.reference_tiles or self.base.max_tiles or self.most_tiles
        return self.base.model_copy(update={"max_tiles": tiles, "reference_tiles": kept, "reduction": fewer})

    @property
    def first(self) -> Image:
        return self.image(None, None if self.keeps_all else self.base.reduction)


def menu(
    base: Image, most_tiles: int, target: Target, architecture: Architecture, knobs: Sequence[Knob]
) -> Menu:
    """What the knobs offer for this model on this target.

    most_tiles: what a picture becomes with `base`.
    """
    absent: list[str] = []
    tiles: tuple[int, ...] = ()
    chains: tuple[tuple[Reduction, ...], ...] = ()
    if Knob.TILES in knobs:
        tiles = fewer_tiles(most_tiles)
        if not tiles:
            absent.append("tiles: a picture is one tile already")
    if Knob.REDUCTION in knobs:
        chains = tuple(
            chain for method in ReductionMethod if (chain := _chain(method, base, target, architecture))
        )
        if not chains:
            absent.append("reduction: no method takes image tokens away here")
    return Menu(base, most_tiles, tiles, chains, tuple(absent), bool(chains))


def fewer_tiles(most: int) -> tuple[int, ...]:
    """Whole squares of tiles with their global view, below `most`; a single tile last.

    17 → 10, 5, 1: a picture that is resized to fewer tiles along its longest edge becomes at most a square.
    """
    squares = tuple(side**2 + 1 for side in range(isqrt(most), 1, -1) if side**2 + 1 < most)
    return (*squares, 1) if most > 1 else ()


def _chain(
    method: ReductionMethod, base: Image, target: Target, architecture: Architecture
) -> tuple[Reduction, ...]:
    """Shares that leave different numbers of tokens, the recipe's own among them."""
    offered = [Reduction(method=method, keep=share) for share in SHARES]
    if base.reduction is not None and base.reduction.method is method:
        offered.append(base.reduction)
    fewest: dict[int, Reduction] = {}
    for one in sorted(offered, key=lambda one: (-one.keep, one != base.reduction)):
        if not reduction.problems(one, target, architecture):
            fewest.setdefault(reduction.kept_tokens(architecture.tokens_per_tile, one), one)
    return tuple(fewest.values())


def label(image: Image) -> str:
    """ "5 tiles, tome 0.5"; "" for all tiles and all tokens."""
    parts = [] if image.reference_tiles is None else [f"{image.max_tiles} of {image.reference_tiles} tiles"]
    fewer = image.reduction
    return ", ".join([*parts, *([] if fewer is None else [f"{fewer.method.value} {fewer.keep:g}"])])


def examine(
    given: Menu, look: Callable[[Image], Seen], directory: Path, advance: Callable[[int], None]
) -> None:
    """One file per examined choice in `directory`, so that a killed run goes on after the last one."""

    def seen(image: Image) -> Seen:
        path = directory / f"{len(list(directory.glob('*.json'))):04d}.json"
        known = {one.image: one for one in load(directory)}
        if image not in known:
            known[image] = look(image)
            write_text_atomic(path, pretty_json(known[image]))
        advance(1)
        return known[image]

    if seen(given.first).is_inside:
        for chain in _chains(given):
            for image in chain:
                if not seen(image).is_inside:
                    break


def _chains(given: Menu) -> Iterator[Iterator[Image]]:
    yield (given.image(tiles, given.first.reduction) for tiles in given.tiles)
    for chain in given.reductions:
        yield (given.image(None, fewer) for fewer in chain)


def load(directory: Path) -> tuple[Seen, ...]:
    """In the order of their examination."""
    return tuple(Seen.model_validate_json(path.read_text()) for path in sorted(directory.glob("*.json")))


def choices(given: Menu, seen: Sequence[Seen]) -> tuple[Image, ...]:
    """Every combination of what was inside of all limits alone; the recipe's own stands first if it is among
    them. Empty when nothing was.
    """
    inside = {one.image for one in seen if one.is_inside}
    if given.first not in inside:
        return ()
    tiles = [None, *(one for one in given.tiles if given.image(one, given.first.reduction) in inside)]
    reductions = [
        given.first.reduction,
        *(one for chain in given.reductions for one in chain if given.image(None, one) in inside),
    ]
    found = [given.image(one, other) for one in tiles for other in reductions]
    return tuple(sorted(dict.fromkeys(found), key=lambda one: one != given.base))
