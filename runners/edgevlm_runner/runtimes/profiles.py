"""Optimisation profiles: the shapes that an engine is built for, and which of them a call falls into.

No runtime is needed: the executor on the device and its emulation on a host refuse the same shapes.
"""

from __future__ import annotations

from typing import Dict, List, Mapping, Sequence, Tuple

from edgevlm_runner.errors import BundleError, ExecutionError

Shape = Tuple[int, ...]
Profile = Mapping[str, Sequence[Sequence[int]]]
"""input → [smallest shape, the one to be fast on, largest shape]"""


def check(component: str, profiles: Sequence[Profile]) -> None:
    """Raises BundleError unless there is a profile, and each orders its three shapes of equal rank."""
    if not profiles:
        raise BundleError(f"model.json has no optimisation profile for the {component}. Compile it again.")
    for number, profile in enumerate(profiles):
        for name, shapes in profile.items():
            ordered = len(shapes) == 3 and len({len(shape) for shape in shapes}) == 1
            if not ordered or not all(0 < low <= mid <= high for low, mid, high in zip(*shapes)):
                raise BundleError(
                    f"model.json: profile {number} of the {component} gives {name} {list(shapes)}; "
                    "expected smallest ≤ typical ≤ largest in every dimension. Compile it again."
                )


def covering(component: str, profiles: Sequence[Profile], shapes: Mapping[str, Shape]) -> int:
    """Number of the last profile that holds all `shapes`: later ones are narrower, so faster.

    Raises ExecutionError which names an input that no profile holds.
    """
    outside: Dict[int, str] = {}
    for number in reversed(range(len(profiles))):
        wrong = [name for name, shape in shapes.items() if not _holds(profiles[number].get(name), shape)]
        if not wrong:
            return number
        outside[number] = wrong[0]
    name = outside[0]
    ranges = [f"{profile[name][0]} … {profile[name][2]}" for profile in profiles if name in profile]
    raise ExecutionError(
        f"The {component} was built for {name} of shape {' or '.join(ranges) or 'none'}, "
        f"got {list(shapes[name])}. Compile with a recipe whose lengths cover it."
    )


def largest(profiles: Sequence[Profile]) -> Dict[str, Shape]:
    """input → largest shape of any profile, dimension by dimension: what its buffer must hold."""
    found: Dict[str, Shape] = {}
    for profile in profiles:
        for name, shapes in profile.items():
            known = found.get(name, (0,) * len(shapes[2]))
            found[name] = tuple(max(pair) for pair in zip(known, shapes[2]))
    return found


def plain(profiles: Sequence[Profile]) -> List[Dict[str, List[List[int]]]]:
    """The same as lists, for JSON and for digests."""
    return [{name: [list(shape) for shape in shapes] for name, shapes in one.items()} for one in profiles]


def _holds(shapes: object, shape: Shape) -> bool:
    if not isinstance(shapes, Sequence) or len(shapes[0]) != len(shape):
        return False
    return all(low <= size <= high for low, size, high in zip(shapes[0], shape, shapes[2]))
