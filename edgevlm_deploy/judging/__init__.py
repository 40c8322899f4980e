"""Second opinions: the failures of a validated bundle by rules and by language models, and how they agree."""

from __future__ import annotations

import contextlib
import io
import queue
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

from edgevlm_runner.bundle import Bundle
from edgevlm_runner.contract import Answer, read_jsonl
from edgevlm_runner.inputs import picture_of
from edgevlm_runner.measure import read_evidence

from edgevlm_deploy import bundle as bundles
from edgevlm_deploy.config import Frozen
from edgevlm_deploy.errors import BundleError, EndpointError
from edgevlm_deploy.judging import prompt
from edgevlm_deploy.judging.endpoint import Endpoint, open_endpoint
from edgevlm_deploy.judging.opinions import (
    SUFFIX,
    Judge,
    Wrong,
    all_opinions,
    open_opinions,
)
from edgevlm_deploy.metrics import Estimate, Metrics
from edgevlm_deploy.metrics.agreement import cohens_kappa
from edgevlm_deploy.metrics.failures import blind_answers
from edgevlm_deploy.metrics.taxonomy import Category, Failure, judge
from edgevlm_deploy.progress import Watcher
from edgevlm_deploy.recipe import Evaluation

__all__ = ["Judged", "WrongAnswers", "ask", "compare", "open_endpoint", "wrong_answers"]

RULES = "rules"
"""Name of the judge that asks nobody."""


class Column(Frozen):
    """One judge's categories."""

    judge: str
    counts: dict[Category, int]
    unparsed: int
    """Answers that name no category."""
    missing: int
    """Failures that it was not asked about."""


class Agreement(Frozen):
    """Two judges on the failures that both sorted."""

    a: str
    b: str
    same: int
    """Failures that both put into one category."""
    kappa: Estimate


class Judged(Frozen):
    failures: int
    """Wrong answers of the artifact; the empty ones among them are judged by nobody."""
    empty: int
    columns: tuple[Column, ...]
    agreements: tuple[Agreement, ...]

    def to_json(self) -> dict[str, Any]:
        return self.model_dump(mode="json")


@dataclass(frozen=True)
class WrongAnswers:
    """The artifact's failures as the metrics count them, in item order."""

    bundle: Bundle
    rows: tuple[Wrong, ...]
    empty: int
    folder: Path
    """Where opinions about them are kept."""

    @property
    def evaluation(self) -> Evaluation:
        return bundles.recipe(self.bundle).evaluation


def wrong_answers(path: Path) -> WrongAnswers:
    """Raises BundleError when the bundle has no evidence, or evidence that an older edgevlm judged."""
    opened = bundles.open_bundle(path)
    directory = bundles.evidence_of(opened, path)
    read_evidence(directory, opened.digest)
    artifact = read_jsonl(directory / "answers.jsonl", Answer)
    reference = {one.item_id: one for one in read_jsonl(opened.path("reference.jsonl"), Answer)}
    said = {one.item_id: one for one in artifact}
    items = {item.id: item for item in opened.items}
    blind = blind_answers(opened.items, artifact)
    found = []
    for failed in _metrics(directory / "metrics.json", path).failures:
        item = items[failed.id]
        failure = Failure(
            item.prompt, item.answers, said[item.id].text, reference[item.id].text, blind.get(item.base_id)
        )
        found.append(Wrong(item, failure))
    rows = tuple(one for one in found if not one.failure.empty)
    return WrongAnswers(opened, rows, len(found) - len(rows), path.with_suffix(SUFFIX))


def _metrics(path: Path, bundle: Path) -> Metrics:
    try:
        metrics = Metrics.model_validate_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BundleError(
            f"{path}: no readable metrics ({error}). Run `edgevlm validate {bundle}`."
        ) from error
    if not metrics.taxonomy:
        raise BundleError(f"{path}: from before failures were sorted. Run `edgevlm validate {bundle}` again.")
    return metrics


