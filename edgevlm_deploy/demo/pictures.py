"""Pictures and captions for the demo CLIP: one or two of the scenes' objects on a ground that has a name.

Each shape has a ground where it mostly stands, so that a model may take the ground for the shape. For
evaluation the same object is shown on its own ground (common) and on another one (counter).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from edgevlm_deploy.demo.scenes import (
    CELL,
    COLOURS,
    COLUMNS,
    RADIUS,
    SHAPES,
    SIDE,
    SIZES,
    SUPERSAMPLING,
    TEXTURES,
    UNSEEN_SHAPES,
    Split,
    Thing,
    draw,
    generator,
    light_and_noise,
)

Floats = NDArray[np.float32]

CLASSES = tuple(f"{colour} {shape}" for shape in SHAPES for colour in COLOURS)
GROUNDS = ("bricks", "grass", "sand", "snow", "water")
USUAL_GROUND = dict(zip(SHAPES, GROUNDS, strict=True))
USUAL_SHARE = 0.9
"""How often an object stands on its usual ground; by chance it would be one in five."""
PAIR_SHARE = 0.25
"""How many training pictures hold two objects."""
NOTHING = ("texture", "noise")
"""Pictures without an object: a ground alone, and no picture at all."""

_BASE = {
    "bricks": (150, 84, 66),
    "grass": (92, 128, 66),
    "sand": (186, 160, 112),
    "snow": (208, 214, 220),
    "water": (64, 108, 150),
}
_BLUR = 0.9
"""Largest standard deviation of the blur in pixels."""
_NOISE = 7.0
"""Largest standard deviation of the sensor's noise, on top of the scenes', of 255."""
_CONTENT_STREAM, _RENDER_STREAM = 11, 12
"""Streams of `scenes.generator`: what is in the picture, and how it looks."""


Place = tuple[float, float, float]
"""x, y and radius of an object in pixels."""


@dataclass(frozen=True)
class Picture:
    """Objects from left to right, what they stand on, and the picture: uint8 [SIDE, SIDE, 3]."""

    things: tuple[Thing, ...]
    places: tuple[Place, ...]
    ground: str
    pixels: NDArray[np.uint8]

    @property
    def image(self) -> Image.Image:
        return Image.fromarray(self.pixels)


def training_picture(split: Split, index: int, usual_share: float = USUAL_SHARE) -> Picture:
    """Picture `index` of `split` as training sees them: mostly on usual grounds, some with two objects."""
    rng = generator(split, index, _CONTENT_STREAM)
    things = tuple(_thing(rng, column) for column in range(1 + (rng.random() < PAIR_SHARE)))
    host = things[int(rng.integers(len(things)))]
    return _picture(split, index, things, _ground_of(host, rng.random() < usual_share, rng))


def pair_picture(split: Split, index: int) -> Picture:
    """Two objects on any ground: what retrieval is measured on."""
    rng = generator(split, index, _CONTENT_STREAM)
    things = (_thing(rng, 0), _thing(rng, 1))
    return _picture(split, index, things, str(rng.choice(GROUNDS)))


def counterfactual(split: Split, index: int) -> tuple[Picture, Picture]:
    """The same object, place, light and noise on its usual ground and on another one; classes take turns."""
    rng = generator(split, index, _CONTENT_STREAM)
    colour, shape = CLASSES[index % len(CLASSES)].split()
    thing = _thing(rng, 0, shape, colour)
    common, counter = (_ground_of(thing, usual, rng) for usual in (True, False))
    return _picture(split, index, (thing,), common), _picture(split, index, (thing,), counter)


def unseen_picture(split: Split, index: int) -> tuple[str, Picture]:
    """(kind, picture) of something that no caption names: unseen shapes, a ground alone, noise, in turn."""
    rng = generator(split, index, _CONTENT_STREAM)
    kinds = (*UNSEEN_SHAPES, *NOTHING)
    kind, ground = kinds[index % len(kinds)], str(rng.choice(GROUNDS))
    if kind == "noise":
        return kind, Picture((), (), "", rng.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8))
    things = (_thing(rng, 0, kind),) if kind in UNSEEN_SHAPES else ()
    return kind, _picture(split, index, things, ground)


def _thing(rng: np.random.Generator, column: int, shape: str = "", colour: str = "") -> Thing:
    return Thing(
        shape=shape or str(rng.choice(SHAPES)),
        colour=colour or str(rng.choice(COLOURS)),
        size=str(rng.choice(SIZES)),
        texture=str(rng.choice(TEXTURES)),
        column=column,
        row=0,
    )


def _ground_of(thing: Thing, usual: bool, rng: np.random.Generator) -> str:
    own = USUAL_GROUND[thing.shape]
    return own if usual else str(rng.choice([ground for ground in GROUNDS if ground != own]))


def _picture(split: Split, index: int, things: tuple[Thing, ...], ground: str) -> Picture:
    """Objects stand in cells as in the scenes, which is where the demo VLM's vision encoder knows them."""
    rng = generator(split, index, _RENDER_STREAM)
    columns = COLUMNS // max(1, len(things))
    places = []
    for thing in things:
        cells = thing.column * columns + rng.integers(columns), rng.integers(COLUMNS)
        x, y = ((cell + 0.5) * CELL + rng.uniform(-2.0, 2.0) for cell in cells)
        places.append((float(x), float(y), RADIUS[thing.size] * rng.uniform(0.93, 1.05)))
    return Picture(things, tuple(places), ground, _render(things, places, ground, rng))


