"""The search itself: Optuna keeps every trial in one SQLite file, so that a killed search goes on.

The smallest model that passes is looked for, so the study minimises bytes of memory under one constraint per
gate. What is tried, in this order: uniform precision; the ladder of sensitivities, by bisection; then in turn
a smaller neighbour of the smallest model that passes, and a proposal of the constrained TPE sampler. Each
trial's sampler is seeded by the number of trials before it: interruptions do not change what is found.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from edgevlm_deploy.config import Frozen
from edgevlm_deploy.errors import MissingExtraError, StorageError
from edgevlm_deploy.recipe import Algorithm, Image, Scheme
from edgevlm_deploy.search.images import label
from edgevlm_deploy.search.outlook import Outlook
from edgevlm_deploy.search.space import Candidate, Space

_ALGORITHM, _IMAGE = "algorithm", "image"
_MODEL, _RESULT = "model", "result"

UNIFORM, LADDER, NEIGHBOUR, SAMPLED = "uniform", "ladder", "neighbour", "sampled"


class Judged(Frozen):
    """What the search knows of one candidate. Answers are those of the fake-quantised model here."""

    weight_bytes: int
    memory_bytes: int
    """Weights, and the key-value cache of the longest question."""
    first_token_macs: int
    """Multiply-adds with weights for the usual question, up to its first token."""
    latency_ms: float | None
    """Lower bound of a usual answer from the target's memory bandwidth; None where it is not known."""
    accuracy: float
    negative_flip_rate: float
    relative_robustness: float | None
    corrupted_divergence_rate: float | None
    mean_kl: float
    gates: tuple[Outlook, ...]

    @property
    def cost(self) -> tuple[int, int]:
        """As `Space.cost`."""
        return self.memory_bytes, self.first_token_macs

    @property
    def passes(self) -> bool:
        """Predicted; a gate that only a device decides is not among `gates`."""
        return self.worst_excess <= 0

    @property
    def worst_excess(self) -> float:
        """Of all gates; 0 without any."""
        return max((gate.excess for gate in self.gates), default=0.0)

    @property
    def may_pass(self) -> bool:
        """No value is outside of its limit, whatever the intervals."""
        return all(gate.is_inside for gate in self.gates)


class Trial(Frozen):
    """One judged candidate, in the order of trials."""

    number: int
    origin: str
    algorithm: Algorithm
    schemes: tuple[Scheme, ...]
    image: Image
    image_label: str
    judged: Judged

    @property
    def candidate(self) -> Candidate:
        return Candidate(self.algorithm, self.schemes, self.image)


def require_optuna() -> Any:
    """The module. Raises MissingExtraError."""
    try:
        import optuna
    except ImportError as error:
        raise MissingExtraError("Searching needs `pip install edgevlm[compile,search]`.") from error
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    return optuna


def require_same_model(path: Path, model: str) -> None:
    """Raises StorageError when `path` holds trials of a model with another digest, or is no study at all."""
    if not path.exists():
        return
    from sqlalchemy.exc import DatabaseError

    other = "Give another --out, or delete it to begin anew."
    try:
        studies = require_optuna().get_all_study_summaries(_storage(path), include_best_trial=False)
    except DatabaseError as error:
        raise StorageError(f"{path}: this is no file of a search's trials ({error.orig}). {other}") from error
    if any(one.user_attrs.get(_MODEL, model) != model for one in studies):
        raise StorageError(f"{path}: holds the trials of another model by the same name. {other}")


def _storage(path: Path) -> Any:
    return require_optuna().storages.RDBStorage(f"sqlite:///{path}")


