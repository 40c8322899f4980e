"""The application that the commands belong to, and what they share: options, and how they print."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

EPILOG = (
    "Exit codes: 0 passed · 3 a gate failed · 4 inconclusive, more items needed · 5 lint found errors · "
    "2 wrong command line · "
    "10 recipe or target file · 11 not found · 12 plan · 13 checkpoint · 14 data · 15 missing extra · "
    "16 quantiser · 17 export · 18 no ONNX graph · 19 device · 20 bundle · 21 image · 22 prompt · "
    "23 runtime missing · "
    "24 execution · 25 storage · 26 judging endpoint · 27 cells of a sweep · 130 interrupted · "
    "1 a defect in edgevlm."
)

app = typer.Typer(
    name="edgevlm",
    help="Compile vision-language models for edge devices, and refuse to ship one that broke on the way.",
    epilog=EPILOG,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object on standard output.")]
AllowFailing = Annotated[
    bool,
    typer.Option("--allow-failing", help='Seal it anyway, marked "not deployable". The exit code stays.'),
]
Emulate = Annotated[
    bool,
    typer.Option(
        "--emulate", help="Run TensorRT's graphs in ONNX Runtime here: answers, but no times and no seal."
    ),
]
BundlePath = Annotated[Path, typer.Argument(help="A NAME.edgevlm file or its unpacked folder.")]


def show(data: Any, as_json: bool, text: str) -> None:
    typer.echo(json.dumps(data, indent=1, ensure_ascii=False) if as_json else text)


def table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    widths = [max(len(row[i]) for row in [head, *rows]) for i in range(len(head))]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in [head, *rows]
    ]
    return "\n".join(line.rstrip() for line in lines)
