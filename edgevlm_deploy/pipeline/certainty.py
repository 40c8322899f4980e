"""How far the artifact's own confidence can be trusted: its temperature, its Selector, its threshold.

The compiled graphs answer held-out questions here, through the runner, so that what is learnt belongs to
this model at this precision on these graphs. Where the target's runtime is not at hand (TensorRT), ONNX
Runtime stands in for it, and the manifest says so.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from edgevlm_runner import abstain, runtimes, zero_shot
from edgevlm_runner.contract import (
    TEMPERATURE,
    Answer,
    Certainty,
    DualEncoderSpec,
    Item,
    Model,
    ModelSpec,
    from_json,
    read_jsonl,
    to_json,
)
from edgevlm_runner.generate import generate
from edgevlm_runner.inputs import from_item, load_tokenizer
from edgevlm_runner.respond import usable_cores
from numpy.typing import NDArray
from tokenizers import Tokenizer

from edgevlm_deploy import datasets, selector
from edgevlm_deploy.artifacts import file_digest, pretty_json, stage, write_text_atomic
from edgevlm_deploy.errors import DataError
from edgevlm_deploy.metrics import selective, temperature
from edgevlm_deploy.metrics.accuracy import accuracy
from edgevlm_deploy.metrics.confidence import geometric_mean_probability
from edgevlm_deploy.metrics.dual.zero_shot import fit_logit_scale
from edgevlm_deploy.pipeline.data import Items, tuning_table
from edgevlm_deploy.pipeline.job import Job, compilers
from edgevlm_deploy.recipe import AbstainBy
from edgevlm_deploy.target import Backend

Floats = NDArray[np.float64]

SHARES = (0.5, 0.2, 0.3)
"""Of the pictures: what trains the Selector, what chooses among its trials, what chooses the threshold."""
_ANSWERS, _FEATURES = "answers.jsonl", "features.f32"


@dataclass(frozen=True)
class Fitted:
    """What the bundle does with its confidence, and how that was found."""

    name: str
    certainty: Certainty
    selector: Path | None
    facts: Mapping[str, Any]


def fitted_certainty(job: Job, items: Items, tuning: Sequence[datasets.Sample], exported: Path) -> Fitted:
    """Temperature, threshold and Selector, as the recipe asks."""
    wanted, backend = job.plan.recipe.abstain, job.plan.target.backend
    asked = Items(tuple(item for item in items.rows if item.condition == TEMPERATURE), items.root)
    if wanted is not None:
        asked = tuning_table(job, tuning)
    if not asked.rows:
        return Fitted("none", Certainty(), None, {})
    answered = _answers(job, asked, exported)
    inputs = {
        "answers": answered.name,
        "wanted": wanted,
        "backend": backend,
        "seed": job.plan.recipe.evaluation.seed,
        "packages": compilers(job.plan),
    }

    def fit(out: Path) -> None:
        held_out = _held_out(job.spec, asked, answered)
        certainty, facts = _fit(job, held_out, out)
        write_text_atomic(out / "certainty.json", pretty_json(to_json(certainty)))
        write_text_atomic(out / "facts.json", pretty_json(facts))

    folder = stage(job.cache, "certainty", inputs, fit)
    certainty = from_json(
        Certainty, json.loads((folder / "certainty.json").read_text()), str(folder / "certainty.json")
    )
    facts = json.loads((folder / "facts.json").read_text())
    file = folder / Path(certainty.graph).name if certainty.graph else None
    return Fitted(folder.name, certainty, file, facts)


def _answers(job: Job, asked: Items, exported: Path) -> Path:
    """Folder with an answer a line and, for a Selector, its features as rows of float32."""
    inputs = {
        "exported": exported.name,
        "items": file_digest(asked.root / "items.jsonl"),
        "seed": job.plan.recipe.evaluation.seed,
        "spec": to_json(job.spec),
        "asked": [item.id for item in asked.rows],
        "packages": compilers(job.plan),
    }
    job.watch.begin("Held-out answers", len(asked.rows))

    def answer(out: Path) -> None:
        spec, row_bytes = job.spec, 0
        if isinstance(spec, ModelSpec) and spec.hidden:
            row_bytes = 4 * (3 * spec.hidden_size + 1)
        done = _resume(out, row_bytes)
        job.watch.advance(done)
        with (out / _ANSWERS).open("ab") as lines, (out / _FEATURES).open("ab") as rows:
            _ask(job, asked, done, exported, lines, rows)

    return stage(job.cache, "held-out", inputs, answer, resumable=True)


def _ask(job: Job, asked: Items, done: int, exported: Path, lines: BinaryIO, rows: BinaryIO) -> None:
    spec, seed = job.spec, job.plan.recipe.evaluation.seed
    tokenizer = load_tokenizer(job.source.tokenizer)
    if isinstance(spec, DualEncoderSpec):
        for row in _classified(spec, asked.rows[done:], asked.root, seed, tokenizer, exported):
            lines.write(json.dumps(dataclasses.asdict(row), ensure_ascii=False).encode() + b"\n")
            job.watch.advance()
        return
    with runtimes.load(exported, spec, usable_cores(), emulate=True) as runtime:
        for item in asked.rows[done:]:
            inputs = from_item(item, asked.root, seed, spec, tokenizer)
            made = generate(runtime, spec, inputs.pixel_values, inputs.input_ids, inputs.size)
            text = tokenizer.decode(list(made.token_ids), skip_special_tokens=True).strip()
            row = Answer(item.id, text, made.token_ids, made.token_logprobs, made.finished)
            if made.pooled is not None:
                rows.write(abstain.features(made.pooled, made.token_logprobs).tobytes())
            lines.write(json.dumps(dataclasses.asdict(row), ensure_ascii=False).encode() + b"\n")
            job.watch.advance()


def _classified(
    spec: DualEncoderSpec, rows: Sequence[Item], root: Path, seed: int, tokenizer: Tokenizer, exported: Path
) -> Iterator[Answer]:
    """The classes that a dual encoder's graphs give to the pictures of `rows`."""
    with runtimes.load_encoders(exported, spec, usable_cores(), emulate=True) as runtime:
        classes = zero_shot.embed_classes(runtime.encode_text, spec.text.classes, spec.text, tokenizer)
        for item in rows:
            pixel_values = from_item(item, root, seed, spec, tokenizer).pixel_values
            assert pixel_values is not None, "labelled data have pictures"
            choice = zero_shot.choose(runtime.encode_image(pixel_values)[0], classes, spec)
            text, logprobs = spec.text.classes[choice.place], (choice.log_probability,)
            yield Answer(item.id, text, (choice.place,), logprobs, True, scores=choice.scores)


