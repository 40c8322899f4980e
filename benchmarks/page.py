"""The numbers for people: tables in the terminal, and the same tables in RESULTS.md."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import summary
from benchmarks.rounds import Heat
from benchmarks.summary import Ratio, Row, Spread

QUIET = 0.05
"""Cores that others may use in a run that counts as quiet."""
WIDTH = 200


@dataclass(frozen=True)
class Table:
    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    words: int = 2
    """Leading columns that hold words; the others hold numbers and stand at the right."""


@dataclass(frozen=True)
class Run:
    """Everything that was measured by one command."""

    command: str
    machine: dict[str, Any]
    versions: dict[str, str]
    compiled: dict[str, dict[str, Any]]
    """recipe → what `benchmarks.compilation` wrote."""
    reused: bool
    """Whether an earlier run compiled."""
    heats: tuple[Heat, ...]
    other_cores: float | None
    minutes: float


def tables(run: Run, directory: Path) -> list[Table]:
    found = [_compilation(run)]
    for heat in run.heats:
        found.append(engines(heat, list(summary.rows(heat, directory))))
        compared = list(summary.ratios(heat))
        if compared:
            found.append(_ratios(heat, compared))
    return found


def _compilation(run: Run) -> Table:
    rows = tuple(
        (
            recipe,
            f"{one['quantize_seconds']:.0f} s",
            f"{one['export_seconds']:.0f} s",
            _megabytes(one["peak_rss_bytes"]),
            _megabytes(one["graph_bytes"]),
            f"{one['verification']['logits_difference']:.0e}",
        )
        for recipe, one in run.compiled.items()
    )
    columns = ("recipe", "quantise", "export, verify", "peak memory MB", "graphs MB", "logits vs torch")
    return Table("Compilation, by an earlier run" if run.reused else "Compilation", columns, rows)


def engines(heat: Heat, rows: Sequence[Row]) -> Table:
    columns = (
        "engine",
        "layers",
        "tile ms",
        "prefill ms",
        "first token ms",
        "tokens/s",
        "MB/token",
        "of roof",
        "peak MB",
        "features cos",
        "logits cos",
        "CPU",
    )
    speed = Spread.of(heat.gb_per_second)
    title = (
        f"{_threads(heat)}, sequential reads {speed.median:.1f} GB/s ({speed.low:.1f}–{speed.high:.1f}), "
        f"{heat.repetitions} rounds"
    )
    return Table(title, columns, tuple(_cells(row) for row in rows))


def _cells(row: Row) -> tuple[str, ...]:
    if row.skipped:
        return (row.engine.title, row.engine.weights, f"skipped: {row.skipped}", *[""] * 9)
    return (
        row.engine.title,
        row.engine.weights,
        "not run" if row.vision_ms is None else _spread(row.vision_ms, 0),
        _spread(row.prefill_ms, 0),
        _spread(row.time_to_first_token_ms, 0),
        _spread(row.tokens_per_second, 1),
        f"{row.weight_bytes / 1e6:.1f}",
        "" if row.roof_share is None else f"{row.roof_share:.0%}",
        _megabytes(row.peak_rss_bytes),
        "" if row.features_cosine is None else f"{row.features_cosine:.4f}",
        "" if row.logits_cosine is None else f"{row.logits_cosine:.4f}",
        f"{row.cpu_share:.0%}",
    )


def _ratios(heat: Heat, compared: Sequence[Ratio]) -> Table:
    rows = tuple(
        (
            f"{one.engine.title}, {one.engine.weights}",
            f"{one.peer.title}, {one.peer.weights}",
            _spread(one.time_to_first_token, 2),
            _spread(one.prefill, 2),
            _spread(one.decode, 2),
        )
        for one in compared
    )
    title = f"{_threads(heat)}: times as fast as the peer (below 1: slower)"
    return Table(title, ("engine", "peer", "first token", "prefill", "decode"), rows)


def _threads(heat: Heat) -> str:
    return "One thread" if heat.threads == 1 else f"{heat.threads} threads"


def _spread(value: Spread | None, digits: int) -> str:
    if value is None:
        return ""
    return f"{value.median:.{digits}f} ({value.low:.{digits}f}–{value.high:.{digits}f})"


def _megabytes(size: float) -> str:
    return f"{size / 1e6:,.0f}"


def company(other_cores: float | None, cores: int) -> str:
    """One sentence about the company in which was measured."""
    if other_cores is None:
        return "How busy other processes were is not known on this system."
    if other_cores <= QUIET:
        return f"Other processes used {other_cores:.2f} cores on average: a quiet machine."
    return (
        f"**Not a quiet machine**: other processes used {other_cores:.2f} of {cores} "
        "cores on average. Absolute numbers are too low, and ratios scatter with the scheduler."
    )


def condition(run: Run) -> str:
    return company(run.other_cores, run.machine["cores"])


def terminal(run: Run, directory: Path) -> str:
    import io

    from rich import box
    from rich.console import Console
    from rich.table import Table as RichTable

    out = io.StringIO()
    console = Console(file=out, width=WIDTH, highlight=False)
    for table in tables(run, directory):
        shown = RichTable(title=table.title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
        for number, column in enumerate(table.columns):
            shown.add_column(column, justify="left" if number < 2 else "right")
        for row in table.rows:
            shown.add_row(*row)
        console.print(shown)
    console.print(condition(run).replace("**", ""))
    return out.getvalue()


def markdown(run: Run, directory: Path) -> str:
    said = [
        "Written by `--markdown`. [How to read it](README.md).",
        f"`{run.command}`, {run.minutes:.0f} minutes. {condition(run)}",
        machine(run.machine),
        "Versions: " + ", ".join(f"{name} {version}" for name, version in run.versions.items()) + ".",
    ]
    return document("Results", said, tables(run, directory))


def document(title: str, said: Sequence[str], found: Sequence[Table]) -> str:
    """A page of Markdown: paragraphs, then tables."""
    parts = [f"# {title}", *said]
    for table in found:
        numbers = len(table.columns) - table.words
        lines = [table.columns, ["---"] * table.words + ["---:"] * numbers, *table.rows]
        parts += [f"## {table.title}", "\n".join(f"| {' | '.join(line)} |" for line in lines)]
    return "\n\n".join(parts) + "\n"


def machine(one: dict[str, Any]) -> str:
    allowed = one["cores_allowed"]
    pinned = "" if len(allowed) == one["cores"] else f", pinned to core {', '.join(map(str, allowed))}"
    return (
        f"{one['cpu']}, {one['cores']} cores{pinned}, {one['memory_bytes'] / 1e9:.0f} GB, {one['platform']}."
    )
