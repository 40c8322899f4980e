"""The one loaded model that all candidates are made of, and the questions that they are asked."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgevlm_runner.contract import ImageSpec, Model, ModelSpec

from edgevlm_deploy import metrics, reduction, source
from edgevlm_deploy.artifacts import file_digest
from edgevlm_deploy.backends.half import half_precision, in_half
from edgevlm_deploy.calibration import CalibrationSet
from edgevlm_deploy.export import dynamic_inputs
from edgevlm_deploy.metrics import Metrics
from edgevlm_deploy.pipeline import Order
from edgevlm_deploy.pipeline.data import item_table, reference_answers
from edgevlm_deploy.pipeline.job import PACKAGES, Job, versions, what_shapes_answers
from edgevlm_deploy.quantize import QuantizedModel, fakequant
from edgevlm_deploy.recipe import Evaluation, Image
from edgevlm_deploy.samples import Samples
from edgevlm_deploy.search import questions
from edgevlm_deploy.search.cost import Cost, cost
from edgevlm_deploy.search.replies import Examination, Reply


@dataclass(frozen=True)
class Examiner:
    """Examines one candidate after the other."""

    job: Job
    evaluation: Evaluation
    share: float
    """Items of the search over items of the verdict."""
    model: Any
    """In fp16's values; what a candidate changes is undone after it was asked."""
    examination: Examination
    identity: Mapping[str, Any]
    """What the replies of any candidate depend on."""

    def spec(self, image: Image) -> Model:
        """What the model is asked when it sees pictures so."""
        return _spec(self.job, image)

    def replies(
        self, quantized: QuantizedModel, image: Image, items: Sequence[Any] | None = None
    ) -> list[Reply]:
        """Of the fake-quantised model, with the rounding of inputs that the runtime does by itself."""
        target, whole = self.job.plan.target, self.job.source_spec
        tokens = whole.prompt.tokens_per_tile if isinstance(whole, ModelSpec) else 0
        with (
            reduction.applied(self.model, image.reduction, tokens),
            fakequant.applied(
                self.model, in_half(quantized), lambda linear: dynamic_inputs.of(target, linear)
            ) as model,
        ):
            return self.examination.replies(model, self.spec(image), items)

    def metrics(self, replies: Sequence[Reply]) -> Metrics:
        """Of replies to all items, against the reference."""
        items = self.examination.items
        said = [self.examination.answers[item.id] for item in items]
        return metrics.compute(items, said, [reply.answer for reply in replies], self.evaluation)

    @property
    def answer_tokens(self) -> float:
        """Of a usual answer, end of sequence included."""
        answers = self.examination.answers.values()
        return sum(len(one.token_ids) for one in answers) / len(answers)

    def cost(self, image: Image) -> Cost:
        """What pictures seen so cost."""
        spec, plan = self.spec(image), self.job.plan
        shapes = self.examination.shapes(spec)
        return cost(self.job.source, spec, shapes, plan.recipe.generation, plan.target.backend)


def gather(job: Job, order: Order, own: Path | None, share: float, calibrated: CalibrationSet) -> Examiner:
    """Questions, the reference's answers and its probabilities. Raises what compiling raises."""
    recipe, watch, given = job.plan.recipe, job.watch, job.samples
    wanted = questions.evaluation(recipe, share)
    asked = questions.gather(order, job.source.kind, own, given, calibrated, wanted, job.cache)
    plan = dataclasses.replace(job.plan, recipe=recipe.model_copy(update={"evaluation": wanted}))
    searching = dataclasses.replace(job, plan=plan)
    items = item_table(searching, Samples((), asked))
    answers = reference_answers(searching, items)
    model = half_precision(source.load(job.source, job.source_spec))
    examination = Examination(items.rows, answers.rows, items.root, wanted.seed, job.source.tokenizer)
    watch.begin("Reference probabilities", len(items.rows))
    examination.observe_reference(model, job.source_spec, watch.advance)
    real_share = len(items.rows) / _verdict_items(recipe.evaluation, len(given.evaluation))
    identity = {
        "model": job.source.digest,
        "items": file_digest(items.root / "items.jsonl"),
        "reference": what_shapes_answers(job.source_spec),
        "target": job.plan.target,
        "packages": versions(PACKAGES),
    }
    return Examiner(job, wanted, real_share, model, examination, identity)


def _spec(job: Job, image: Image) -> Model:
    whole = job.source_spec
    if not isinstance(whole, ModelSpec):
        return whole
    if isinstance(whole.image, ImageSpec):
        bounded = dataclasses.replace(whole.image, max_tiles=image.max_tiles)
        whole = dataclasses.replace(whole, image=bounded)
    return reduction.reduced(whole, image.reduction)


def _verdict_items(evaluation: Evaluation, questions: int) -> int:
    """Items that the verdict rests on, of so many questions."""
    clean = min(evaluation.clean_items, questions)
    conditions = len(evaluation.severities) * (len(evaluation.corruptions) + len(evaluation.perturbations))
    return clean + conditions * min(evaluation.items_per_condition, clean)
