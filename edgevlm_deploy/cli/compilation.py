"""From a model to a sealed artifact: compile, validate, run, package."""

from __future__ import annotations

import json
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edgevlm_deploy.cli.application import AllowFailing, AsJson, BundlePath, Emulate, app, show, table
from edgevlm_deploy.cli.ordering import takes_order

if TYPE_CHECKING:
    from edgevlm_deploy.pipeline import Order

SHOWN_CLASSES = 5
"""The likeliest; `--json` has all of them."""


class Form(str, Enum):
    """What `package` makes; the same values as `package.Form`, which is imported when it runs."""

    FOLDER = "folder"
    LITERTLM = "litertlm"
    QUALCOMM = "qualcomm"


@app.command("compile", epilog="Example: edgevlm compile demo --target host-cpu --recipe default")
@takes_order
def compile_(
    order: Order,
    evidence: Annotated[
        bool, typer.Option("--evidence/--no-evidence", help="Run and judge the bundle on this machine.")
    ] = True,
    allow_failing: AllowFailing = False,
    as_json: AsJson = False,
) -> None:
    """Quantise, export and pack MODEL for a target; then run, judge and seal it."""
    from edgevlm_deploy import pipeline, validation
    from edgevlm_deploy.progress import Progress

    with Progress(quiet=as_json) as progress:
        bundle = pipeline.compile(order, progress)
        # A board's own software is there only on the board.
        emulate = pipeline.needs_emulation(order)
        done = validation.validate(bundle, allow_failing, progress, emulate=emulate) if evidence else None
    if done is None:
        show({"bundle": str(bundle)}, as_json, f"{bundle} (no evidence yet: edgevlm validate {bundle})")
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
    prompt: Annotated[
        str | None,
        typer.Option(
            help="The question; for a zero-shot classifier, other classes than its own, separated by commas."
        ),
    ] = None,
    image: Annotated[
        Path | None, typer.Option(help="The picture; leave it out for a question alone.")
    ] = None,
    unsealed: Annotated[
        bool, typer.Option("--unsealed", help="Run a bundle that has not passed its gates.")
    ] = False,
    emulate: Emulate = False,
    as_json: AsJson = False,
) -> None:
    """Ask a sealed bundle one question and stream its answer, or let it classify a picture. It may abstain,
    if its recipe says so."""
    from edgevlm_deploy import ask

    if as_json:
        typer.echo(json.dumps(ask.answer(bundle, prompt, image, unsealed, lambda _: None, emulate)))
        return
    reply = ask.answer(bundle, prompt, image, unsealed, lambda text: typer.echo(text, nl=False), emulate)
    typer.echo()
    if "classes" in reply:
        rows = [(f"{one['probability']:.3f}", one["class"]) for one in reply["classes"][:SHOWN_CLASSES]]
        typer.echo(table(("probability", "class"), rows))
        typer.echo(f"{reply['latency_ms']:.0f} ms · confidence {reply['confidence']:.2f}", err=True)
        return
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
    show(made, as_json, terminal.package_text(made))


def _finish(validation: Any, as_json: bool) -> None:
    from edgevlm_deploy.report import terminal

    show(validation.to_json(), as_json, terminal.verdict_table(validation))
    raise typer.Exit(validation.verdict.exit_code)
