"""Look at what there is: bundles, their evidence, anybody's graph."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from edgevlm_deploy.cli.application import AsJson, BundlePath, app, show


@app.command(epilog="Example: edgevlm inspect build/demo-host-cpu.edgevlm")
def inspect(bundle: BundlePath, as_json: AsJson = False) -> None:
    """Say what is in BUNDLE: source, precision, sizes, checks and seal."""
    from edgevlm_deploy import bundle as bundles
    from edgevlm_deploy.report import terminal

    opened = bundles.open_bundle(bundle)
    summary = terminal.summary(opened)
    show(summary, as_json, terminal.summary_text(summary))


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
    show(compared.to_json(), as_json, terminal.comparison_table(compared))


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
    show(report.to_json(), as_json, terminal.lint_table(report))
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
