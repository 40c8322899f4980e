"""The command line. Parses, calls `pipeline`, prints; nothing heavy is imported before a command runs."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import typer

from edgevlm_deploy.errors import EXIT_INTERRUPTED, EdgeVlmError

EPILOG = (
    "Exit codes: 0 passed · 3 a gate failed · 4 inconclusive, more items needed · 5 lint found errors · "
    "2 wrong command line · "
    "10 recipe or target file · 11 not found · 12 plan · 13 checkpoint · 14 data · 15 missing extra · "
    "16 quantiser · 17 export · 18 no ONNX graph · 19 device · 20 bundle · 21 image · 22 prompt · "
    "23 runtime missing · "
    "24 execution · 25 storage · 130 interrupted · 1 a defect in edgevlm."
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


class Form(str, Enum):
    """What `package` makes; the same values as `package.Form`, which is imported when it runs."""

    FOLDER = "folder"
    LITERTLM = "litertlm"
    QUALCOMM = "qualcomm"


class Described(str, Enum):
    """What `schema` describes."""

    RECIPE = "recipe"
    TARGET = "target"


@app.command("compile", epilog="Example: edgevlm compile demo --target host-cpu --recipe default")
def compile_(
    model: Annotated[str, typer.Argument(help="Checkpoint folder, hub id, or `demo`.")],
    target: Annotated[str, typer.Option(help="Name of a target, or a YAML file.")],
    recipe: Annotated[
        str | None, typer.Option(help="Name of a recipe, or a YAML file; the target's own by default.")
    ] = None,
    data: Annotated[Path | None, typer.Option(help="Evaluation items: JSONL, VQAv2, POPE or folder.")] = None,
    calibration: Annotated[
        Path | None, typer.Option(help="Calibration samples; without it they are split off --data.")
    ] = None,
    images: Annotated[Path | None, typer.Option(help="Folder of the pictures that --data names.")] = None,
    revision: Annotated[str | None, typer.Option(help="Hub revision (branch, tag or commit).")] = None,
    offline: Annotated[
        bool, typer.Option("--offline", help="Take hub models from the local cache only.")
    ] = False,
    out: Annotated[
        Path, typer.Option(help="Folder for the bundle, its evidence and finished stages.")
    ] = Path("build"),
    evidence: Annotated[
        bool, typer.Option("--evidence/--no-evidence", help="Run and judge the bundle on this machine.")
    ] = True,
    allow_failing: AllowFailing = False,
    as_json: AsJson = False,
) -> None:
    """Quantise, export and pack MODEL for a target; then run, judge and seal it."""
    from edgevlm_deploy import pipeline, validation
    from edgevlm_deploy.progress import Progress

    order = pipeline.Order(
        model=model,
        target=target,
        recipe=recipe,
        data=data,
        calibration=calibration,
        images=images,
        revision=revision,
        offline=offline,
        out=out,
    )
    with Progress(quiet=as_json) as progress:
        bundle = pipeline.compile(order, progress)
        # A board's own software is there only on the board.
        emulate = pipeline.needs_emulation(order)
        done = validation.validate(bundle, allow_failing, progress, emulate=emulate) if evidence else None
    if done is None:
        _print({"bundle": str(bundle)}, as_json, f"{bundle} (no evidence yet: edgevlm validate {bundle})")
    else:
        _finish(done, as_json)


@app.command(
    epilog="Example: edgevlm validate build/demo-host-cpu.edgevlm, or with --device adb on a phone. A device "
    "needs Python 3.8 or later with numpy, Pillow, tokenizers and the bundle's runtime, but no edgevlm."
)
def validate(
    bundle: BundlePath,
    device: Annotated[
        str | None,
        typer.Option(
            help="Run it there: adb, adb:SERIAL, ssh:HOST or ssh://USER@HOST:PORT. Judged and sealed here."
        ),
    ] = None,
    device_python: Annotated[str, typer.Option(help="The Python on the device.")] = "python3",
    device_timeout: Annotated[
        float, typer.Option(help="Give up after this many seconds without a sign of life.", min=1.0)
    ] = 1800.0,
    emulate: Emulate = False,
    allow_failing: AllowFailing = False,
    junit: Annotated[Path | None, typer.Option(help="Also write the verdict as JUnit XML.")] = None,
    as_json: AsJson = False,
) -> None:
    """Run BUNDLE on this machine or a device, judge it against its gates and seal it if all pass."""
    from edgevlm_deploy import device as devices
    from edgevlm_deploy import validation
    from edgevlm_deploy.progress import Progress

    if device and emulate:
        raise typer.BadParameter(
            "goes without --device: a device runs the graphs itself.", param_hint="--emulate"
        )
    to = devices.named(device, device_python, device_timeout) if device else None
    with Progress(quiet=as_json) as progress:
        done = validation.validate(bundle, allow_failing, progress, to, emulate)
    if junit is not None:
        from edgevlm_deploy.report import junit as page

        page.render(done.verdict, junit)
    _finish(done, as_json)


@app.command(
    epilog="Example: edgevlm run build/demo-host-cpu.edgevlm --image scene.png "
    '--prompt "What color is the cube?"'
)
def run(
    bundle: BundlePath,
    prompt: Annotated[str, typer.Option(help="The question.")],
    image: Annotated[
        Path | None, typer.Option(help="The picture; leave it out for a question alone.")
    ] = None,
    unsealed: Annotated[
        bool, typer.Option("--unsealed", help="Run a bundle that has not passed its gates.")
    ] = False,
    emulate: Emulate = False,
    as_json: AsJson = False,
) -> None:
    """Ask a sealed bundle one question and stream its answer."""
    from edgevlm_deploy import ask

    if as_json:
        typer.echo(json.dumps(ask.answer(bundle, prompt, image, unsealed, lambda _: None, emulate)))
        return
    reply = ask.answer(bundle, prompt, image, unsealed, lambda text: typer.echo(text, nl=False), emulate)
    typer.echo()
    typer.echo(
        f"first token {reply['time_to_first_token_ms']:.0f} ms · {reply['tokens']} tokens · "
        f"confidence {reply['confidence']:.2f}",
        err=True,
    )


@app.command(epilog="Example: edgevlm package build/demo-snapdragon-8-gen3.edgevlm --format litertlm")
def package(
    bundle: BundlePath,
    form: Annotated[
        Form,
        typer.Option(
            "--format",
            help="folder: unpacked, for adb push; litertlm: for LiteRT-LM on Android; qualcomm: compiled for "
            "the NPU with Qualcomm's SDK (not run on hardware).",
        ),
    ],
    out: Annotated[Path | None, typer.Option(help="Where to write it; beside the bundle by default.")] = None,
    unsealed: Annotated[
        bool, typer.Option("--unsealed", help="Package a bundle that has not passed its gates.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Put a sealed BUNDLE into the form that a device takes."""
    from edgevlm_deploy import package as packages
    from edgevlm_deploy.report import terminal

    wanted = packages.Form(form.value)
    made = packages.package(bundle, wanted, out or packages.default_out(bundle, wanted), unsealed)
    _print(made, as_json, terminal.package_text(made))


