"""Procedural pictures with known content, so that every question about them has a true answer.

A scene has four columns and two or three objects, each in a column of its own; a crowded one has more.
An object has a shape, a colour, a size and a texture. Backgrounds are textured, the light varies, and a
slight blur and sensor noise are added, so that no attribute can be read off a single pixel.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

from edgevlm_deploy.demo import backgrounds

SIDE = 96
"""Pixels per side."""
CELL = 24
"""Pixels per grid cell: one cell is one image token of the demo model."""
COLUMNS = SIDE // CELL
MOST_OBJECTS = 3
"""As many as the demo model can tell apart in the time that its training may take."""
CROWD = (4, 6)
"""Objects of a crowded scene, at least and at most: more than training ever showed."""
OFFSET, CROWDED_OFFSET = 2.0, 5.0
"""How far an object may be from its cell's middle along each axis, in pixels. In crowded scenes neighbours
may overlap; their middles stay 14 pixels apart, so each shows, and each middle stays in its cell."""
SUPERSAMPLING = 3

SHAPES = ("cube", "ball", "cone", "star", "ring")
COLOURS = ("red", "green", "blue", "yellow", "purple", "white")
SIZES = ("small", "large")
TEXTURES = ("plain", "striped")
SMOOTH = "smooth"
"""The ground of every scene that training saw; `backgrounds.GROUNDS` are the others."""
_GROUND = 3
"""Stream of `generator` that paints another ground."""
_CROWDED = 4
"""Stream of `generator` that draws a crowded scene."""

UNSEEN_SHAPES = {
    "cross": (
        *((-0.35, -1.1), (0.35, -1.1), (0.35, -0.35), (1.1, -0.35), (1.1, 0.35), (0.35, 0.35)),
        *((0.35, 1.1), (-0.35, 1.1), (-0.35, 0.35), (-1.1, 0.35), (-1.1, -0.35), (-0.35, -0.35)),
    ),
    "arrow": (
        *((0.0, -1.2), (0.95, 0.0), (0.35, 0.0), (0.35, 1.1)),
        *((-0.35, 1.1), (-0.35, 0.0), (-0.95, 0.0)),
    ),
    "bolt": ((0.25, -1.2), (-0.75, 0.2), (-0.1, 0.2), (-0.25, 1.2), (0.75, -0.25), (0.1, -0.25)),
    "moon": (
        *((0.3, -1.1), (-0.4, -0.95), (-0.95, -0.4), (-0.95, 0.4), (-0.4, 0.95), (0.3, 1.1)),
        *((-0.1, 0.6), (-0.3, 0.0), (-0.1, -0.6)),
    ),
}
"""Corners in radii from the centre. No scene holds them: they are what a model has never seen."""

_RGB = {
    "red": (214, 48, 44),
    "green": (58, 168, 72),
    "blue": (50, 94, 214),
    "yellow": (234, 200, 52),
    "purple": (150, 66, 186),
    "white": (238, 238, 236),
}
RADIUS = {"small": 6.5, "large": 11.0}
"""In pixels."""


class Split(IntEnum):
    """Who may look at a scene. The split is part of the scene's seed, so splits cannot overlap."""

    TRAIN = 0
    CALIBRATION = 1
    TUNING = 2
    """Temperature and selector."""
    EVALUATION = 3


@dataclass(frozen=True)
class Thing:
    shape: str
    colour: str
    size: str
    texture: str
    column: int
    row: int

    @property
    def name(self) -> str:
        return f"{self.colour} {self.shape}"


@dataclass(frozen=True)
class Scene:
    """Objects from left to right, and the picture: uint8 [SIDE, SIDE, 3]."""

    things: tuple[Thing, ...]
    pixels: NDArray[np.uint8]

    @property
    def image(self) -> Image.Image:
        return Image.fromarray(self.pixels)


def generator(split: Split, index: int, stream: int = 0) -> np.random.Generator:
    """The only source of randomness of scene `index` of `split`."""
    return np.random.default_rng([int(split), index, stream])