def _render(
    things: Sequence[Thing], places: Sequence[Place], ground: str, rng: np.random.Generator
) -> NDArray[np.uint8]:
    """The ground draws from a stream of its own, so that all else stays when it is another one."""
    canvas = Image.fromarray(_ground(ground, rng.spawn(1)[0]))
    canvas = canvas.resize((SIDE * SUPERSAMPLING,) * 2, Image.Resampling.BILINEAR)
    for thing, place in zip(things, places, strict=True):
        x, y, radius = (SUPERSAMPLING * value for value in place)
        draw(canvas, thing, x, y, radius, rng)
    picture = canvas.resize((SIDE, SIDE), Image.Resampling.BOX)
    picture = picture.filter(ImageFilter.GaussianBlur(rng.uniform(0.0, _BLUR)))
    grain = rng.normal(0.0, rng.uniform(0.0, _NOISE), (SIDE, SIDE, 3))
    return light_and_noise(np.asarray(picture, np.float32) + grain.astype(np.float32), rng)


def _ground(kind: str, rng: np.random.Generator) -> NDArray[np.uint8]:
    """A colour of its own with the grain of the material: streaks, waves, mortar, speckles."""
    field = _smooth(rng, 5, 5, 10.0)
    if kind == "grass":
        field += _smooth(rng, 12, 64, 14.0)
    elif kind == "water":
        field += _smooth(rng, 40, 6, 14.0)
    elif kind == "sand":
        field += rng.normal(0.0, 9.0, (SIDE, SIDE)).astype(np.float32)
    elif kind == "bricks":
        field += _mortar(rng)
    colour = np.array(_BASE[kind]) + rng.uniform(-12, 12, size=3)
    painted: NDArray[np.uint8] = np.clip(colour + field[..., None], 0, 255).astype(np.uint8)
    return painted


def _smooth(rng: np.random.Generator, rows: int, columns: int, amplitude: float) -> Floats:
    """Smooth noise from a coarse grid, float32 [SIDE, SIDE]."""
    coarse = rng.normal(0.0, amplitude, (rows, columns)).astype(np.float32)
    return np.array(Image.fromarray(coarse).resize((SIDE, SIDE), Image.Resampling.BICUBIC))


def _mortar(rng: np.random.Generator) -> Floats:
    """Light joints: rows of 12 pixels, bricks of 24, every other row shifted by half a brick."""
    y, x = np.mgrid[:SIDE, :SIDE] + rng.integers(0, 24, size=2)[:, None, None]
    joint = (y % 12 < 2) | ((x + 12 * (y // 12 % 2)) % 24 < 2)
    return np.asarray(38.0 * joint, np.float32)
