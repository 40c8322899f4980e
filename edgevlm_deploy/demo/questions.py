"""Questions with one true answer each, balanced so that the question alone does not give it away.

The answer is drawn first and a question that has it second: yes/no is even, open answers are spread
over their alphabet, and negative questions name things that are half there (right colour, wrong shape).
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np

from edgevlm_deploy.demo.scenes import COLOURS, COLUMNS, SHAPES, SIZES, TEXTURES, Scene, Thing

KINDS = ("existence", "attribute", "count", "relation", "comparison", "yes_no", "negation", "caption")


@dataclass(frozen=True)
class Question:
    kind: str
    text: str
    answer: str


def ask(scene: Scene, kind: str, rng: np.random.Generator) -> Question | None:
    """A question of `kind`, or None when this scene allows none of it."""
    found = _ASK[kind](scene, rng)
    return Question(kind, *found) if found else None


def ask_any(scene: Scene, count: int, rng: np.random.Generator) -> list[Question]:
    """`count` different questions, kinds in random order."""
    questions: list[Question] = []
    while len(questions) < count:
        for kind in rng.permutation(KINDS):
            question = ask(scene, str(kind), rng)
            if question is not None and question not in questions:
                questions.append(question)
    return questions[:count]


Found = tuple[str, str] | None


def _pick(options: list[Thing], rng: np.random.Generator) -> Thing:
    return options[int(rng.integers(len(options)))]


def _unique(scene: Scene, attribute: str) -> list[Thing]:
    """Things that one attribute (or the full name) singles out."""
    counts = Counter(getattr(thing, attribute) for thing in scene.things)
    return [thing for thing in scene.things if counts[getattr(thing, attribute)] == 1]


def _yes(rng: np.random.Generator) -> bool:
    return bool(rng.random() < 0.5)


def _word(truth: bool) -> str:
    return "yes" if truth else "no"


def _existence_of(scene: Scene, rng: np.random.Generator) -> tuple[str, bool]:
    """(what, is it there?): a name, a shape or a colour.

    An absent name shares its colour or its shape with something that is there.
    """
    things, there, what = list(scene.things), _yes(rng), rng.random()
    # A crowd may hold every shape or every colour, so that none is absent.
    shapes = {thing.shape for thing in things}
    if what < 0.2 and (options := [s for s in SHAPES if (s in shapes) == there]):
        return str(rng.choice(options)), there
    colours = {thing.colour for thing in things}
    if what < 0.4 and (options := [c for c in COLOURS if (c in colours) == there]):
        return f"{rng.choice(options)} object", there
    if there:
        return _pick(things, rng).name, True
    near = [f"{t.colour} {shape}" for t in things for shape in SHAPES]
    near += [f"{colour} {t.shape}" for t in things for colour in COLOURS]
    return str(rng.choice(sorted(set(near) - {thing.name for thing in things}))), False


def _existence(scene: Scene, rng: np.random.Generator) -> Found:
    name, there = _existence_of(scene, rng)
    template = str(rng.choice(["Is there a {}?", "Do you see a {}?", "Does the picture show a {}?"]))
    return template.format(name), _word(there)


def _attribute(scene: Scene, rng: np.random.Generator) -> Found:
    choice = rng.integers(4)
    if choice == 0 and (things := _unique(scene, "shape")):
        thing = _pick(things, rng)
        return f"What color is the {thing.shape}?", thing.colour
    if choice == 1 and (things := _unique(scene, "colour")):
        thing = _pick(things, rng)
        return f"What shape is the {thing.colour} object?", thing.shape
    things = _unique(scene, "name")
    if not things:
        return None
    thing = _pick(things, rng)
    if choice == 2:
        return f"What size is the {thing.name}?", thing.size
    return f"What texture does the {thing.name} have?", thing.texture


def _count(scene: Scene, rng: np.random.Generator) -> Found:
    wanted = int(rng.integers(0, 4))
    shapes, colours = Counter(t.shape for t in scene.things), Counter(t.colour for t in scene.things)
    options = [f"How many {s}s are there?" for s in SHAPES if shapes[s] == wanted]
    options += [f"How many {c} objects are there?" for c in COLOURS if colours[c] == wanted]
    if len(scene.things) == wanted:
        options.append("How many objects are there?")
    return (str(rng.choice(options)), str(wanted)) if options else None


def _pair(scene: Scene, rng: np.random.Generator) -> tuple[Thing, Thing] | None:
    things = _unique(scene, "name")
    if len(things) < 2:
        return None
    first, second = rng.permutation(len(things))[:2]
    return things[first], things[second]


def _relation(scene: Scene, rng: np.random.Generator) -> Found:
    """Where one object is relative to the picture's middle, or to another object."""
    if rng.random() < 0.4 and (things := _unique(scene, "name")):
        thing = _pick(things, rng)
        if _yes(rng):
            half = "top" if thing.row < COLUMNS // 2 else "bottom"
            return f"Is the {thing.name} in the top or bottom half?", half
        half = "left" if thing.column < COLUMNS // 2 else "right"
        return f"Is the {thing.name} in the left or right half?", half
    pair = _pair(scene, rng)
    if pair is None:
        return None
    a, b = pair
    # Only crowded scenes have two objects in one column.
    if a.row != b.row and (a.column == b.column or _yes(rng)):
        return f"Is the {a.name} above or below the {b.name}?", "above" if a.row < b.row else "below"
    return f"Is the {a.name} left or right of the {b.name}?", "left" if a.column < b.column else "right"