def ask(
    wrong: WrongAnswers,
    endpoint: Endpoint,
    watch: Watcher,
    *,
    pictures: bool = False,
    most: int | None = None,
    parallel: int = 4,
) -> None:
    """Ask the endpoint about each failure that it has not judged yet, `parallel` at a time.

    `most`: about this many failures at most, those with the smallest digests, so that a larger number
    includes a smaller one. Raises EndpointError; what was answered until then is kept.
    """
    judge = Judge(model=endpoint.model, endpoint=endpoint.url, pictures=pictures)
    kept = open_opinions(wrong.folder, judge)
    known = kept.read()
    everything = {one.identity(pictures): one for one in wrong.rows}
    chosen = {name: everything[name] for name in sorted(everything)[:most]}
    missing = [one for name, one in chosen.items() if name not in known]
    watch.begin(f"Ask {endpoint.model}", len(missing))
    trouble: EndpointError | None = None
    for one, answer in _answers(missing, lambda one: _ask_one(endpoint, wrong, one, pictures), parallel):
        if isinstance(answer, EndpointError):
            trouble = trouble or answer
        elif isinstance(answer, Exception):
            raise answer
        else:
            kept.append(one, answer)
            watch.advance()
    if trouble is not None:
        raise EndpointError(
            f"{trouble}\n{len(kept.read()):,} of {len(chosen):,} failures are judged and kept in "
            f"{kept.path}; the same command goes on."
        ) from trouble


def _answers(
    todo: Sequence[Wrong], ask_one: Callable[[Wrong], str], parallel: int
) -> Iterator[tuple[Wrong, str | Exception]]:
    """Answers as they come; the first error calls off what was not begun.

    Daemon threads, because an executor's would keep an interrupted program waiting for its questions.
    """
    waiting: queue.SimpleQueue[Wrong] = queue.SimpleQueue()
    came: queue.SimpleQueue[tuple[Wrong, str | Exception] | None] = queue.SimpleQueue()
    for one in todo:
        waiting.put(one)
    stopped = threading.Event()

    def work() -> None:
        with contextlib.suppress(queue.Empty):
            while not stopped.is_set():
                one = waiting.get_nowait()
                came.put((one, _outcome(ask_one, one, stopped)))
        came.put(None)

    for _ in range(parallel):
        threading.Thread(target=work, daemon=True).start()
    try:
        for _ in range(parallel):
            yield from iter(came.get, None)
    finally:
        stopped.set()


def _outcome(ask_one: Callable[[Wrong], str], one: Wrong, stopped: threading.Event) -> str | Exception:
    try:
        return ask_one(one)
    except Exception as error:  # raised again where the answers are read
        stopped.set()
        return error


def _ask_one(endpoint: Endpoint, wrong: WrongAnswers, one: Wrong, pictures: bool) -> str:
    picture = None
    if pictures and one.item.image:
        seed = int(wrong.bundle.manifest["seeds"]["evaluation"])
        seen = picture_of(one.item, wrong.bundle.root, seed)
        assert seen is not None
        data = io.BytesIO()
        seen.convert("RGB").save(data, "PNG")
        picture = data.getvalue()
    return endpoint.ask(prompt.SYSTEM, prompt.user(one.failure), picture)


def compare(wrong: WrongAnswers) -> Judged:
    """The rules and every language model that was asked, and Cohen's κ of each two of them."""
    sorted_by: dict[str, list[Category | None]] = {RULES: [_by_rules(one) for one in wrong.rows]}
    columns = [_column(RULES, sorted_by[RULES], 0)]
    for kept in all_opinions(wrong.folder):
        known, by = kept.read(), kept.judge
        name = by.name if by.name not in sorted_by else f"{by.name} at {by.endpoint}"
        found = [known.get(one.identity(by.pictures)) for one in wrong.rows]
        sorted_by[name] = [one.category if one else None for one in found]
        columns.append(_column(name, sorted_by[name], found.count(None)))
    return Judged(
        failures=len(wrong.rows) + wrong.empty,
        empty=wrong.empty,
        columns=tuple(columns),
        agreements=tuple(
            _agreement(wrong, (a, sorted_by[a]), (b, sorted_by[b])) for a, b in combinations(sorted_by, 2)
        ),
    )


def _by_rules(one: Wrong) -> Category | None:
    rule = judge(one.failure)
    return rule.category if rule else None


def _column(name: str, categories: Sequence[Category | None], missing: int) -> Column:
    counts = Counter(categories)
    return Column(
        judge=name,
        counts={category: counts[category] for category in Category},
        unparsed=counts[None] - missing,
        missing=missing,
    )


Sorted = tuple[str, Sequence[Category | None]]
"""A judge's name and its category of each failure; None where it has none."""


def _agreement(wrong: WrongAnswers, a: Sorted, b: Sorted) -> Agreement:
    both = [
        (one.value, other.value, row.item.image_id or row.item.base_id)
        for one, other, row in zip(a[1], b[1], wrong.rows, strict=True)
        if one is not None and other is not None
    ]
    one, other, pictures = ([row[place] for row in both] for place in range(3))
    return Agreement(
        a=a[0],
        b=b[0],
        same=sum(row[0] == row[1] for row in both),
        kappa=cohens_kappa(one, other, pictures, wrong.evaluation),
    )
