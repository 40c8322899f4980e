"""Captions of the demo CLIP's pictures, and which caption is true of which picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgevlm_deploy.demo.pictures import GROUNDS, Picture
from edgevlm_deploy.demo.scenes import COLOURS, SHAPES, SIZES, TEXTURES, Thing

TEMPLATES = ("a photo of {}", "a picture of {}", "{}")
CLASS_TEMPLATE = "a photo of a {}"
"""What zero-shot classification puts a class into."""
ANY = -1
"""Code of an attribute that a caption leaves open."""
ABSENT = -2
"""Code of what is not in the picture."""
_MOST = 2
_ATTRIBUTES = (SIZES, TEXTURES, COLOURS, SHAPES)

Codes = NDArray[np.int64]


@dataclass(frozen=True)
class Caption:
    text: str
    phrases: tuple[tuple[int, int, int, int], ...]
    """Per object named: size, texture, colour, shape, or ANY."""
    ground: int


def caption(picture: Picture, rng: np.random.Generator) -> Caption:
    """Names one object or all of them, each with some of its attributes, and perhaps the ground."""
    things = list(picture.things)
    if len(things) > 1 and rng.random() < 0.3:
        things = [things[int(rng.integers(len(things)))]]
    phrases = tuple(_phrase(thing, rng) for thing in things)
    ground = GROUNDS.index(picture.ground) if rng.random() < 0.5 else ANY
    return _written(phrases, ground, str(rng.choice(TEMPLATES)))


def full_caption(picture: Picture) -> Caption:
    """Names everything; the text that retrieval looks for."""
    phrases = tuple(_codes(thing) for thing in picture.things)
    return _written(phrases, GROUNDS.index(picture.ground), TEMPLATES[0])


def truth(pictures: Sequence[Picture], captions: Sequence[Caption]) -> NDArray[np.bool_]:
    """Whether caption m is true of picture n: bool [N, M]. Two phrases need two objects."""
    things = np.full((len(pictures), _MOST, len(_ATTRIBUTES)), ABSENT)  # [N, objects, attributes]
    for row, picture in zip(things, pictures, strict=True):
        row[: len(picture.things)] = [_codes(thing) for thing in picture.things]
    phrases = np.full((len(captions), _MOST, len(_ATTRIBUTES)), ANY)  # [M, phrases, attributes]
    for row, one in zip(phrases, captions, strict=True):
        row[: len(one.phrases)] = one.phrases
    wanted = phrases[None, :, :, None, :]
    fits = ((wanted == ANY) | (wanted == things[:, None, None])).all(-1)  # [N, M, phrases, objects]
    named = (fits[..., 0, 0] & fits[..., 1, 1]) | (fits[..., 0, 1] & fits[..., 1, 0])
    pairs = np.array([len(one.phrases) == _MOST for one in captions])
    alone = np.array([len(picture.things) < _MOST for picture in pictures])
    ground = np.array([one.ground for one in captions])
    stands = np.array([GROUNDS.index(picture.ground) for picture in pictures])
    right: NDArray[np.bool_] = (
        named & ((ground == ANY)[None] | (ground[None] == stands[:, None])) & ~(pairs[None] & alone[:, None])
    )
    return right


def _phrase(thing: Thing, rng: np.random.Generator) -> tuple[int, int, int, int]:
    """The shape always, the colour nearly always, size and texture every other time."""
    keep = rng.random(3) < (0.5, 0.5, 0.9)
    size, texture, colour, shape = _codes(thing)
    return (size if keep[0] else ANY, texture if keep[1] else ANY, colour if keep[2] else ANY, shape)


def _codes(thing: Thing) -> tuple[int, int, int, int]:
    return (
        SIZES.index(thing.size),
        TEXTURES.index(thing.texture),
        COLOURS.index(thing.colour),
        SHAPES.index(thing.shape),
    )


def _written(phrases: tuple[tuple[int, int, int, int], ...], ground: int, template: str) -> Caption:
    named = [
        "a " + " ".join(values[code] for code, values in zip(phrase, _ATTRIBUTES, strict=True) if code != ANY)
        for phrase in phrases
    ]
    on = "" if ground == ANY else f" on {GROUNDS[ground]}"
    return Caption(template.format(" and ".join(named)) + on, phrases, ground)