def scene(split: Split, index: int, most: int = MOST_OBJECTS, ground: str = SMOOTH) -> Scene:
    """Scene `index` of `split`, the same on every call; `most` objects at most, and two if it allows.

    On another ground all else stays as it is: objects, places, light and noise.
    """
    rng = generator(split, index)
    things = _arrange(rng, most)
    return Scene(things, _render(things, rng, _other_ground(split, index, ground)))


def crowded(split: Split, index: int, ground: str = SMOOTH) -> Scene:
    """Crowded scene `index` of `split`: more objects, off their cells' middles, several in a column.

    Outside of what the demo model learnt, so that it makes mistakes on clean pictures too.
    """
    rng = generator(split, index, _CROWDED)
    cells = rng.permutation(COLUMNS**2)[: int(rng.integers(CROWD[0], CROWD[1] + 1))]
    columns, rows = np.divmod(np.sort(cells), COLUMNS)
    things = _things(rng, columns, rows)
    return Scene(things, _render(things, rng, _other_ground(split, index, ground), CROWDED_OFFSET))


def _other_ground(split: Split, index: int, ground: str) -> NDArray[np.uint8] | None:
    return None if ground == SMOOTH else backgrounds.paint(ground, SIDE, generator(split, index, _GROUND))


def _arrange(rng: np.random.Generator, most: int) -> tuple[Thing, ...]:
    """Objects in distinct columns and any rows."""
    count = int(rng.integers(min(2, most), most + 1))
    return _things(rng, np.sort(rng.permutation(COLUMNS)[:count]))


def _things(
    rng: np.random.Generator, columns: NDArray[np.int64], rows: NDArray[np.int64] | None = None
) -> tuple[Thing, ...]:
    """An object per column, in any row where none are given; often some share a shape or colour, so that
    counts vary."""
    count = len(columns)
    shapes = [str(rng.choice(SHAPES)) for _ in range(count)]
    colours = [str(rng.choice(COLOURS)) for _ in range(count)]
    if count > 1 and rng.random() < 0.6:
        attribute = shapes if rng.random() < 0.5 else colours
        members = rng.permutation(count)[: int(rng.integers(2, count + 1))]
        for member in members:
            attribute[member] = attribute[members[0]]
    return tuple(
        Thing(
            shape=shapes[i],
            colour=colours[i],
            size=str(rng.choice(SIZES)),
            texture=str(rng.choice(TEXTURES)),
            column=int(columns[i]),
            row=int(rng.integers(COLUMNS) if rows is None else rows[i]),
        )
        for i in range(count)
    )


def _render(
    things: tuple[Thing, ...],
    rng: np.random.Generator,
    ground: NDArray[np.uint8] | None = None,
    offset: float = OFFSET,
) -> NDArray[np.uint8]:
    """`ground` takes the place of the smooth background, which is drawn all the same: so all else stays."""
    smooth = _background(rng)
    background = Image.fromarray(smooth if ground is None else ground)
    canvas = background.resize((SIDE * SUPERSAMPLING,) * 2, Image.Resampling.BILINEAR)
    for thing in things:
        centre = [(cell + 0.5) * CELL + rng.uniform(-offset, offset) for cell in (thing.column, thing.row)]
        radius = RADIUS[thing.size] * rng.uniform(0.93, 1.05)
        x, y, r = (value * SUPERSAMPLING for value in (*centre, radius))
        draw(canvas, thing, x, y, r, rng)
    picture = canvas.resize((SIDE, SIDE), Image.Resampling.BOX)
    picture = picture.filter(ImageFilter.GaussianBlur(rng.uniform(0.0, 0.5)))
    return light_and_noise(np.asarray(picture, np.float32), rng)


