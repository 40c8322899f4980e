"""What a bundle holds: bytes and precision by component, and nested facts as rows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from edgevlm_runner.bundle import Bundle
from edgevlm_runner.contract import DUAL_ENCODER, ENCODER_DECODER, GENERATIVE

from edgevlm_deploy.bundle import recipe
from edgevlm_deploy.recipe import Component

LONGEST_LIST = 8
"""Lists with more entries are counted instead of shown."""

COMPONENTS: Mapping[str, tuple[Component, ...]] = {
    GENERATIVE: tuple(one for one in Component if one is not Component.TEXT_ENCODER),
    ENCODER_DECODER: tuple(one for one in Component if one is not Component.PROJECTOR),
    DUAL_ENCODER: (
        Component.VISION_ENCODER,
        Component.TEXT_ENCODER,
        Component.PROJECTOR,
        Component.EMBEDDING,
    ),
}
"""Kind of model → what it consists of."""

_FOLDERS = {
    "graphs": "other graph files",
    "tokenizer": "tokenizer",
    "runner": "runner",
    "images": "pictures of the items",
}
_ITEMS = "items and reference answers"
_DESCRIPTIONS = "descriptions"
_ORDER = ("other graph files", "tokenizer", "runner", _DESCRIPTIONS, _ITEMS, "pictures of the items")
"""What answers questions first, what judges the answers last."""


def sizes(bundle: Bundle) -> dict[str, int]:
    """Bytes of the listed files by part, graphs by component first; the sum is the whole bundle."""
    components = [component.value for component in Component]
    graphs = dict(bundle.model.graphs)
    if bundle.certainty.graph:
        graphs["selector"] = bundle.certainty.graph
    found: dict[str, int] = {}
    for name, entry in bundle.manifest["files"].items():
        part = _part(name, graphs)
        found[part] = found.get(part, 0) + int(entry["bytes"])
    order = [*components, *sorted(set(graphs) - set(components)), *_ORDER]
    return {part: found[part] for part in order if part in found}


def _part(name: str, graphs: Mapping[str, str]) -> str:
    """A graph's weights may lie beside it, in files whose names begin with the graph's."""
    for component, path in graphs.items():
        stem = PurePosixPath(path).with_suffix("").as_posix()
        if name == path or name.startswith(f"{stem}."):
            return component
    if name in ("items.jsonl", "reference.jsonl"):
        return _ITEMS
    return _FOLDERS.get(name.split("/")[0], _DESCRIPTIONS)


def precision(bundle: Bundle) -> dict[str, str]:
    """component → scheme and algorithm, as the recipe asked: "w4a16_g32 (gptq)"; those the model has."""
    asked = recipe(bundle)
    return {
        component.value: _precision(one.scheme.value, one.algorithm.value)
        for component in COMPONENTS[bundle.model.kind]
        for one in [asked.precision(component)]
    }


def _precision(scheme: str, algorithm: str) -> str:
    return scheme if scheme == "fp16" else f"{scheme} ({algorithm})"


@dataclass(frozen=True)
class Facts:
    """A nested mapping as rows; a mapping of mappings with the same keys also as a grid.

    columns   names of the grid's columns, () without a grid
    grid      (row name, one cell per column)
    rows      (dotted key, value)
    """

    rows: tuple[tuple[str, str], ...]
    columns: tuple[str, ...] = ()
    grid: tuple[tuple[str, tuple[str, ...]], ...] = ()


def facts(data: Mapping[str, Any]) -> Facts:
    """Show any JSON mapping without knowing its keys; what is empty text is left out."""
    alike = [value for value in data.values() if isinstance(value, Mapping) and _is_flat(value)]
    columns = tuple(dict.fromkeys(key for value in alike for key in value))
    if len(alike) < 2 or any(len(value) < len(columns) for value in alike):
        return Facts(tuple(_rows(data, "")))
    inside = {key for key, value in data.items() if any(value is one for one in alike)}
    grid = tuple((key, tuple(_text(data[key][name]) for name in columns)) for key in data if key in inside)
    rest = {key: value for key, value in data.items() if key not in inside}
    return Facts(tuple(_rows(rest, "")), columns, grid)


def _is_flat(value: Mapping[str, Any]) -> bool:
    return bool(value) and not any(isinstance(one, (Mapping, list, tuple)) for one in value.values())


def _rows(value: Any, key: str) -> Iterator[tuple[str, str]]:
    if isinstance(value, Mapping) and value:
        for name, one in value.items():
            yield from _rows(one, f"{key}.{name}" if key else str(name))
    elif isinstance(value, (list, tuple)):
        shown = len(value) <= LONGEST_LIST and not any(isinstance(one, (Mapping, list)) for one in value)
        yield key, ", ".join(map(_text, value)) or "none" if shown else f"{len(value):,} entries"
    elif value != "":
        yield key, "none" if isinstance(value, Mapping) else _text(value)


def _text(value: Any) -> str:
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.5g}"
    return f"{value:,}" if isinstance(value, int) else str(value)