def _resume(folder: Path, row_bytes: int) -> int:
    """Rows that a killed run finished in both files; what it was writing is cut off."""
    lines, rows = folder / _ANSWERS, folder / _FEATURES
    if not lines.exists() or not rows.exists():
        return 0
    kept = lines.read_bytes().split(b"\n")[:-1]
    done = min(len(kept), rows.stat().st_size // row_bytes) if row_bytes else len(kept)
    lines.write_bytes(b"".join(line + b"\n" for line in kept[:done]))
    os.truncate(rows, done * row_bytes)
    return done


@dataclass(frozen=True)
class HeldOut:
    """N held-out answers."""

    clusters: tuple[str, ...]
    accuracy: Floats
    confidence: Floats
    max_prob: Floats
    features: NDArray[np.float32]
    """[N, F]; [N, 0] where nothing is trained."""
    scores: Floats
    """A dual encoder's cosines with its classes, [N, C]; [N, 0] of others."""
    labels: NDArray[np.int64]
    """[N]: the right one of these classes; [0] of others."""

    def temperature(self, spec: Model) -> float | None:
        """What the logits are divided by. Of a softmax over classes it is the logit scale that is fitted."""
        if isinstance(spec, DualEncoderSpec) and spec.activation == "softmax":
            scale = fit_logit_scale(self.scores, self.labels)
            return None if scale is None else spec.logit_scale / scale
        return temperature.fit(self.confidence, self.accuracy)


def _held_out(spec: Model, asked: Items, folder: Path) -> HeldOut:
    answers = read_jsonl(folder / _ANSWERS, Answer)
    classes = list(spec.text.classes) if isinstance(spec, DualEncoderSpec) else []
    pairs = list(zip(asked.rows, answers, strict=True))
    return HeldOut(
        clusters=tuple(item.image_id or item.base_id for item in asked.rows),
        accuracy=np.array([accuracy(said.text, item.answers) for item, said in pairs], np.float64),
        confidence=np.array([geometric_mean_probability(said.token_logprobs) for said in answers]),
        max_prob=np.array([abstain.max_prob(said.token_logprobs) for said in answers], np.float64),
        features=np.fromfile(folder / _FEATURES, np.float32).reshape(len(answers), -1),
        scores=np.array([said.scores for said in answers], np.float64),
        labels=np.array([classes.index(item.answers[0]) for item in asked.rows if classes], np.int64),
    )


def _fit(job: Job, held_out: HeldOut, out: Path) -> tuple[Certainty, dict[str, Any]]:
    """Writes the Selector's file into `out`, where there is one."""
    wanted, backend = job.plan.recipe.abstain, job.plan.target.backend
    fitted = held_out.temperature(job.spec)
    computed = "ONNX Runtime in TensorRT's place" if backend is Backend.TENSORRT else backend.value
    facts: dict[str, Any] = {
        "answers": len(held_out.accuracy),
        "pictures": len(set(held_out.clusters)),
        "accuracy": float(held_out.accuracy.mean()),
        "computed by": computed,
        "temperature": "none: all of these answers are right, or all wrong" if fitted is None else fitted,
    }
    certainty = Certainty()
    if fitted is not None:
        certainty = Certainty(temperature=fitted, fitted_on=len(held_out.accuracy))
    if wanted is None:
        return certainty, facts
    scores, choosing = held_out.max_prob, np.ones(len(held_out.accuracy), np.bool_)
    if wanted.by is AbstainBy.SELECTOR:
        training, validation, choosing = parts(held_out.clusters, job.plan.recipe.evaluation.seed)
        trained = selector.train(
            held_out.features,
            held_out.accuracy,
            training,
            validation,
            seed=job.plan.recipe.evaluation.seed,
        )
        if trained is None:
            raise DataError(
                f"The {len(held_out.accuracy)} held-out answers are nearly all right or all wrong: there "
                "is nothing to train a Selector on. Give harder or more calibration questions, raise "
                "`abstain.questions`, name `abstain.corruptions`, or take `abstain: {by: maxprob}`."
            )
        graph = selector.NAMES[backend]
        difference = selector.write(trained.layers, backend, held_out.features, out / Path(graph).name)
        scores = trained.layers.scores(held_out.features)
        certainty = dataclasses.replace(certainty, graph=graph)
        facts["selector"] = {
            **_parted(held_out, scores, training, validation, choosing),
            "width": trained.chosen.width,
            "learning rate": trained.chosen.learning_rate,
            "trials": [dataclasses.asdict(one) for one in trained.trials],
            "difference of the file's scores": difference,
        }
    chosen = selector.choose(scores[choosing], held_out.accuracy[choosing], wanted)
    facts["threshold"] = {"by": wanted.by.value, **dataclasses.asdict(chosen)}
    return dataclasses.replace(certainty, abstain=wanted.by.value, threshold=chosen.value), facts


def parts(clusters: Sequence[str], seed: int) -> tuple[NDArray[np.bool_], ...]:
    """Pictures dealt by `SHARES`: (training, validation, choosing), bool [N] each."""
    names = np.unique(np.asarray(clusters, dtype=str))
    order = np.random.Generator(np.random.PCG64(seed)).permutation(len(names))
    ends = np.round(np.cumsum(SHARES) * len(names)).astype(int)
    part = np.searchsorted(ends, np.arange(len(names)), side="right")
    of = dict(zip(names[order], part, strict=True))
    mine = np.array([of[name] for name in clusters])
    return tuple(mine == number for number in range(len(SHARES)))


def _parted(held_out: HeldOut, scores: Floats, *flags: NDArray[np.bool_]) -> dict[str, int | float | None]:
    """Answers per part, and both areas on the part that neither trained nor chose the Selector."""
    training, validation, choosing = flags
    right = held_out.accuracy[choosing]
    return {
        "trained on": int(training.sum()),
        "chosen on": int(validation.sum()),
        "threshold chosen on": int(choosing.sum()),
        "AUC there": selective.risk_coverage_auc(scores[choosing], right),
        "AUC of MaxProb there": selective.risk_coverage_auc(held_out.max_prob[choosing], right),
    }
