"""What a search needs to know before its first trial, each part a stage that is made once."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgevlm_runner.contract import ModelSpec
from edgevlm_runner.preprocess import most_tiles

from edgevlm_deploy.artifacts import digest, stage
from edgevlm_deploy.calibration import CalibrationSet
from edgevlm_deploy.pipeline.graphs import quantized_model
from edgevlm_deploy.pipeline.job import Job, what_shapes_answers
from edgevlm_deploy.quantize import QuantizedModel, QuantizedTable
from edgevlm_deploy.quantize.request import Request
from edgevlm_deploy.quantize.rounding import weight_of
from edgevlm_deploy.recipe import Image, Scheme
from edgevlm_deploy.search import images, sensitivity
from edgevlm_deploy.search.assembly import Assembly
from edgevlm_deploy.search.examiner import Examiner
from edgevlm_deploy.search.images import Knob, Menu, Seen
from edgevlm_deploy.search.outlook import outlooks
from edgevlm_deploy.search.replies import Reply
from edgevlm_deploy.search.sensitivity import Sensitivity
from edgevlm_deploy.search.space import Block, Space
from edgevlm_deploy.search.study import Judged
from edgevlm_deploy.source import Architecture


@dataclass(frozen=True)
class Inputs:
    """Who examines, what can be chosen, and quantised parts to put candidates together from."""

    examiner: Examiner
    space: Space
    assembly: Assembly
    identity: Mapping[str, Any]
    """What trials depend on."""

    @property
    def job(self) -> Job:
        return self.examiner.job

    @property
    def digest(self) -> str:
        return digest(self.identity)


def menu(job: Job, knobs: Sequence[Knob]) -> Menu:
    """What can be seen less of, on this model and target."""
    base, spec, architecture = job.plan.recipe.image, job.spec, job.source.architecture
    if isinstance(spec, ModelSpec) and isinstance(architecture, Architecture):
        return images.menu(base, most_tiles(spec.image), job.plan.target, architecture, knobs)
    why = "tiles, reduction: a dual encoder sees one square and gives no tokens to a decoder"
    return Menu(base, 1, absent=(why,) if knobs else ())


def seen(examiner: Examiner, given: Menu) -> tuple[Seen, ...]:
    """What the unquantised model answers when it sees less."""
    job = examiner.job

    def look(image: Image) -> Seen:
        found = examiner.metrics(examiner.replies(QuantizedModel(QuantizedTable({})), image))
        value = {name: one.value for name, one in found.estimates.items()}
        return Seen(
            image=image,
            label=images.label(image),
            prompt_tokens=examiner.cost(image).prompt_tokens,
            accuracy=value["accuracy"] or 0.0,
            divergence_rate=value["divergence_rate"] or 0.0,
            corrupted_divergence_rate=value["corrupted_divergence_rate"],
            negative_flip_rate=value["negative_flip_rate"] or 0.0,
            gates=outlooks(job.plan.gates, found, examiner.share, {}),
        )

    depends = {**examiner.identity, "menu": given, "gates": job.plan.gates}
    job.watch.begin("Image tokens")

    def run(out: Path) -> None:
        images.examine(given, look, out, job.watch.advance)

    return images.load(stage(job.cache, "images", depends, run, resumable=True))


def gather(examiner: Examiner, space: Space, calibrated: CalibrationSet) -> Inputs:
    """Every uniform quantisation. Parts are calibrated with the recipe's own tiles and image tokens."""
    job, recipe = examiner.job, examiner.job.plan.recipe
    assembly = Assembly(space, lambda request: _quantized(job, request, calibrated))
    assembly.prepare()
    identity = {
        **examiner.identity,
        "spec": what_shapes_answers(job.spec),
        "reduction": recipe.image.reduction,
        "calibration": calibrated.digest,
        "quantizer": recipe.quantizer,
        "gates": job.plan.gates,
        "algorithms": [one.value for one in space.algorithms],
        "blocks": {block.name: [one.value for one in block.choices] for block in space.blocks},
        "images": list(space.images),
        "judged": sorted(Judged.model_fields),
    }
    return Inputs(examiner, space, assembly, identity)


def _quantized(job: Job, request: Request, calibrated: CalibrationSet) -> Path:
    plan = dataclasses.replace(job.plan, request=request)
    return quantized_model(dataclasses.replace(job, plan=plan), calibrated)


def sensitivities(inputs: Inputs) -> tuple[Sensitivity, ...]:
    """One row per block."""
    examiner, assembly, image = inputs.examiner, inputs.assembly, inputs.space.image
    some = sensitivity.some(examiner.examination.items)
    weights = {f"{name}.weight" for block in inputs.space.blocks for name in block.modules}
    assert weights <= {name for name, _ in examiner.model.named_parameters(remove_duplicate=False)}

    def ask(block: Block, scheme: Scheme) -> list[Reply]:
        return examiner.replies(assembly.only(block, scheme), image, some)

    def error(block: Block, scheme: Scheme) -> float:
        return assembly.error(block, scheme, lambda name: weight_of(examiner.model, name))

    def run(out: Path) -> None:
        reference = examiner.replies(QuantizedModel(QuantizedTable({})), image, some)
        sensitivity.measure(inputs.space.blocks, some, reference, ask, error, out, inputs.job.watch.advance)

    inputs.job.watch.begin("Sensitivity", len(inputs.space.blocks))
    # What a block does to answers depends neither on the gates nor on what else could be chosen.
    unrelated = ("gates", "algorithms", "images", "judged")
    depends = {key: value for key, value in inputs.identity.items() if key not in unrelated}
    depends |= {"asked": len(some), "image": image}
    return sensitivity.load(stage(inputs.job.cache, "sensitivity", depends, run, resumable=True))
