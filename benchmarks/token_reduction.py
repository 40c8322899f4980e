"""What fewer image tokens cost: `python -m benchmarks.token_reduction`.

The demo is compiled once for each method and share of tokens kept, unquantised, so that nothing but the
reduction changes answers; the runner answers the items, and they are judged against the source model with
all its tokens.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
from collections.abc import Sequence
from pathlib import Path

import yaml

from benchmarks import conditions, page
from benchmarks.process import run, say
from benchmarks.rounds import REPOSITORY
from edgevlm_deploy import reduction, resources
from edgevlm_deploy.recipe import Recipe, Reduction, ReductionMethod

BUILD = REPOSITORY / "build" / "benchmarks" / "token-reduction"
SHARES = (0.75, 0.5, 0.33, 0.22, 0.11)
METHODS = tuple(method.value for method in ReductionMethod)
CONDITIONS = 50
"""Ten corruptions at five severities."""


def arguments(given: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.token_reduction", description=__doc__)
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=METHODS)
    parser.add_argument("--keep", nargs="+", type=float, default=SHARES, help="shares of tokens kept")
    parser.add_argument("--items", type=int, default=400, help="clean items, and as many corrupted ones")
    parser.add_argument("--rounds", type=int, default=100, help="timed answers of each bundle")
    parser.add_argument("--reuse", action="store_true", help="keep what an earlier run judged")
    parser.add_argument(
        "--markdown", type=Path, help="write the table, e.g. to docs/token-reduction-results.md"
    )
    return parser.parse_args(given)


def recipe(wanted: Reduction | None, items: int) -> Recipe:
    """`fp16` with fewer image tokens and `items` clean and corrupted items each."""
    plain = resources.recipe("fp16")
    name = "all" if wanted is None else f"{wanted.method.value}-{100 * wanted.keep:.0f}"
    evaluation = plain.evaluation.model_copy(
        update={
            "clean_items": items,
            "items_per_condition": max(1, items // CONDITIONS),
            "temperature_items": 0,
        }
    )
    image = plain.image.model_copy(update={"reduction": wanted})
    return plain.model_copy(update={"name": name, "image": image, "evaluation": evaluation})


def folder_of(made: Recipe) -> Path:
    return BUILD / f"demo-host-cpu-{made.name}.evidence"


def judge(made: Recipe, reuse: bool) -> None:
    """Compile and validate one bundle."""
    if reuse and (folder_of(made) / "verdict.json").is_file():
        return
    say(made.name)
    BUILD.mkdir(parents=True, exist_ok=True)
    file = BUILD / f"{made.name}.yaml"
    file.write_text(yaml.safe_dump(made.model_dump(mode="json", exclude_defaults=True)))
    order = ["compile", "demo", "--target", "host-cpu", "--recipe", str(file), "--out", str(BUILD)]
    run("-m", "edgevlm_deploy.cli", *order, "--json", accepted=(0, 3, 4))


Times = tuple[float, float, float]
"""Milliseconds: vision encoder, prefill, whole answer."""


def timed(recipes: Sequence[Recipe], rounds: int) -> list[Times]:
    """The fastest of `rounds` answers to one question, one thread; the bundles take turns, so that other
    processes slow all of them.
    """
    from edgevlm_runner.bundle import open_bundle
    from edgevlm_runner.respond import Respondent

    say("timing")
    opened = [open_bundle(folder_of(one).with_suffix(".edgevlm")) for one in recipes]
    fastest = [(math.inf,) * 3 for _ in opened]
    with contextlib.ExitStack() as stack:
        respondents = [stack.enter_context(Respondent(bundle, threads=1)) for bundle in opened]
        for _ in range(rounds):
            for place, (bundle, respondent) in enumerate(zip(opened, respondents, strict=True)):
                reply = respondent.answer(bundle.items[0])[1]
                prefill = reply.time_to_first_token_ms - reply.preprocess_ms - reply.vision_ms
                now = (reply.vision_ms, prefill, reply.latency_ms)
                fastest[place] = tuple(map(min, zip(fastest[place], now, strict=True)))
    return [(vision, prefill, answer) for vision, prefill, answer in fastest]


def row(wanted: Reduction | None, made: Recipe, tokens: int, times: Times) -> tuple[str, ...]:
    estimates = json.loads((folder_of(made) / "metrics.json").read_text())["estimates"]
    verdict = json.loads((folder_of(made) / "verdict.json").read_text())
    kept = tokens if wanted is None else reduction.kept_tokens(tokens, wanted)

    def share(name: str) -> str:
        one = estimates[name]
        return f"{100 * one['value']:.1f} [{100 * one['low']:.1f}, {100 * one['high']:.1f}]"

    return (
        "none" if wanted is None else wanted.method.value,
        "100 %" if wanted is None else f"{100 * wanted.keep:.0f} %",
        str(kept),
        share("accuracy"),
        share("divergence_rate"),
        share("negative_flip_rate"),
        share("corrupted_accuracy"),
        share("corrupted_divergence_rate"),
        *(f"{one:.2f}" for one in times),
        verdict["outcome"],
    )


COLUMNS = (
    "method",
    "kept",
    "tokens",
    "accuracy %",
    "DR %",
    "NFR %",
    "corrupted accuracy %",
    "corrupted DR %",
    "vision ms",
    "prefill ms",
    "answer ms",
    "verdict",
)


def table(given: argparse.Namespace) -> page.Table:
    from edgevlm_deploy import source

    tokens = source.inspect(resources.DEMO_CHECKPOINT).architecture.tokens_per_tile
    wanted: list[Reduction | None] = [None]
    for method in given.methods:
        wanted += [Reduction(method=ReductionMethod(method), keep=keep) for keep in given.keep]
    recipes = [recipe(one, given.items) for one in wanted]
    for made in recipes:
        judge(made, given.reuse)
    times = timed(recipes, given.rounds)
    rows = tuple(row(one, made, tokens, took) for one, made, took in zip(wanted, recipes, times, strict=True))
    return page.Table(f"Demo model, {given.items} clean and {given.items} corrupted items", COLUMNS, rows)


def main() -> None:
    given = arguments()
    said = [
        "Written by `python -m benchmarks.token_reduction --markdown docs/token-reduction-results.md`. "
        "Unquantised graphs on ONNX Runtime against the source model with all its tokens; 95 % intervals "
        "in brackets. DR: answers that differ, NFR: right ones turned wrong. *Prefill*: embedding the prompt "
        f"and the first step of the decoder. Times are the fastest of {given.rounds} answers to one question "
        "on one thread, the bundles taking turns.",
        page.machine(conditions.machine()),
    ]
    text = page.document("Fewer image tokens, measured", said, [table(given)])
    print(text)
    if given.markdown:
        given.markdown.write_text(text)


if __name__ == "__main__":
    main()
