"""The cheapest precision that passes every gate: sensitivities → trials → front → proof.

Candidates are judged on the host by the fake-quantised model, on questions that neither calibrate nor
decide a verdict. What looks best is then compiled, run and judged like any recipe: only that counts.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from edgevlm_runner.contract import ENCODER_DECODER

from edgevlm_deploy import __version__, quiet, roofline
from edgevlm_deploy.artifacts import pretty_json, write_text_atomic
from edgevlm_deploy.errors import PlanError
from edgevlm_deploy.pipeline import DEMOS, Order, needs_emulation
from edgevlm_deploy.pipeline.data import calibration_set
from edgevlm_deploy.pipeline.job import Job, prepare
from edgevlm_deploy.progress import Watcher
from edgevlm_deploy.recipe import Algorithm, Component, GateName
from edgevlm_deploy.search import images, inputs, ladder, outlook, space, study
from edgevlm_deploy.search import winner as recipes
from edgevlm_deploy.search.examiner import gather
from edgevlm_deploy.search.front import front
from edgevlm_deploy.search.images import Knob
from edgevlm_deploy.search.inputs import Inputs
from edgevlm_deploy.search.proof import Proof, first_that_holds, prove
from edgevlm_deploy.search.result import Found
from edgevlm_deploy.search.sensitivity import Sensitivity
from edgevlm_deploy.search.space import Candidate
from edgevlm_deploy.search.study import UNIFORM, Judged, Study, Trial

__all__ = ["Found", "Knob", "Settings", "search"]


@dataclass(frozen=True)
class Settings:
    trials: int = 60
    """Different candidates to judge in all, those of an earlier run included."""
    minutes: float | None = None
    """No new trial starts after this long."""
    share: float = 0.5
    """Items that a candidate is asked over items of the recipe's evaluation."""
    finalists: int = 4
    """At most so many mixtures are compiled."""
    algorithms: tuple[Algorithm, ...] = ()
    """Besides rounding to nearest; empty: those that the recipe names."""
    seed: int = 0
    questions: Path | None = None
    """Questions of the search; None: see `questions.gather`."""
    knobs: tuple[Knob, ...] = tuple(Knob)
    """What is searched besides schemes and algorithms, where model and target allow it."""


def search(order: Order, settings: Settings, watch: Watcher) -> Found:
    """Find it, and write `front.json`, `front.html` and `winner.yaml` into OUT/search-NAME/.

    Raises any of the host's errors.
    """
    started = time.monotonic()
    study.require_optuna()
    directory = order.out / f"search-{order.name}"
    with quiet.libraries():
        job = prepare(order, watch)
        if job.source.kind == ENCODER_DECODER:
            raise PlanError(
                f"{job.source.name} is a model of kind {job.source.kind}; `edgevlm search` examines decoders "
                "that read picture and question, and dual encoders."
            )
        directory.mkdir(parents=True, exist_ok=True)
        file = directory / "study.sqlite"
        study.require_same_model(file, job.source.digest)
        calibrated = calibration_set(job, job.samples.calibration)
        offered = inputs.menu(job, settings.knobs)
        blocks = space.build(job.source, job.plan.recipe, job.plan.target, _algorithms(job, settings))
        examiner = gather(job, order, settings.questions, settings.share, calibrated)
        seen = inputs.seen(examiner, offered)
        found = Found(
            model=order.model,
            target=job.plan.target.name,
            recipe=job.plan.recipe.name,
            emulated=needs_emulation(order),
            items=len(examiner.examination.items),
            share=examiner.share,
            blocks=tuple(block.name for block in blocks.blocks),
            seen=seen,
            absent=offered.absent,
        )
        if looks := images.choices(offered, seen):
            choices = dataclasses.replace(blocks, images={one: examiner.cost(one) for one in looks})
            given = inputs.gather(examiner, choices, calibrated)
            found = _explored(found, order, given, settings, file, started)
    _write(found, directory)
    return found


def _algorithms(job: Job, settings: Settings) -> tuple[Algorithm, ...]:
    recipe = job.plan.recipe
    named = [one.algorithm for one in recipe.components.values()]
    named += [one.algorithm for one in recipe.modules]
    return tuple(dict.fromkeys(settings.algorithms or named))


def _explored(
    found: Found, order: Order, given: Inputs, settings: Settings, file: Path, started: float
) -> Found:
    """`found` with sensitivities, trials, front and what was compiled."""
    rows = inputs.sensitivities(given)
    trials = _explore(given, rows, file, settings, started)
    proofs, best_uniform, best = _prove(order, given, trials, settings.finalists, file.parent)
    return found.model_copy(
        update={
            "sensitivities": rows,
            "trials": trials,
            "front": tuple(one.number for one in front([one for one in trials if one.judged.passes])),
            "proofs": proofs,
            "best_uniform": best_uniform.trial if best_uniform else None,
            "winner": best.trial if best else None,
        }
    )


def _explore(
    given: Inputs, rows: Sequence[Sensitivity], path: Path, settings: Settings, started: float
) -> tuple[Trial, ...]:
    measured = {row.block: row for row in rows}
    model = given.job.source.digest
    kept = Study(path, given.digest, model, given.space, lambda one: _judge(given, one), settings.seed)
    given.job.watch.begin("Trials", settings.trials)
    study.explore(
        kept,
        given.space.uniforms(),
        lambda algorithm: ladder.rungs(given.space, measured, algorithm),
        lambda candidate: ladder.smaller(given.space, measured, candidate),
        settings.trials,
        None if settings.minutes is None else started + 60 * settings.minutes,
        given.job.watch.advance,
    )
    return kept.trials()


