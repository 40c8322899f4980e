"""What fewer image tokens cost: `python -m benchmarks.token_reduction`.

The demo is compiled once for each method and share of tokens kept, unquantised, so that nothing but the
reduction changes answers; the runner answers the items, and they are judged against the source model with
all its tokens.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from statistics import median
from typing import Any

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


def judged(wanted: Reduction | None, items: int, reuse: bool) -> dict[str, Any]:
    """Metrics and evidence of one compiled and validated bundle."""
    BUILD.mkdir(parents=True, exist_ok=True)
    made = recipe(wanted, items)
    evidence = BUILD / f"demo-host-cpu-{made.name}.evidence"
    if not (reuse and (evidence / "verdict.json").is_file()):
        say(made.name)
        file = BUILD / f"{made.name}.yaml"
        file.write_text(yaml.safe_dump(made.model_dump(mode="json", exclude_defaults=True)))
        order = ["compile", "demo", "--target", "host-cpu", "--recipe", str(file), "--out", str(BUILD)]
        run("-m", "edgevlm_deploy.cli", *order, "--json", accepted=(0, 3, 4))
    return {
        name: json.loads((evidence / f"{name}.json").read_text())
        for name in ("metrics", "evidence", "verdict")
    }


def row(wanted: Reduction | None, tokens: int, found: dict[str, Any]) -> tuple[str, ...]:
    estimates, latency = found["metrics"]["estimates"], found["evidence"]["latency"]
    kept = tokens if wanted is None else reduction.kept_tokens(tokens, wanted)
    before = zip(
        latency["time_to_first_token_ms"], latency["preprocess_ms"], latency["vision_ms"], strict=True
    )

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
        f"{median(latency['vision_ms']):.2f}",
        f"{median(first - shown - seen for first, shown, seen in before):.2f}",
        f"{median(latency['latency_ms']):.2f}",
        found["verdict"]["outcome"],
    )


def table(methods: list[str], shares: list[float], items: int, reuse: bool) -> page.Table:
    from edgevlm_deploy import source

    tokens = source.inspect(resources.DEMO_CHECKPOINT).architecture.tokens_per_tile
    columns = (
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
    wanted: list[Reduction | None] = [None]
    wanted += [Reduction(method=ReductionMethod(one), keep=keep) for one in methods for keep in shares]
    rows = tuple(row(one, tokens, judged(one, items, reuse)) for one in wanted)
    return page.Table(f"Demo model, {items} clean and {items} corrupted items", columns, rows)


def main() -> None:
    given = arguments()
    said = [
        "Written by `python -m benchmarks.token_reduction --markdown docs/token-reduction-results.md`. "
        "Unquantised graphs on ONNX Runtime against the source model with all its tokens; 95 % intervals "
        "in brackets. DR: answers that differ, NFR: right ones turned wrong. Medians in milliseconds; "
        "*prefill*: embedding the prompt and the first step of the decoder.",
        page.machine(conditions.machine()),
    ]
    text = page.document(
        "Fewer image tokens, measured",
        said,
        [table(given.methods, given.keep, given.items, given.reuse)],
    )
    print(text)
    if given.markdown:
        given.markdown.write_text(text)


if __name__ == "__main__":
    main()
