"""What fewer image tokens cost: `python -m benchmarks.token_reduction`.

Answers come from the reduced torch model, unquantised, and are judged against those of the whole model: the
exported graphs repeat its tokens, which every compilation verifies. Times come from compiled bundles at one
share of tokens.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import tempfile
from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path

import yaml
from edgevlm_runner.contract import Answer, Item, ModelSpec
from edgevlm_runner.inputs import from_item, load_tokenizer

from benchmarks import conditions, page
from benchmarks.process import run, say
from benchmarks.rounds import REPOSITORY
from edgevlm_deploy import metrics, quiet, reduction, reference, resources
from edgevlm_deploy.pipeline.data import item_table
from edgevlm_deploy.pipeline.job import Job, Order, prepare
from edgevlm_deploy.progress import Silent
from edgevlm_deploy.recipe import Recipe, Reduction, ReductionMethod
from edgevlm_deploy.reference import Question
from edgevlm_deploy.search import pruned

BUILD = REPOSITORY / "build" / "benchmarks" / "token-reduction"
SHARES = (0.75, 0.5, 0.33, 0.22, 0.11)
METHODS = tuple(method.value for method in ReductionMethod)
CONDITIONS = 50
"""Ten corruptions at five severities."""
FEW = 50
"""Items of a bundle that is only timed."""


def arguments(given: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.token_reduction", description=__doc__)
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=METHODS)
    parser.add_argument("--keep", nargs="+", type=float, default=SHARES, help="shares of tokens kept")
    parser.add_argument("--items", type=int, default=400, help="clean items, and as many corrupted ones")
    parser.add_argument("--timed", type=float, default=0.33, help="share at which bundles are timed")
    parser.add_argument("--rounds", type=int, default=100, help="timed answers of each bundle")
    parser.add_argument("--reuse", action="store_true", help="go on where an earlier run stopped")
    parser.add_argument(
        "--markdown", type=Path, help="write the tables, e.g. docs/token-reduction-results.md"
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


def write(made: Recipe, folder: Path) -> Path:
    path = folder / f"{made.name}.yaml"
    path.write_text(yaml.safe_dump(made.model_dump(mode="json", exclude_defaults=True)))
    return path


def job_of(wanted: Reduction | None, items: int, folder: Path) -> Job:
    order = Order("demo", "host-cpu", str(write(recipe(wanted, items), folder)), folder)
    return prepare(order, Silent())


def answers(job: Job, rows: Sequence[Item], root: Path) -> list[Answer]:
    """In the order of `rows`. Questions of one length go together, so that none is padded."""
    spec, tokenizer = job.spec, load_tokenizer(job.source.tokenizer)
    assert isinstance(spec, ModelSpec)
    seed = job.plan.recipe.evaluation.seed
    model = job.load_model()
    asked = [Question(item, from_item(item, root, seed, spec, tokenizer)) for item in rows]
    asked.sort(key=lambda one: one.inputs.input_ids.shape[1])
    ask = reference.generate if spec.pruning is None else pruned.generate
    found: dict[str, Answer] = {}
    for _, group in groupby(asked, key=lambda one: one.inputs.input_ids.shape[1]):
        for batch in batches(list(group), reference.BATCH):
            found.update({one.item_id: one for one in ask(model, batch, spec, tokenizer)})
    return [found[item.id] for item in rows]


def batches(questions: Sequence[Question], size: int) -> Iterator[Sequence[Question]]:
    return (questions[first : first + size] for first in range(0, len(questions), size))


def costs(given: argparse.Namespace, wanted: Sequence[Reduction | None]) -> page.Table:
    """One row a method and share."""
    columns = (
        "method",
        "kept",
        "tokens",
        "prompt",
        "accuracy %",
        "DR %",
        "NFR %",
        "corrupted accuracy %",
        "corrupted DR %",
    )
    rows = []
    with quiet.libraries(), tempfile.TemporaryDirectory() as temporary:
        whole = job_of(None, given.items, Path(temporary))
        assert isinstance(whole.spec, ModelSpec)
        items = item_table(whole, whole.samples)
        expected = answers(whole, items.rows, items.root)
        tokens = whole.spec.prompt.tokens_per_tile
        length = prompt_tokens(whole, items.rows[0], items.root)
        for one in wanted:
            kept = tokens if one is None else reduction.kept_tokens(tokens, one)
            method = "none" if one is None else one.method.value
            share = "100 %" if one is None else f"{100 * one.keep:.0f} %"
            finished = BUILD / f"{recipe(one, given.items).name}-{given.items}-items.json"
            if not (given.reuse and finished.is_file()):
                say(f"{method} {share}")
                job = whole if one is None else job_of(one, given.items, Path(temporary))
                made = expected if one is None else answers(job, items.rows, items.root)
                found = metrics.compute(items.rows, expected, made, job.plan.recipe.evaluation).estimates
                BUILD.mkdir(parents=True, exist_ok=True)
                finished.write_text(json.dumps([_share(found[name]) for name in MEASURED]))
            measured = json.loads(finished.read_text())
            rows.append((method, share, str(kept), str(length - tokens + kept), *measured))
    title = f"Demo model, {given.items} clean and {given.items} corrupted items"
    return page.Table(title, columns, tuple(rows))


MEASURED = (
    "accuracy",
    "divergence_rate",
    "negative_flip_rate",
    "corrupted_accuracy",
    "corrupted_divergence_rate",
)


def _share(one: metrics.Estimate) -> str:
    assert one.value is not None and one.low is not None and one.high is not None
    return f"{100 * one.value:.1f} [{100 * one.low:.1f}, {100 * one.high:.1f}]"


def prompt_tokens(job: Job, item: Item, root: Path) -> int:
    """Of one question with its picture."""
    inputs = from_item(item, root, 0, job.spec, load_tokenizer(job.source.tokenizer))
    return int(inputs.input_ids.shape[1])


def bundle_of(made: Recipe, reuse: bool) -> Path:
    BUILD.mkdir(parents=True, exist_ok=True)
    path = BUILD / f"demo-host-cpu-{made.name}.edgevlm"
    if not (reuse and path.is_file()):
        say(f"compiling {made.name}")
        order = ["compile", "demo", "--target", "host-cpu", "--recipe", str(write(made, BUILD))]
        run("-m", "edgevlm_deploy.cli", *order, "--out", str(BUILD), "--no-evidence")
    return path


def times(given: argparse.Namespace, wanted: Sequence[Reduction | None]) -> page.Table:
    """The fastest of some answers to one question, one thread; the bundles take turns, so that other
    processes slow all of them.
    """
    from edgevlm_runner.bundle import open_bundle
    from edgevlm_runner.respond import Respondent

    recipes = [recipe(one, FEW) for one in wanted]
    opened = [open_bundle(bundle_of(one, given.reuse)) for one in recipes]
    fastest = [(math.inf, math.inf, math.inf) for _ in opened]
    with contextlib.ExitStack() as stack:
        respondents = [stack.enter_context(Respondent(bundle, threads=1)) for bundle in opened]
        for _ in range(given.rounds):
            for place, (bundle, respondent) in enumerate(zip(opened, respondents, strict=True)):
                reply = respondent.answer(bundle.items[0])[1]
                prefill = reply.time_to_first_token_ms - reply.preprocess_ms - reply.vision_ms
                before = fastest[place]
                fastest[place] = (
                    min(before[0], reply.vision_ms),
                    min(before[1], prefill),
                    min(before[2], reply.latency_ms),
                )
    rows = []
    for made, bundle, took in zip(recipes, opened, fastest, strict=True):
        checked = bundle.manifest["verification"]
        rows.append(
            (
                made.name,
                f"{checked['vision_difference']:.0e}",
                f"{checked['logits_difference']:.0e}",
                str(checked["tokens"]),
                *(f"{one:.2f}" for one in took),
            )
        )
    columns = ("bundle", "vision vs torch", "logits vs torch", "tokens equal", "vision ms", "prefill ms")
    return page.Table("Compiled for ONNX Runtime", (*columns, "answer ms"), tuple(rows))


def main() -> None:
    given = arguments()
    methods = [ReductionMethod(one) for one in given.methods]
    shares = [Reduction(method=method, keep=keep) for method in methods for keep in given.keep]
    at_one = [Reduction(method=method, keep=given.timed) for method in methods]
    said = [
        "Written by `python -m benchmarks.token_reduction --markdown docs/token-reduction-results.md`. "
        "Unquantised, against the model with all its tokens; 95 % intervals in brackets. *Prompt*: tokens of "
        "one question with its picture (for fastv: in the layers from 2 on). DR: answers that differ, NFR: "
        "right ones turned wrong. Of compiled bundles: largest differences between graph and torch, greedy "
        "tokens that agree, and the fastest of "
        f"{given.rounds} answers to one question on one thread, the bundles taking turns. *Prefill*: "
        "embedding the prompt and the first step of the decoder.",
        page.machine(conditions.machine()),
    ]
    tables = [costs(given, [None, *shares]), times(given, [None, *at_one])]
    text = page.document("Fewer image tokens, measured", said, tables)
    print(text)
    if given.markdown:
        given.markdown.write_text(text)


if __name__ == "__main__":
    main()
