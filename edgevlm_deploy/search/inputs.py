"""What a search needs to know before its first trial, each part a stage that is made once."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgevlm_runner.contract import ModelSpec

from edgevlm_deploy import source
from edgevlm_deploy.artifacts import digest, file_digest, stage
from edgevlm_deploy.backends.half import half_precision, in_half
from edgevlm_deploy.calibration import CalibrationSet
from edgevlm_deploy.errors import PlanError
from edgevlm_deploy.export import dynamic_inputs
from edgevlm_deploy.pipeline import Order
from edgevlm_deploy.pipeline.data import calibration_set, item_table, reference_answers
from edgevlm_deploy.pipeline.graphs import quantized_model
from edgevlm_deploy.pipeline.job import PACKAGES, Job, versions, what_shapes_answers
from edgevlm_deploy.quantize import QuantizedModel, fakequant
from edgevlm_deploy.quantize.request import Request
from edgevlm_deploy.quantize.rounding import weight_of
from edgevlm_deploy.recipe import Algorithm, Evaluation, Scheme
from edgevlm_deploy.samples import Samples
from edgevlm_deploy.search import questions, sensitivity
from edgevlm_deploy.search.assembly import Assembly
from edgevlm_deploy.search.replies import Examination, Reply
from edgevlm_deploy.search.sensitivity import Sensitivity
from edgevlm_deploy.search.space import Block, Space


@dataclass(frozen=True)
class Inputs:
    """The loaded model, what it is asked, and quantised parts to put candidates together from."""

    job: Job
    evaluation: Evaluation
    share: float
    """Items of the search over items of the verdict."""
    space: Space
    model: Any
    examination: Examination
    assembly: Assembly
    identity: Mapping[str, Any]
    """What trials depend on."""

    def replies(self, quantized: QuantizedModel, items: Sequence[Any] | None = None) -> list[Reply]:
        """Of the fake-quantised model, with the rounding of inputs that the runtime does by itself."""
        target = self.job.plan.target
        made = in_half(quantized)
        with fakequant.applied(self.model, made, lambda linear: dynamic_inputs.of(target, linear)) as model:
            return self.examination.replies(model, items)

    @property
    def digest(self) -> str:
        return digest(self.identity)


def gather(
    job: Job, order: Order, own: Path | None, share: float, space: Space, algorithms: Sequence[Algorithm]
) -> Inputs:
    """Questions, reference answers and every uniform quantisation. Raises what compiling raises."""
    recipe, watch, spec, unreduced_spec = job.plan.recipe, job.watch, job.spec, job.source_spec
    if not (isinstance(spec, ModelSpec) and isinstance(unreduced_spec, ModelSpec)):
        raise PlanError(
            f"{job.source.name} is a model of kind {spec.kind}; `edgevlm search` examines decoders that read "
            "picture and question."
        )
    given = job.samples
    calibrated = calibration_set(job, given.calibration)
    wanted = questions.evaluation(recipe, share)
    asked = questions.gather(order, own, given, calibrated, wanted, job.cache)
    plan = dataclasses.replace(job.plan, recipe=recipe.model_copy(update={"evaluation": wanted}))
    searching = dataclasses.replace(job, plan=plan)
    items = item_table(searching, Samples((), asked))
    answers = reference_answers(searching, items)
    assembly = Assembly(space, lambda request: _quantized(job, request, calibrated))
    assembly.prepare()
    unreduced = half_precision(source.load(job.source))
    examination = Examination(items.rows, answers.rows, items.root, wanted.seed, spec, job.source.tokenizer)
    watch.begin("Reference probabilities", len(items.rows))
    examination.observe_reference(unreduced, unreduced_spec, watch.advance)
    model = unreduced if recipe.image.reduction is None else half_precision(job.load_model())
    identity = {
        "model": job.source.digest,
        "items": file_digest(items.root / "items.jsonl"),
        "spec": what_shapes_answers(job.spec),
        "reduction": recipe.image.reduction,
        "calibration": calibrated.digest,
        "target": job.plan.target,
        "quantizer": recipe.quantizer,
        "gates": job.plan.gates,
        "algorithms": [one.value for one in algorithms],
        "blocks": {block.name: [one.value for one in block.choices] for block in space.blocks},
        "packages": versions(PACKAGES),
    }
    real_share = len(items.rows) / _verdict_items(recipe.evaluation, len(given.evaluation))
    return Inputs(job, wanted, real_share, space, model, examination, assembly, identity)


def _quantized(job: Job, request: Request, calibrated: CalibrationSet) -> Path:
    plan = dataclasses.replace(job.plan, request=request)
    return quantized_model(dataclasses.replace(job, plan=plan), calibrated)


def _verdict_items(evaluation: Evaluation, questions: int) -> int:
    """Items that the verdict rests on, of so many questions."""
    clean = min(evaluation.clean_items, questions)
    conditions = len(evaluation.severities) * (len(evaluation.corruptions) + len(evaluation.perturbations))
    return clean + conditions * min(evaluation.items_per_condition, clean)


def sensitivities(inputs: Inputs) -> tuple[Sensitivity, ...]:
    """One row per block."""
    some, assembly = sensitivity.some(inputs.examination.items), inputs.assembly
    weights = {f"{name}.weight" for block in inputs.space.blocks for name in block.modules}
    assert weights <= {name for name, _ in inputs.model.named_parameters(remove_duplicate=False)}

    def ask(block: Block, scheme: Scheme) -> list[Reply]:
        return inputs.replies(assembly.only(block, scheme), some)

    def error(block: Block, scheme: Scheme) -> float:
        return assembly.error(block, scheme, lambda name: weight_of(inputs.model, name))

    def run(out: Path) -> None:
        reference = inputs.examination.replies(inputs.model, some)
        sensitivity.measure(inputs.space.blocks, some, reference, ask, error, out, inputs.job.watch.advance)

    inputs.job.watch.begin("Sensitivity", len(inputs.space.blocks))
    # Without the gates: what a block does to answers does not depend on them.
    depends = {key: value for key, value in inputs.identity.items() if key not in ("gates", "algorithms")}
    depends["asked"] = len(some)
    return sensitivity.load(stage(inputs.job.cache, "sensitivity", depends, run, resumable=True))