@app.command(epilog="Example: edgevlm targets")
def targets(as_json: AsJson = False) -> None:
    """List the device tiers that edgevlm knows."""
    from edgevlm_deploy import resources

    found = [resources.target(name) for name in resources.names("targets")]
    rows = [(one.name, one.backend.value, one.recipe, one.description) for one in found]
    _print(
        [one.model_dump(mode="json") for one in found],
        as_json,
        _table(("target", "backend", "recipe", ""), rows),
    )


@app.command(epilog="Example: edgevlm recipes")
def recipes(as_json: AsJson = False) -> None:
    """List the recipes that ship with edgevlm."""
    from edgevlm_deploy import resources

    found = [resources.recipe(name) for name in resources.names("recipes")]
    rows = [(one.name, f"{len(one.gates)} gates", one.description) for one in found]
    _print([one.model_dump(mode="json") for one in found], as_json, _table(("recipe", "", ""), rows))


@app.command(epilog="Example: edgevlm schema recipe > recipe.schema.json")
def schema(of: Annotated[Described, typer.Argument(help="What to describe.")]) -> None:
    """Print the JSON Schema of a recipe or target file."""
    from edgevlm_deploy.recipe import Recipe
    from edgevlm_deploy.target import Target

    described = Recipe if of is Described.RECIPE else Target
    typer.echo(json.dumps(described.model_json_schema(), indent=2))


