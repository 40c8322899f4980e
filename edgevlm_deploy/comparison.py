"""Two sets of answers to the same items: which differ, which way, and where confidence moved.

A takes the place of the reference and B that of the artifact in every metric of `edgevlm_deploy.metrics`;
nothing is counted a second way here.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

import numpy as np
from edgevlm_runner.bundle import Bundle
from edgevlm_runner.contract import CLEAN, PERTURBED, Answer, Item, Kind, read_jsonl
from edgevlm_runner.measure import read_evidence

from edgevlm_deploy import bundle as bundles
from edgevlm_deploy import metrics
from edgevlm_deploy.config import Frozen
from edgevlm_deploy.errors import DataError
from edgevlm_deploy.metrics import Estimate, Metrics
from edgevlm_deploy.metrics.accuracy import RIGHT_FROM
from edgevlm_deploy.metrics.compared import compare as compare_subset
from edgevlm_deploy.metrics.compared import partition, per_item
from edgevlm_deploy.metrics.consistency import Flip
from edgevlm_deploy.metrics.estimates import Subset, Table, mean
from edgevlm_deploy.metrics.pairs import Pairs, pair
from edgevlm_deploy.metrics.statistics import bootstrap, mcnemar
from edgevlm_deploy.metrics.tables import Comparison
from edgevlm_deploy.recipe import Evaluation

REFERENCE = "reference"
"""In place of a bundle's path: the FP16 answers that lie in the other bundle."""
MOVED = 0.1
"""An answer's confidence counts as risen or fallen from this difference of probabilities on."""


@dataclass(frozen=True)
class Side:
    """One set of answers, and the bundle that it lies in."""

    name: str
    bundle: Bundle
    answers: tuple[Answer, ...]
    evidence: Mapping[str, Any] | None
    """What the runner said about the machine; None for the FP16 reference."""


class Part(str, Enum):
    """What the items of a row have in common."""

    CLEAN = "clean"
    GROUP = "group"
    """Clean items of one kind of question."""
    CORRUPTED = "corrupted"
    CORRUPTION = "corruption"
    """One corruption at all its severities."""
    PERTURBED = "perturbed"
    PERTURBATION = "perturbation"
    """One change that should change no answer."""
    NEGATED = "negated"
    """Negation probes, whether or not the clean item is answered right."""
    FORM = "form"
    """Probes of one form."""
    BACKGROUND = "background"
    """On another background than the clean item."""
    GROUND = "ground"
    """On one such background."""


WHOLE = (Part.CLEAN, Part.CORRUPTED, Part.PERTURBED, Part.NEGATED, Part.BACKGROUND)
"""Every item is in one of these, and in at most one of the parts that they are made of."""


class Row(Frozen):
    """Both sides on some of the items."""

    part: Part
    name: str
    """Kind of question, corruption, perturbation or form; "" for all items of a whole."""
    comparison: Comparison
    """With A as the reference: `accuracy_drop` is accuracy of A minus accuracy of B."""
    negative: int
    """Items: right in A, wrong in B."""
    positive: int
    """Items: wrong in A, right in B."""
    still_wrong: int
    """Items: wrong in A, another wrong answer in B."""
    still_right: int
    """Items: right in both, in other words."""
    mcnemar_p: float
    """Exact McNemar test on `negative` and `positive`, two-sided; not adjusted for the number of rows."""
    a_confidence: float
    """Mean geometric-mean token probability."""
    b_confidence: float
    confidence_change: Estimate
    """Mean of the paired differences, B minus A; bootstrap over pictures."""
    risen: int
    """Items whose confidence is higher in B by `MOVED` or more."""
    fallen: int

    @property
    def whole(self) -> bool:
        return self.part in WHOLE


class ItemPair(Frozen):
    """One item and what both sides said about it."""

    id: str
    group: str
    condition: str
    question: str
    accepted: tuple[str, ...]
    a: str
    b: str
    a_accuracy: float
    b_accuracy: float
    a_confidence: float
    b_confidence: float
    flip: Flip | None
    """None when the answer stayed."""
    first_divergence: int | None
    """Position of the first token that differs."""


