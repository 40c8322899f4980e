"""The result of a search: one HTML page and one text for the terminal, both from its JSON."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from markupsafe import Markup

from edgevlm_deploy.artifacts import write_text_atomic
from edgevlm_deploy.recipe import GateName
from edgevlm_deploy.report.html import content_policy, environment, inline
from edgevlm_deploy.report.quantity import MISSING, TITLES, UNITS, Unit, quantity

WIDTH, HEIGHT = 760.0, 340.0
BAR = 260.0
SMALLEST_SHIFT = 1e-7


@dataclass(frozen=True)
class Point:
    """One candidate. kind: its origin; label: of a uniform one, else ""; sees_less: fewer tiles or tokens."""

    x: float
    y: float
    kind: str
    passes: bool
    on_front: bool
    wins: bool
    sees_less: bool
    label: str
    title: str


@dataclass(frozen=True)
class Scatter:
    """Bytes of memory (logarithmic) against the bound of the gate that refuses most candidates."""

    points: tuple[Point, ...]
    x_ticks: tuple[tuple[float, str], ...]
    y_ticks: tuple[tuple[float, str], ...]
    limit: float | None
    x_title: str
    y_title: str


def render(found: Mapping[str, Any], out: Path) -> None:
    """Write the page to `out`; `found` is `search.Found.to_json()`."""
    style, script = Markup("\n").join([inline("style.css"), inline("frontier.css")]), Markup("")
    page = (
        environment()
        .get_template("frontier.html.j2")
        .render(
            style=style,
            policy=content_policy(style, script),
            found=found,
            headline=headline(found),
            not_sealed=not_sealed(found) if found["emulated"] else "",
            scatter=scatter(found),
            bars=bars(found["sensitivities"]),
            front=[_trial(found, number) for number in found["front"]],
            schemes=schemes,
            proofs=[(one, _trial(found, one["trial"])) for one in found["proofs"]],
            WIDTH=WIDTH,
            HEIGHT=HEIGHT,
            BAR_WIDTH=BAR,
            MISSING=MISSING,
        )
    )
    write_text_atomic(out, page)


def text(found: Mapping[str, Any], directory: Path) -> str:
    lines = [headline(found), ""]
    head = ("compiled", "precision", "memory", "bundle", "corrupted divergence", "verdict")
    rows = [head]
    for proof in found["proofs"]:
        trial = _trial(found, proof["trial"])
        rate = proof["estimates"].get("corrupted_divergence_rate")
        verdict = "sealed" if proof["sealed"] else f"{proof['outcome']}: {', '.join(proof['open_gates'])}"
        rows.append(
            (
                f"{trial['number']} {trial['origin']}",
                schemes(trial),
                quantity(trial["judged"]["memory_bytes"], Unit.BYTES),
                quantity(proof["bundle_bytes"], Unit.BYTES),
                MISSING if rate is None else quantity(rate, Unit.SHARE),
                verdict,
            )
        )
    widths = [max(len(row[column]) for row in rows) for column in range(len(head))]
    if found["proofs"]:
        lines += [
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
            for row in rows
        ]
    lines += [f"not searched: {why}." for why in found["absent"]]
    lines += ["", f"front   {directory / 'front.html'}"]
    if found["winner"] is not None:
        lines.append(f"recipe  {directory / 'winner.yaml'}")
    return "\n".join(lines)


def headline(found: Mapping[str, Any]) -> str:
    """The result in a few sentences."""
    if not found["trials"]:
        return _refused(found["seen"][0])
    tried = f"{len(found['trials'])} candidates, {len(found['passes'])} predicted to pass."
    passed = "keeps every gate that can be judged here" if found["emulated"] else "passes"
    if found["winner"] is None:
        mostly = ""
        if len(found["passes"]) < len(found["trials"]):
            mostly = f" What refused most: {TITLES[GateName(found['deciding_gate'])]}."
        return f"No candidate {passed}: {tried}{mostly}"
    best = _trial(found, found["winner"])
    says = f"The smallest that {passed} takes {_memory(best)}"
    sealed = "" if not found["emulated"] else f" {not_sealed(found)}"
    if found["best_uniform"] is None:
        return f"{says}; no uniform precision does. {tried}{sealed}"
    uniform = _trial(found, found["best_uniform"])
    if uniform["number"] == best["number"]:
        return f"Nothing smaller than the best uniform precision {passed}: {_memory(best)}. {tried}{sealed}"
    saved = 1 - best["judged"]["memory_bytes"] / uniform["judged"]["memory_bytes"]
    return (
        f"{says}, {saved:.1%} less than the best uniform precision ({schemes(uniform)}, {_memory(uniform)}). "
        f"{tried}{sealed}"
    )


def not_sealed(found: Mapping[str, Any]) -> str:
    """What evidence without the device leaves open."""
    return (
        f"ONNX Runtime stood in for {found['target']}: its gates on times and memory are open, and nothing "
        "is sealed. `edgevlm validate` on the board decides."
    )


def _refused(seen: Mapping[str, Any]) -> str:
    """Why there is nothing to search."""

    def told(gate: Mapping[str, Any]) -> str:
        name = GateName(gate["metric"])
        value, limit = (quantity(gate[key], UNITS[name]) for key in ("value", "limit"))
        return f"{TITLES[name]} is {value}, limit {limit}"

    outside = "; ".join(told(gate) for gate in seen["gates"] if not gate["is_inside"])
    what = f" with {seen['label']}" if seen["label"] else ""
    return (
        f"No precision can pass: before anything is quantised, the model{what} is outside of its gates "
        f"({outside}). Change those gates, or the model."
    )


def _memory(trial: Mapping[str, Any]) -> str:
    """2.54 MB of weights and 0.2 MB of cache"""
    weights, memory = trial["judged"]["weight_bytes"], trial["judged"]["memory_bytes"]
    cache = f" and {quantity(memory - weights, Unit.BYTES)} of cache" if memory > weights else ""
    return f"{quantity(weights, Unit.BYTES)} of weights{cache}"


def schemes(trial: Mapping[str, Any]) -> str:
    """Schemes by number of blocks, the commonest first, the algorithm, and what is seen of a picture."""
    counted = Counter(trial["schemes"]).most_common()
    names = (
        [counted[0][0]] if trial["origin"] == "uniform" else [f"{count}× {name}" for name, count in counted]
    )
    seen = f", {trial['image_label']}" if trial["image_label"] else ""
    return f"{', '.join(names)} {trial['algorithm']}{seen}"


def scatter(found: Mapping[str, Any]) -> Scatter | None:
    """None when no gate could be predicted."""
    if found["deciding_gate"] is None:
        return None
    gate = GateName(found["deciding_gate"])
    shown = [(one, _outlook(one, gate)) for one in found["trials"]]
    drawn = [(one, outlook) for one, outlook in shown if outlook and outlook["bound"] is not None]
    if not drawn:
        return None
    sizes = [math.log2(one["judged"]["memory_bytes"]) for one, _ in drawn]
    limit = float(drawn[0][1]["limit"])
    bounds = [float(outlook["bound"]) for _, outlook in drawn]
    left, right = min(sizes), max(sizes)
    low, high = min(0.0, *bounds, limit), max(*bounds, limit)

    def x(size: float) -> float:
        return round(30.0 + (math.log2(size) - left) / ((right - left) or 1.0) * (WIDTH - 60), 1)

    def y(value: float) -> float:
        return round(HEIGHT - (value - low) / ((high - low) or 1.0) * (HEIGHT - 20), 1)

    unit = UNITS[gate]
    points = tuple(_point(found, one, outlook, x, y, unit) for one, outlook in drawn)
    step = _step((high - low) / 4)
    ticks = [step * place for place in range(math.ceil(low / step), math.floor(high / step) + 1)]
    marks = _sizes(2**left, 2**right)
    return Scatter(
        points=points,
        x_ticks=tuple((x(size), quantity(size, Unit.BYTES)) for size in marks),
        y_ticks=tuple((y(tick), quantity(tick, unit)) for tick in ticks),
        limit=y(limit),
        x_title="weights and key-value cache",
        y_title=f"{TITLES[gate]}, bound of the predicted interval",
    )


def _point(
    found: Mapping[str, Any], trial: Mapping[str, Any], outlook: Mapping[str, Any], x: Any, y: Any, unit: Unit
) -> Point:
    size = trial["judged"]["memory_bytes"]
    return Point(
        x=x(size),
        y=y(outlook["bound"]),
        kind=trial["origin"],
        passes=trial["number"] in found["passes"],
        on_front=trial["number"] in found["front"],
        wins=trial["number"] == found["winner"],
        sees_less=bool(trial["image_label"]),
        label=schemes(trial) if trial["origin"] == "uniform" else "",
        title=f"{trial['number']} {trial['origin']}: {schemes(trial)}, {quantity(size, Unit.BYTES)}, "
        f"{quantity(outlook['value'], unit)}",
    )


def _step(rough: float) -> float:
    """1, 2 or 5 times a power of ten, at least `rough`."""
    if rough <= 0:
        return 1.0
    power = 10.0 ** math.floor(math.log10(rough))
    return next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough)


def _sizes(low: float, high: float) -> Sequence[float]:
    """Round numbers between, about evenly spaced on a logarithmic axis."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    steps = (1, 1.5, 2, 2.5, 3, 4, 5, 6, 8)
    return [tick for power in powers for step in steps if low <= (tick := step * 10.0**power) <= high]


@dataclass(frozen=True)
class Bar:
    row: Mapping[str, Any]
    width: float


def bars(rows: Sequence[Mapping[str, Any]]) -> tuple[Bar, ...]:
    """One per block; the length is its share of the largest shift."""
    most = max([SMALLEST_SHIFT, *(row["shift"] for row in rows)])
    return tuple(Bar(row, round(row["shift"] / most * BAR, 1)) for row in rows)


def _outlook(trial: Mapping[str, Any], gate: GateName) -> Mapping[str, Any] | None:
    return next((one for one in trial["judged"]["gates"] if one["metric"] == gate.value), None)


def _trial(found: Mapping[str, Any], number: int) -> Mapping[str, Any]:
    return next(one for one in found["trials"] if one["number"] == number)