class Study:
    """The trials of one search, on disk."""

    def __init__(
        self,
        path: Path,
        name: str,
        model: str,
        space: Space,
        judge: Callable[[Candidate], Judged],
        seed: int,
    ) -> None:
        """`name` says what is searched for: other inputs, another study in the same file.

        model: digest of the model. Raises MissingExtraError without Optuna, StorageError as
        `require_same_model`.
        """
        require_same_model(path, model)
        optuna = require_optuna()
        self._optuna, self._space, self._judge, self._seed = optuna, space, judge, seed
        self._study = optuna.create_study(storage=_storage(path), study_name=name, load_if_exists=True)
        self._study.set_user_attr(_MODEL, model)
        self._distributions: dict[str, Any] = {
            block.name: optuna.distributions.CategoricalDistribution([one.value for one in block.choices])
            for block in space.blocks
        }
        self._distributions[_ALGORITHM] = optuna.distributions.CategoricalDistribution(
            [one.value for one in space.algorithms]
        )
        self._images = {label(image): image for image in space.images}
        self._distributions[_IMAGE] = optuna.distributions.CategoricalDistribution([*self._images])
        for abandoned in self._study.get_trials(deepcopy=False, states=[optuna.trial.TrialState.RUNNING]):
            self._study.tell(abandoned.number, state=optuna.trial.TrialState.FAIL)
        self._found: dict[Candidate, Trial] = {}
        for one in self._study.get_trials(deepcopy=False, states=[optuna.trial.TrialState.COMPLETE]):
            trial = Trial.model_validate_json(one.user_attrs[_RESULT])
            self._found.setdefault(trial.candidate, trial)

    def trials(self) -> tuple[Trial, ...]:
        """Every candidate once, as it was first judged."""
        return tuple(self._found.values())

    def judged(self, candidate: Candidate, origin: str) -> Judged:
        """From the file, or by a new trial, which is written when it is finished."""
        if candidate not in self._found:
            found = self._trial(candidate, origin, self._judge(candidate))
            parameters = {
                block.name: scheme.value
                for block, scheme in zip(self._space.blocks, candidate.schemes, strict=True)
            }
            done = self._optuna.trial.create_trial(
                params={
                    **parameters,
                    _ALGORITHM: candidate.algorithm.value,
                    _IMAGE: label(candidate.image),
                },
                distributions=self._distributions,
                value=found.judged.memory_bytes,
                user_attrs={_RESULT: found.model_dump_json()},
                constraints=_constraints(found.judged),
            )
            self._study.add_trial(done)
            self._found[candidate] = found
        return self._found[candidate].judged

    def run(self) -> None:
        """One trial that the sampler proposes."""
        self._study.sampler = self._optuna.samplers.TPESampler(
            seed=self._seed + len(self._found), n_startup_trials=0
        )
        trial = self._study.ask(self._distributions)
        schemes = tuple(Scheme(trial.params[block.name]) for block in self._space.blocks)
        algorithm, image = Algorithm(trial.params[_ALGORITHM]), self._images[trial.params[_IMAGE]]
        candidate = self._space.canonical(Candidate(algorithm, schemes, image))
        known = self._found.get(candidate)
        found = known or self._trial(candidate, SAMPLED, self._judge(candidate))
        for name, excess in _constraints(found.judged).items():
            trial.set_constraint(name, excess)
        trial.set_user_attr(_RESULT, found.model_dump_json())
        self._study.tell(trial, found.judged.memory_bytes)
        self._found[candidate] = found

    def _trial(self, candidate: Candidate, origin: str, judged: Judged) -> Trial:
        return Trial(
            number=len(self._found),
            origin=origin,
            algorithm=candidate.algorithm,
            schemes=candidate.schemes,
            image=candidate.image,
            image_label=label(candidate.image),
            judged=judged,
        )


def _constraints(judged: Judged) -> dict[str, float]:
    """One per gate; all at most zero is feasible."""
    return {f"{place} {gate.metric.value}": gate.excess for place, gate in enumerate(judged.gates)}


def best(trials: Sequence[Trial]) -> Trial | None:
    """The smallest that passes; of equal size the one with the lower divergence."""
    passing = [one for one in trials if one.judged.passes]
    return min(passing, key=lambda one: (*one.judged.cost, one.judged.mean_kl), default=None)


def explore(
    study: Study,
    uniforms: Sequence[Candidate],
    rungs: Callable[[Algorithm], Sequence[Candidate]],
    smaller: Callable[[Candidate], Sequence[Candidate]],
    limit: int,
    deadline: float | None,
    advance: Callable[[int], None],
) -> None:
    """Run trials until there are `limit` different ones, or until time.monotonic() reaches `deadline`."""
    seen = 0
    for _ in _steps(study, uniforms, rungs, smaller, limit):
        now = len(study.trials())
        advance(now - seen)
        seen = now
        if now >= limit or (deadline is not None and time.monotonic() >= deadline):
            return


def _steps(
    study: Study,
    uniforms: Sequence[Candidate],
    rungs: Callable[[Algorithm], Sequence[Candidate]],
    smaller: Callable[[Candidate], Sequence[Candidate]],
    limit: int,
) -> Iterator[None]:
    for candidate in uniforms:
        study.judged(candidate, UNIFORM)
        yield
    yield from _bisect(study, rungs(_better_algorithm(study.trials())))
    for turn in range(4 * limit):  # proposals may repeat; a small space is exhausted
        known = {trial.candidate for trial in study.trials()}
        incumbent = best(study.trials())
        fresh = [one for one in smaller(incumbent.candidate) if one not in known] if incumbent else []
        if turn % 2 == 0 and fresh:
            study.judged(fresh[0], NEIGHBOUR)
        else:
            study.run()
        yield


def _bisect(study: Study, ladder: Sequence[Candidate]) -> Iterator[None]:
    """The lowest rung that passes, if rungs fail below and pass above it."""
    low, high = 0, len(ladder) - 1
    while low < high:
        middle = (low + high) // 2
        if study.judged(ladder[middle], LADDER).passes:
            high = middle
        else:
            low = middle + 1
        yield
    study.judged(ladder[low], LADDER)
    yield


def _better_algorithm(trials: Sequence[Trial]) -> Algorithm:
    """The one whose smallest uniform candidate is nearest to passing."""
    uniform = [one for one in trials if one.origin == UNIFORM]
    smallest = min(one.judged.weight_bytes for one in uniform)
    rivals = [one for one in uniform if one.judged.weight_bytes == smallest]
    return min(rivals, key=lambda one: (one.judged.worst_excess, one.judged.mean_kl)).algorithm