class Differences(Frozen):
    """Everything that differs between A and B on the items that both answered."""

    format_version: int = 1
    level: float
    items: int
    images: int
    rows: tuple[Row, ...]
    changed: tuple[ItemPair, ...]
    """Items with another answer."""
    moved: tuple[ItemPair, ...]
    """Items with the same answer whose confidence rose or fell by `MOVED` or more, the largest move first."""

    def of(self, *parts: Part) -> tuple[Row, ...]:
        return tuple(row for row in self.rows if row.part in parts)


@dataclass(frozen=True)
class Compared:
    a: Side
    b: Side
    differences: Differences
    metrics: Metrics
    """Of B on the common items, with A as its reference."""
    same_seed: bool
    """False when the two changed their pictures from different seeds: only clean items are compared."""

    @property
    def left_out(self) -> tuple[int, int]:
        """Items that only A has, and items that only B has."""
        common = self.differences.items
        return len(_counted(self.a.bundle.items)) - common, len(_counted(self.b.bundle.items)) - common

    def to_json(self) -> dict[str, Any]:
        only_a, only_b = self.left_out
        return {
            "a": _identity(self.a),
            "b": _identity(self.b),
            "only_in_a": only_a,
            "only_in_b": only_b,
            **self.differences.model_dump(mode="json"),
        }


def open_sides(a: str, b: str) -> tuple[Side, Side]:
    """`a` is the path of a validated bundle or the word "reference", `b` the path of one.

    Raises BundleError for what is no bundle or has no evidence.
    """
    second = _validated(Path(b))
    if a != REFERENCE:
        return _validated(Path(a)), second
    answers = read_jsonl(second.bundle.path("reference.jsonl"), Answer)
    return Side("FP16 reference", second.bundle, tuple(answers), None), second


def _validated(path: Path) -> Side:
    opened = bundles.open_bundle(path)
    directory = bundles.evidence_of(opened, path)
    evidence = read_evidence(directory, opened.digest)
    answers = read_jsonl(directory / "answers.jsonl", Answer)
    return Side(str(opened.manifest["name"]), opened, tuple(answers), evidence)


def _identity(side: Side) -> dict[str, Any]:
    return {
        "name": side.name,
        "bundle": side.bundle.digest,
        "recipe": side.bundle.manifest["recipe"]["name"] if side.evidence else None,
        "target": side.bundle.manifest["target"]["name"] if side.evidence else None,
        "machine": side.evidence["machine"]["cpu"] if side.evidence else None,
        "emulated": bool(side.evidence.get("emulated")) if side.evidence else False,
    }


def compare(a: Side, b: Side) -> Compared:
    """Confidence level, resamples and seed are those of B's recipe.

    Raises DataError without a common item, BundleError when B's recipe is of another version.
    """
    evaluation = bundles.recipe(b.bundle).evaluation
    same_seed = a.bundle.manifest["seeds"]["evaluation"] == b.bundle.manifest["seeds"]["evaluation"]
    mine, others = _counted(a.bundle.items), _counted(b.bundle.items)
    items = common_items(mine, others, same_seed)
    if not items:
        raise DataError(
            f"A has {len(mine):,} items and B {len(others):,}, and no item is in both: "
            "expected bundles with the same questions about the same pictures. Compile both with the same "
            "--data."
        )
    found = differences(items, a.answers, b.answers, evaluation)
    return Compared(a, b, found, metrics.compute(items, a.answers, b.answers, evaluation), same_seed)


def _counted(items: Sequence[Item]) -> tuple[Item, ...]:
    """Without questions whose answers tell nothing here: from elsewhere, or without their picture."""
    elsewhere = (Kind.TEMPERATURE, Kind.OOD)
    return tuple(item for item in items if item.kind not in elsewhere and not item.unseen)


def common_items(a: Sequence[Item], b: Sequence[Item], same_seed: bool) -> tuple[Item, ...]:
    """Items that are in both, in the order of `b`: same id, question, picture, condition and answers.

    Corrupted and perturbed pixels come from a seed, so they are left out without the same one.
    A variant is left out with its clean item.
    """
    there, seeded = set(a), () if same_seed else (Kind.CORRUPTED, Kind.PERTURBED)
    both = [item for item in b if item in there and item.kind not in seeded]
    clean = {item.id for item in both if item.condition == CLEAN}
    return tuple(item for item in both if item.base_id in clean)


