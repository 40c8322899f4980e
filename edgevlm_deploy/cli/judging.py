"""Second opinions about wrong answers."""

from __future__ import annotations

from typing import Annotated

import typer

from edgevlm_deploy.cli.application import AsJson, BundlePath, app, show


@app.command(
    epilog="Example: edgevlm judge build/demo-host-cpu.edgevlm --endpoint http://localhost:8000/v1 "
    "--model qwen3-8b. Opinions are kept in BUNDLE.judgements: nothing is asked twice."
)
def judge(
    bundle: BundlePath,
    endpoint: Annotated[
        str | None,
        typer.Option(help="Base URL of an OpenAI-compatible endpoint; without it nobody is asked."),
    ] = None,
    model: Annotated[str | None, typer.Option(help="Name of the model there.")] = None,
    key_variable: Annotated[
        str, typer.Option(help="Environment variable with the endpoint's key.")
    ] = "EDGEVLM_JUDGE_API_KEY",
    pictures: Annotated[
        bool, typer.Option("--pictures", help="Send the picture that the model saw with each failure.")
    ] = False,
    most: Annotated[int | None, typer.Option(help="Ask about this many failures at most.", min=1)] = None,
    parallel: Annotated[int, typer.Option(help="Questions on the way at once.", min=1, max=64)] = 4,
    timeout: Annotated[float, typer.Option(help="Seconds for one answer.", min=1.0)] = 60.0,
    as_json: AsJson = False,
) -> None:
    """Sort the wrong answers of a validated BUNDLE by kind of failure: by rules, and by language models."""
    from edgevlm_deploy import judging
    from edgevlm_deploy.progress import Progress
    from edgevlm_deploy.report import terminal

    if (endpoint is None) != (model is None):
        raise typer.BadParameter("go together.", param_hint="--endpoint and --model")
    wrong = judging.wrong_answers(bundle)
    if endpoint is not None and model is not None:
        asked = judging.open_endpoint(endpoint, model, key_variable, timeout)
        with Progress(quiet=as_json) as progress:
            judging.ask(wrong, asked, progress, pictures=pictures, most=most, parallel=parallel)
    judged = judging.compare(wrong)
    show(judged.to_json(), as_json, terminal.judges_table(judged))
