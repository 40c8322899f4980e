"""Frozen dataclasses as JSON and back: strict, and the same on both sides of the device boundary.

Python 3.8, standard library only.
"""

from __future__ import annotations

import dataclasses
import functools
import json
from pathlib import Path
from typing import (
    Any,
    Dict,
    Iterable,
    Iterator,
    List,
    Mapping,
    Tuple,
    Type,
    TypeVar,
    get_args,
    get_type_hints,
)

from edgevlm_runner.errors import BundleError

T = TypeVar("T")


def to_json(value: Any) -> Any:
    """A frozen dataclass as plain JSON types (tuples become lists)."""
    return json.loads(json.dumps(dataclasses.asdict(value)))


def from_json(cls: Type[T], data: Any, where: str) -> T:
    """Build `cls` from parsed JSON; `where` names the file for the error message.

    Keys with a default may be missing. Raises BundleError on other missing, unknown or mistyped keys.
    """
    if not isinstance(data, dict):
        raise BundleError(f"{where}: expected an object for {cls.__name__}, got {type(data).__name__}.")
    fields = {f.name: f for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
    required = {
        name
        for name, field in fields.items()
        if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
    }
    unknown, missing = sorted(set(data) - set(fields)), sorted(required - set(data))
    if unknown or missing:
        raise BundleError(
            f"{where}: {cls.__name__} has unknown keys {unknown} and lacks {missing}. "
            "The bundle was written by another version of edgevlm; compile it again."
        )
    kind: Any = cls
    nested = _nested(kind)
    values: Dict[str, Any] = {}
    for name, value in data.items():
        if name in nested and value is not None:
            value = from_json(_fitting(nested[name], value), value, where)
        elif isinstance(value, list):
            value = tuple(value)
        _check_type(str(fields[name].type), value, f"{where}: {cls.__name__}.{name}")
        if name == "profiles":
            _check_profiles(value, f"{where}: {cls.__name__}.{name}")
        values[name] = value
    return cls(**values)


@functools.lru_cache(maxsize=64)
def _nested(cls: Any) -> Mapping[str, Tuple[Any, ...]]:
    """Field → the dataclass that it holds, also where it may be None; several where it is one of them."""
    found = {}
    for name, hint in get_type_hints(cls).items():
        classes = tuple(one for one in (hint, *get_args(hint)) if dataclasses.is_dataclass(one))
        if classes:
            found[name] = classes
    return found


def _fitting(classes: Tuple[Any, ...], data: Any) -> Any:
    """The class that has the keys of `data`; the first where none has, for its error is as good as any."""
    keys = set(data) if isinstance(data, dict) else set()
    return max(classes, key=lambda cls: keys == {field.name for field in dataclasses.fields(cls)})


_TYPES: Dict[str, Tuple[type, ...]] = {
    "str": (str,),
    "int": (int,),
    "float": (int, float),
    "bool": (bool,),
    "Optional[int]": (int, type(None)),
    "Optional[float]": (int, float, type(None)),
}


def _check_type(annotation: str, value: Any, where: str) -> None:
    """Scalars are checked one by one, sequences element by element; bool is no int here."""
    if annotation.startswith("Tuple["):
        element = annotation[len("Tuple[") :].split(",")[0]
        if not isinstance(value, tuple):
            raise BundleError(f"{where}: expected a list, got {type(value).__name__}.")
        for one in value:
            _check_type(element, one, where)
        return
    expected = _TYPES.get(annotation)
    if expected is None:
        return
    if not isinstance(value, expected) or (isinstance(value, bool) and bool not in expected):
        raise BundleError(f"{where}: expected {annotation}, got {value!r}.")


def _check_profiles(value: Any, where: str) -> None:
    shapes = [
        shape
        for profiles in (value.values() if isinstance(value, dict) else [None])
        for profile in (profiles if isinstance(profiles, list) else [None])
        for three in (profile.values() if isinstance(profile, dict) else [None])
        for shape in (three if isinstance(three, list) and len(three) == 3 else [None])
    ]
    for shape in shapes:
        if not isinstance(shape, list) or any(type(size) is not int for size in shape):
            raise BundleError(
                f"{where}: expected component → list of profiles, each input → three lists of sizes."
            )


def write_jsonl(path: Path, rows: Iterable[Any]) -> None:
    """One JSON object a line, keys in field order, UTF-8, newline at the end of each line."""
    with open(path, "w", encoding="utf-8", newline="\n") as out:
        for row in rows:
            out.write(json.dumps(dataclasses.asdict(row), ensure_ascii=False) + "\n")


def read_jsonl(path: Path, cls: Type[T]) -> List[T]:
    """Read what `write_jsonl` wrote. Raises BundleError with file and line number."""
    return list(_iter_jsonl(path, cls))


def _iter_jsonl(path: Path, cls: Type[T]) -> Iterator[T]:
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise BundleError(f"{path}: cannot be read ({error}).") from error
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            data = json.loads(line)
        except json.JSONDecodeError as error:
            raise BundleError(f"{path}:{number}: not JSON ({error}).") from error
        yield from_json(cls, data, f"{path}:{number}")