@app.command(epilog="Example: edgevlm inspect build/demo-host-cpu.edgevlm")
def inspect(bundle: BundlePath, as_json: AsJson = False) -> None:
    """Say what is in BUNDLE: source, precision, sizes, checks and seal."""
    from edgevlm_deploy import bundle as bundles
    from edgevlm_deploy.report import terminal

    opened = bundles.open_bundle(bundle)
    summary = terminal.summary(opened)
    _print(summary, as_json, terminal.summary_text(summary))


@app.command(epilog="Example: edgevlm report build/demo-host-cpu.edgevlm --html report.html")
def report(
    bundle: BundlePath,
    html: Annotated[
        Path | None, typer.Option(help="Where to write the page; beside the bundle by default.")
    ] = None,
) -> None:
    """Write the HTML report of a validated BUNDLE."""
    from edgevlm_deploy import validation

    typer.echo(validation.report_of(bundle, html))


@app.command(
    epilog="Example: edgevlm diff reference build/demo-host-cpu.edgevlm --html diff.html. The exit code says "
    "nothing about the answers: 0 when they could be compared."
)
def diff(
    a: Annotated[str, typer.Argument(help="A validated bundle, or `reference`: the FP16 answers in B.")],
    b: Annotated[str, typer.Argument(help="A validated bundle with the same items.")],
    html: Annotated[Path | None, typer.Option(help="Also write a page with pictures there.")] = None,
    as_json: AsJson = False,
) -> None:
    """Compare the answers of bundles A and B item by item: which differ, which way, how sure they are."""
    from edgevlm_deploy import comparison
    from edgevlm_deploy.report import terminal

    compared = comparison.compare(*comparison.open_sides(a, b))
    if html is not None:
        from edgevlm_deploy.report import comparison as page

        page.render(compared, html)
    _print(compared.to_json(), as_json, terminal.comparison_table(compared))


@app.command(epilog="Example: edgevlm lint decoder.onnx --target orin --profile tokens=1:1:512")
def lint(
    graph: Annotated[Path, typer.Argument(help="An ONNX file; weights in other files stay beside it.")],
    target: Annotated[str, typer.Option(help="Name of a target with TensorRT, or a YAML file.")],
    profile: Annotated[
        list[str] | None,
        typer.Option(
            help="INPUT=MIN:OPT:MAX with shapes such as 4x3x512x512, or SYMBOL=MIN:OPT:MAX for a dynamic "
            "size wherever it stands; may be given again."
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Check GRAPH against what TensorRT takes on a board; no TensorRT is needed."""
    from edgevlm_deploy import resources
    from edgevlm_deploy.lint import tensorrt
    from edgevlm_deploy.report import terminal

    profiles = dict(_profile(one) for one in profile or [])
    report = tensorrt.lint(graph, resources.target(target), profiles)
    _print(report.to_json(), as_json, terminal.lint_table(report))
    raise typer.Exit(report.exit_code)


def _profile(text: str) -> tuple[str, Any]:
    from edgevlm_deploy.lint.subject import Profile

    name, _, shapes = text.rpartition("=")
    try:
        low, usual, high = (tuple(map(int, shape.split("x"))) for shape in shapes.split(":"))
    except ValueError:
        raise typer.BadParameter(
            f"{text!r}: expected INPUT=MIN:OPT:MAX, for example "
            "pixel_values=1x3x512x512:4x3x512x512:17x3x512x512",
            param_hint="--profile",
        ) from None
    return name, Profile(low, usual, high)


def _finish(validation: Any, as_json: bool) -> None:
    from edgevlm_deploy.report import terminal

    _print(validation.to_json(), as_json, terminal.verdict_table(validation))
    raise typer.Exit(validation.verdict.exit_code)


def _print(data: Any, as_json: bool, text: str) -> None:
    typer.echo(json.dumps(data, indent=1, ensure_ascii=False) if as_json else text)


def _table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    widths = [max(len(row[i]) for row in [head, *rows]) for i in range(len(head))]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in [head, *rows]
    ]
    return "\n".join(line.rstrip() for line in lines)


def main() -> None:
    """Entry point: errors become one message on standard error and the exit code of their cause."""
    try:
        app()
    except EdgeVlmError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        print("interrupted; finished stages are kept, run the same command to go on", file=sys.stderr)
        sys.exit(EXIT_INTERRUPTED)


if __name__ == "__main__":
    main()