def differences(
    items: Sequence[Item], a: Sequence[Answer], b: Sequence[Answer], evaluation: Evaluation
) -> Differences:
    """A against B on `items`, which both answered. Raises DataError when items and answers do not fit."""
    pairs = pair(items, a, b)
    subsets = list(_subsets(pairs))
    moves = pairs.artifact_confidence - pairs.reference_confidence
    columns = {name: column for name, column in per_item(pairs).items() if not name.startswith("bin ")}
    columns["confidence_change"] = moves
    totals = bootstrap(
        {
            f"{subset.name} {name}": np.where(subset.mask, column, 0.0)
            for _, _, subset in subsets
            for name, column in columns.items()
        },
        pairs.clusters,
        resamples=evaluation.bootstrap_resamples,
        seed=evaluation.seed,
    )
    table = Table(pairs, columns, totals, evaluation.confidence_level)
    everything = [_item_pair(pairs, place) for place in range(len(items))]
    moved = [place for place in np.argsort(-np.abs(moves), kind="stable") if abs(moves[place]) >= MOVED]
    return Differences(
        level=evaluation.confidence_level,
        items=len(items),
        images=totals.clusters,
        rows=tuple(_row(table, part, name, subset) for part, name, subset in subsets),
        changed=tuple(one for one in everything if one.flip is not None),
        moved=tuple(everything[place] for place in moved if everything[place].flip is None),
    )


def _subsets(pairs: Pairs) -> Iterator[tuple[Part, str, Subset]]:
    clean = Subset("clean", pairs.clean)
    yield Part.CLEAN, "", clean
    for name, subset in partition(pairs, "group", clean, lambda item: item.group).items():
        yield Part.GROUP, name, subset
    for whole, part, subset in (
        (Part.CORRUPTED, Part.CORRUPTION, Subset("corrupted", pairs.corrupted)),
        (Part.PERTURBED, Part.PERTURBATION, Subset("perturbed", pairs.perturbed)),
        (Part.NEGATED, Part.FORM, Subset("negated", pairs.of(Kind.NEGATED))),
        (Part.BACKGROUND, Part.GROUND, Subset("background", pairs.of(Kind.BACKGROUND))),
    ):
        if subset.mask.any():
            yield whole, "", subset
        for name, one in partition(pairs, part.value, subset, _change).items():
            yield part, name.removeprefix(PERTURBED), one


def _change(item: Item) -> str:
    """What was done to the clean item."""
    return item.corruption[0] if item.corruption else item.form or item.background


def _row(table: Table, part: Part, name: str, subset: Subset) -> Row:
    pairs, mask = table.pairs, subset.mask
    places = np.flatnonzero(mask)
    kinds = Counter(pairs.flips[place] for place in places)
    neutral = [place for place in places if pairs.flips[place] is Flip.NEUTRAL]
    still_right = sum(int(pairs.artifact_accuracy[place] >= RIGHT_FROM) for place in neutral)
    moves = table.columns["confidence_change"][mask]
    return Row(
        part=part,
        name=name,
        comparison=compare_subset(table, subset),
        negative=kinds[Flip.NEGATIVE],
        positive=kinds[Flip.POSITIVE],
        still_wrong=len(neutral) - still_right,
        still_right=still_right,
        mcnemar_p=mcnemar(kinds[Flip.NEGATIVE], kinds[Flip.POSITIVE]),
        a_confidence=float(pairs.reference_confidence[mask].mean()),
        b_confidence=float(pairs.artifact_confidence[mask].mean()),
        confidence_change=table.statistic(subset, mean(subset, "confidence_change"), "no items"),
        risen=int((moves >= MOVED).sum()),
        fallen=int((moves <= -MOVED).sum()),
    )


def _item_pair(pairs: Pairs, place: int) -> ItemPair:
    item = pairs.items[place]
    return ItemPair(
        id=item.id,
        group=item.group,
        condition=item.condition,
        question=item.prompt,
        accepted=item.answers,
        a=pairs.reference[place].text,
        b=pairs.artifact[place].text,
        a_accuracy=float(pairs.reference_accuracy[place]),
        b_accuracy=float(pairs.artifact_accuracy[place]),
        a_confidence=float(pairs.reference_confidence[place]),
        b_confidence=float(pairs.artifact_confidence[place]),
        flip=pairs.flips[place],
        first_divergence=pairs.first_divergences[place],
    )