def _background(rng: np.random.Generator) -> NDArray[np.uint8]:
    """Two octaves of smooth noise around a dull colour."""
    base = rng.uniform(60, 120) + rng.uniform(-14, 14, size=3)
    field = np.zeros((SIDE, SIDE), np.float32)
    for cells, amplitude in ((5, 14.0), (24, 7.0)):
        coarse = rng.normal(0.0, amplitude, (cells, cells)).astype(np.float32)
        field += np.asarray(Image.fromarray(coarse).resize((SIDE, SIDE), Image.Resampling.BICUBIC))
    colour: NDArray[np.uint8] = np.clip(base + field[..., None], 0, 255).astype(np.uint8)
    return colour


def light_and_noise(pixels: NDArray[np.float32], rng: np.random.Generator) -> NDArray[np.uint8]:
    ramp = np.linspace(-0.5, 0.5, SIDE, dtype=np.float32)
    slope = rng.uniform(-0.2, 0.2, size=2)
    light = rng.uniform(0.82, 1.12) + slope[0] * ramp[None, :] + slope[1] * ramp[:, None]
    noise = rng.normal(0.0, rng.uniform(0.0, 5.0), pixels.shape)
    lit: NDArray[np.uint8] = np.clip(np.rint(pixels * light[..., None] + noise), 0, 255).astype(np.uint8)
    return lit


def draw(canvas: Image.Image, thing: Thing, x: float, y: float, r: float, rng: np.random.Generator) -> None:
    """Paint the object around (x, y) with radius r through a mask, so that stripes follow its outline."""
    left, top, side = int(x - 1.4 * r), int(y - 1.4 * r), int(2.8 * r) + 2
    x, y = x - left, y - top
    mask = Image.new("L", (side, side), 0)
    outline = ImageDraw.Draw(mask)
    angle = rng.uniform(-0.25, 0.25)
    if thing.shape == "ball":
        outline.ellipse((x - r, y - r, x + r, y + r), fill=255)
    elif thing.shape == "ring":
        outline.ellipse((x - r, y - r, x + r, y + r), fill=255)
        outline.ellipse((x - 0.45 * r, y - 0.45 * r, x + 0.45 * r, y + 0.45 * r), fill=0)
    else:
        outline.polygon(_corners(thing.shape, x, y, r, angle), fill=255)
    canvas.paste(_paint(side, thing, x, y, r, angle), (left, top), mask)


def _corners(shape: str, x: float, y: float, r: float, angle: float) -> list[tuple[float, float]]:
    if shape in UNSEEN_SHAPES:
        points = np.array(UNSEEN_SHAPES[shape]) * r
        turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
        return [(x + float(dx), y + float(dy)) for dx, dy in points @ turn]
    if shape == "cube":
        radii, first = [1.05] * 6, -np.pi / 2
    elif shape == "cone":
        radii, first = [1.15] * 3, -np.pi / 2
    else:
        radii, first = [1.15, 0.48] * 5, -np.pi / 2
    steps = np.arange(len(radii)) * 2 * np.pi / len(radii) + first + angle
    return [
        (x + r * k * float(np.cos(t)), y + r * k * float(np.sin(t)))
        for k, t in zip(radii, steps, strict=True)
    ]


def _paint(side: int, thing: Thing, x: float, y: float, r: float, angle: float) -> Image.Image:
    """The object's colour, dark stripes where the texture asks for them, and a cube's inner edges."""
    colour = _RGB[thing.colour]
    paint = Image.new("RGB", (side, side), colour)
    brush = ImageDraw.Draw(paint)
    if thing.texture == "striped":
        pitch = 4.5 * SUPERSAMPLING
        dark = tuple(int(0.42 * channel) for channel in colour)
        for k in range(-4, 5):
            left = x + k * pitch - 0.25 * pitch
            brush.rectangle((left, 0, left + 0.5 * pitch, side), fill=dark)
    if thing.shape == "cube":
        dark = tuple(int(0.3 * channel) for channel in colour)
        for corner in _corners("cube", x, y, r, angle)[1::2]:
            brush.line((x, y, *corner), fill=dark, width=SUPERSAMPLING)
    return paint