def _judge(given: Inputs, candidate: Candidate) -> Judged:
    examiner, plan = given.examiner, given.job.plan
    replies = examiner.replies(given.assembly.model(candidate), candidate.image)
    found = examiner.metrics(replies)
    memory, macs = given.space.cost(candidate)
    size = given.space.weight_bytes(candidate)
    known = {GateName.BUNDLE_BYTES: float(size), GateName.PEAK_RSS_BYTES: float(memory)}
    latency = None
    bandwidth = plan.target.memory_bandwidth_gb_s
    if bandwidth is not None:
        vision = given.space.component_bytes(candidate, Component.VISION_ENCODER, Component.PROJECTOR)
        decoder = given.space.component_bytes(candidate, Component.DECODER, Component.HEAD)
        first = roofline.first_token_ms(vision, decoder, bandwidth)
        latency = roofline.answer_ms(vision, decoder, examiner.answer_tokens, bandwidth)
        known |= {GateName.TIME_TO_FIRST_TOKEN_MS_P95: first, GateName.LATENCY_MS_P95: latency}
    estimates = {name: one.value for name, one in found.estimates.items()}
    return Judged(
        weight_bytes=size,
        memory_bytes=memory,
        first_token_macs=macs,
        latency_ms=latency,
        accuracy=estimates["accuracy"] or 0.0,
        negative_flip_rate=estimates["negative_flip_rate"] or 0.0,
        relative_robustness=estimates["relative_robustness"],
        corrupted_divergence_rate=estimates["corrupted_divergence_rate"],
        mean_kl=sum(reply.kl for reply in replies) / len(replies),
        gates=outlook.outlooks(plan.gates, found, examiner.share, known),
    )


def _prove(
    order: Order, given: Inputs, trials: Sequence[Trial], finalists: int, directory: Path
) -> tuple[tuple[Proof, ...], Proof | None, Proof | None]:
    """(all proofs, best uniform, winner): the smallest that hold when they are really compiled."""
    smallest = sorted(trials, key=lambda one: (*one.judged.cost, one.judged.worst_excess))
    made: dict[int, Proof] = {}

    def proved(trial: Trial) -> Proof:
        if trial.number not in made:
            made[trial.number] = _proof(order, given, trial, directory)
        return made[trial.number]

    def mixtures() -> Iterator[Proof]:
        least = 0.0
        for trial in smallest:
            size = trial.judged.memory_bytes
            if trial.origin != UNIFORM and trial.judged.passes and size >= least:
                yield proved(trial)
                # Of many that are about as small, some are predicted to pass by luck.
                least = size * (1 + ladder.STEPS[-1])

    best, _ = first_that_holds(islice(mixtures(), finalists))
    best_uniform = _best_uniform([one for one in smallest if one.origin == UNIFORM], proved)
    costs = {trial.number: trial.judged.cost for trial in trials}
    holding = [one for one in (best, best_uniform) if one is not None]
    winner = min(holding, key=lambda one: costs[one.trial], default=None)
    return tuple(made.values()), best_uniform, winner


def _best_uniform(uniforms: Sequence[Trial], proved: Callable[[Trial], Proof]) -> Proof | None:
    """What the winner is compared with. `uniforms` are in growing size.

    From the smallest that is predicted to pass downwards, as long as one of a size holds: predictions rest on
    few items, and a precision that is predicted to just fail gets its chance. Upwards when none does.
    """
    sizes = list(dict.fromkeys(one.judged.weight_bytes for one in uniforms))
    first = next((one.judged.weight_bytes for one in uniforms if one.judged.passes), None)
    if first is None:
        return None

    def held(size: int) -> Proof | None:
        hopeful = (one for one in uniforms if one.judged.weight_bytes == size and one.judged.may_pass)
        return first_that_holds(proved(one) for one in hopeful)[0]

    best: Proof | None = None
    for size in reversed(sizes[: sizes.index(first)]):
        found = held(size)
        if found is None:
            break
        best = found
    return best or next((proof for size in sizes[sizes.index(first) :] if (proof := held(size))), None)


def _proof(order: Order, given: Inputs, trial: Trial, directory: Path) -> Proof:
    job = given.job
    base = job.plan.recipe
    name = f"{base.name}-{trial.number}"
    description = f"Found for {job.plan.target.name} by a search: candidate {trial.number}."
    made = recipes.recipe(base, name, description, given.space, trial.candidate, job.source, job.plan.target)
    model = order.model if order.model in DEMOS else job.source.name
    command = f"edgevlm search {model} --target {job.plan.target.name} --recipe {base.name}"
    found_by = (
        f"Found by `{command}` (edgevlm {__version__}): {trial.judged.weight_bytes:,} bytes of weights, "
        f"origin {trial.origin}."
    )
    if needs_emulation(order):
        found_by += f"\nJudged without {job.plan.target.name}: its gates on times and memory are open."
    path = directory / "recipes" / f"{name}.yaml"
    return prove(order, made, path, found_by, trial.number, given.digest, job.watch)


def _write(found: Found, directory: Path) -> None:
    from edgevlm_deploy.report import frontier

    data = found.to_json()
    write_text_atomic(directory / "front.json", pretty_json(data))
    frontier.render(data, directory / "front.html")
    proof = found.winning_proof
    target = directory / "winner.yaml"
    if proof is None:
        target.unlink(missing_ok=True)
    else:
        write_text_atomic(target, Path(proof.recipe).read_text(encoding="utf-8"))
