"""Predictions end here: a candidate becomes a recipe, is compiled, runs and is judged on other items."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from edgevlm_deploy import pipeline, validation
from edgevlm_deploy.artifacts import digest, pretty_json, write_text_atomic
from edgevlm_deploy.config import Frozen
from edgevlm_deploy.pipeline import Order
from edgevlm_deploy.progress import Watcher
from edgevlm_deploy.recipe import GateName, Recipe
from edgevlm_deploy.search import winner
from edgevlm_deploy.verdict import Outcome, Verdict

TIMES = {GateName.LATENCY_MS_P95.value, GateName.TIME_TO_FIRST_TOKEN_MS_P95.value}
"""They depend on what else the machine was doing, so an outcome that they decided is measured again."""


class Proof(Frozen):
    """What the whole pipeline made of one candidate."""

    trial: int
    recipe: str
    """Path of the YAML file."""
    bundle: str
    outcome: Outcome
    sealed: bool
    holds: bool
    """Every gate that could be judged here passed; sealed unless some wait for the device."""
    bundle_bytes: int
    latency_ms_p95: float | None
    peak_rss_bytes: int | None
    estimates: dict[str, float | None]
    open_gates: tuple[str, ...]
    """Gates that did not pass."""


def prove(
    order: Order, recipe: Recipe, path: Path, found_by: str, trial: int, identity: str, watch: Watcher
) -> Proof:
    """Write the recipe to `path`, compile it into `order.out`, run, judge and seal the bundle.

    The outcome is kept beside the recipe under the digest of `identity` (what the search was about) and the
    recipe, so that a killed search does not prove it again.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    kept = path.with_name(f"{path.stem}-{digest([identity, recipe])[:16]}.json")
    write_text_atomic(path, winner.text(recipe, found_by))
    if kept.is_file():
        before = Proof.model_validate_json(kept.read_text(encoding="utf-8"))
        if Path(before.bundle).exists():
            return before
    wanted = dataclasses.replace(order, recipe=str(path))
    bundle = pipeline.compile(wanted, watch)
    done = validation.validate(bundle, False, watch, emulate=pipeline.needs_emulation(wanted))
    proof = Proof(
        trial=trial,
        recipe=str(path),
        bundle=str(bundle),
        outcome=done.verdict.outcome,
        sealed=done.sealed,
        holds=_holds(done.verdict, bool(done.evidence["emulated"])),
        bundle_bytes=validation.size(bundle),
        latency_ms_p95=_measured(done.verdict, "latency_ms_p95"),
        peak_rss_bytes=_whole(done.evidence, "peak_rss_bytes"),
        estimates={name: one.value for name, one in done.metrics.estimates.items()},
        open_gates=tuple(
            gate.metric.value for gate in done.verdict.gates if gate.outcome is not Outcome.PASS
        ),
    )
    if not TIMES & set(proof.open_gates):
        write_text_atomic(kept, pretty_json(proof))
    return proof


def _holds(verdict: Verdict, emulated: bool) -> bool:
    """Without the device its gates are skipped, and the verdict stays open."""
    allowed = {Outcome.PASS, Outcome.SKIPPED} if emulated else {Outcome.PASS}
    return {gate.outcome for gate in verdict.gates} <= allowed


def _measured(verdict: Verdict, metric: str) -> float | None:
    return next((gate.value for gate in verdict.gates if gate.metric.value == metric), None)


def _whole(evidence: dict[str, Any], key: str) -> int | None:
    return None if evidence["emulated"] else int(evidence[key])


def first_that_holds(attempts: Iterable[Proof]) -> tuple[Proof | None, tuple[Proof, ...]]:
    """(the first that holds, all that were made until then)."""
    made: list[Proof] = []
    for proof in attempts:
        made.append(proof)
        if proof.holds:
            return proof, tuple(made)
    return None, tuple(made)