def _comparison(scene: Scene, rng: np.random.Generator) -> Found:
    if _yes(rng):
        pair = _pair(scene, rng)
        if pair is None:
            return None
        a, b = pair
        truth = a.size == "large" and b.size == "small"
        # Half the pairs differ in size, a quarter answers yes: keep the no's as rare.
        if not truth and rng.random() < 2 / 3:
            return None
        return f"Is the {a.name} larger than the {b.name}?", _word(truth)
    counts = Counter(t.shape for t in scene.things)
    more = [(x, y) for x in SHAPES for y in SHAPES if counts[x] > counts[y] > 0 or counts[x] > 1 > counts[y]]
    if not more:
        return None
    x, y = more[int(rng.integers(len(more)))]
    truth = _yes(rng)
    x, y = (x, y) if truth else (y, x)
    return f"Are there more {x}s than {y}s?", _word(truth)


def _claim(scene: Scene, rng: np.random.Generator) -> tuple[str, str, str, bool] | None:
    """(subject, claim, kind of claim, true?) about an object that its shape singles out."""
    things = _unique(scene, "shape")
    if not things:
        return None
    thing = _pick(things, rng)
    attribute, values = (("colour", COLOURS), ("size", SIZES), ("texture", TEXTURES))[int(rng.integers(3))]
    value, truth = str(getattr(thing, attribute)), _yes(rng)
    if not truth:
        value = str(rng.choice([other for other in values if other != value]))
    return thing.shape, value, attribute, truth


def _yes_no(scene: Scene, rng: np.random.Generator) -> Found:
    claim = _claim(scene, rng)
    return (f"Is the {claim[0]} {claim[1]}?", _word(claim[3])) if claim else None


def _negation(scene: Scene, rng: np.random.Generator) -> Found:
    if _yes(rng):
        name, there = _existence_of(scene, rng)
        return f"Is there no {name}?", _word(not there)
    claim = _claim(scene, rng)
    return (f"Is the {claim[0]} not {claim[1]}?", _word(not claim[3])) if claim else None


def _caption(scene: Scene, rng: np.random.Generator) -> Found:
    """The whole picture from left to right, where that is an order, or one object in full."""
    if rng.random() < 0.5 and (things := _unique(scene, "name")):
        thing = _pick(things, rng)
        height = "top" if thing.row < COLUMNS // 2 else "bottom"
        side = "left" if thing.column < COLUMNS // 2 else "right"
        return f"Describe the {thing.name}.", f"{thing.size}, {thing.texture}, {height} {side}"
    if len({thing.column for thing in scene.things}) < len(scene.things):
        return None
    names = [f"a {thing.name}" for thing in scene.things]
    listed = [", ".join(names[:-1]), names[-1]] if len(names) > 1 else names
    return "Describe the picture.", " and ".join(listed)


_ASK = {
    "existence": _existence,
    "attribute": _attribute,
    "count": _count,
    "relation": _relation,
    "comparison": _comparison,
    "yes_no": _yes_no,
    "negation": _negation,
    "caption": _caption,
}
