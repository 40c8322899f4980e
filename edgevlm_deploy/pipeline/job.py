"""One compilation: what was asked for, and what every stage needs to know."""

from __future__ import annotations

import dataclasses
import importlib.util
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from edgevlm_runner.contract import (
    DUAL_ENCODER,
    ENCODER_DECODER,
    DualEncoderSpec,
    EncoderDecoderSpec,
    ImageSpec,
    Model,
    ModelSpec,
    to_json,
)

from edgevlm_deploy import __version__, backends, plan, reduction, resources, source
from edgevlm_deploy.errors import DataError, PlanError
from edgevlm_deploy.metrics.normalize import normalize
from edgevlm_deploy.plan import Plan
from edgevlm_deploy.progress import Watcher
from edgevlm_deploy.recipe import OF_CLASS_SCORES, AbstainBy, Perturbation, Recipe
from edgevlm_deploy.samples import Samples, gather
from edgevlm_deploy.source import SourceModel
from edgevlm_deploy.target import Backend, Target

DEMO = "demo"
DEMOS = {DEMO: resources.DEMO_CHECKPOINT, "demo-clip": resources.DEMO_CLIP}
"""What is compiled without a checkpoint: a small VLM, and a small CLIP."""
OWN_RECIPES = {DUAL_ENCODER: "zero-shot-classifier", ENCODER_DECODER: "encoder-decoder"}
"""Kind of model → what it is compiled with on every target that executes int8."""
PACKAGES = (
    "torch",
    "transformers",
    "neural-compressor-pt",
    "onnx",
    "onnx-ir",
    "onnxscript",
    "onnxruntime",
    "numpy",
)


@dataclass(frozen=True)
class Order:
    """What `edgevlm compile` was asked for; paths and names as the user gave them."""

    model: str
    target: str
    recipe: str | None
    """None takes the target's own."""
    out: Path
    data: Path | None = None
    calibration: Path | None = None
    images: Path | None = None
    ood: Path | None = None
    revision: str | None = None
    offline: bool = False

    @property
    def name(self) -> str:
        """Of the bundle: model and target, and the recipe when one was named other than `default`."""
        parts = [Path(self.model).name, Path(self.target).stem]
        named = self.recipe not in (None, "default")
        return "-".join([*parts, Path(str(self.recipe)).stem] if named else parts)


def needs_emulation(order: Order) -> bool:
    """Whether this machine lacks the runtime of the order's target, so that ONNX Runtime has to stand in."""
    is_tensorrt = resources.target(order.target).backend is Backend.TENSORRT
    return is_tensorrt and importlib.util.find_spec("tensorrt") is None


@dataclass(frozen=True)
class Job:
    """One compilation under way: what every stage needs to know."""

    source: SourceModel
    plan: Plan
    spec: Model
    """Of the artifact, which may have fewer image tokens than the source model."""
    source_spec: Model
    """Of the source model, which gives the reference answers."""
    samples: Samples
    cache: Path
    watch: Watcher

    def load_model(self) -> Any:
        """The torch model that is quantised and exported, image tokens reduced as the recipe says."""
        if not isinstance(self.source_spec, ModelSpec):
            return source.load(self.source)
        tokens = self.source_spec.prompt.tokens_per_tile
        return reduction.apply(
            source.load(self.source, self.source_spec), self.plan.recipe.image.reduction, tokens
        )


def prepare(order: Order, watch: Watcher) -> Job:
    target = resources.target(order.target)
    watch.begin("Model")
    demo = order.model in DEMOS
    model = source.inspect(DEMOS.get(order.model, order.model), order.revision, order.offline)
    recipe = resources.recipe(order.recipe or own_recipe(target, model))
    made = plan.resolve(recipe, target, model.modules, model.architecture)
    backends.require_packages(target.backend)
    watch.begin("Data")
    labelled, cache = model.kind == DUAL_ENCODER, order.out / "stages"
    samples = gather(order.data, order.calibration, order.images, recipe, cache, order.ood, labelled, demo)
    graphs = backends.graph_names(target.backend, model.kind)
    whole = source.model_spec(model, recipe, target.backend.value, graphs, samples.labels)
    spec: Model = whole
    if isinstance(whole, DualEncoderSpec):
        _check_classes(whole, samples, recipe)
    elif isinstance(whole, EncoderDecoderSpec):
        _check_words(recipe)
        _check_pictures(samples)
    else:
        _check_words(recipe)
        spec = reduction.reduced(whole, recipe.image.reduction)
        whole = _with_tiles(whole, recipe.image.reference_tiles or recipe.image.max_tiles)
    spec = backends.with_profiles(spec, recipe, target)
    return Job(model, made, spec, whole, samples, cache, watch)


def _with_tiles(spec: ModelSpec, most: int | None) -> ModelSpec:
    """Bounded where pictures are cut into tiles."""
    if not isinstance(spec.image, ImageSpec):
        return spec
    return dataclasses.replace(spec, image=dataclasses.replace(spec.image, max_tiles=most))


def own_recipe(target: Target, model: SourceModel) -> str:
    """What a model is compiled with when no recipe is named; boards without integers have one for all."""
    return OWN_RECIPES.get(model.kind, target.recipe) if "int8" in target.formats else target.recipe


def _check_pictures(samples: Samples) -> None:
    """An encoder–decoder reads a question together with a picture."""
    for sample in (*samples.all, *samples.tuning):
        if sample.image is None:
            raise DataError(
                f"{sample.id}: this model answers questions about a picture, and this one has none. "
                "Take it out of the data, or give it a picture."
            )


def _check_words(recipe: Recipe) -> None:
    """What a model that answers in words has not."""
    if recipe.evaluation.feature_items:
        raise PlanError("evaluation.feature_items: only a dual encoder has embeddings to keep; leave it out.")
    for gate in recipe.gates:
        if gate.metric in OF_CLASS_SCORES:
            raise PlanError(
                f"the gate on {gate.metric.value}: only a dual encoder has scores of all classes; "
                "leave it out."
            )


def _check_classes(spec: DualEncoderSpec, samples: Samples, recipe: Recipe) -> None:
    """Every label is one of the classes, and answers that are compared by their words stay apart."""
    classes = spec.text.classes
    unknown = sorted(set(samples.labels) - set(classes))
    if unknown:
        raise DataError(
            f"{len(unknown)} labels in the data are none of the recipe's classes, e.g. {unknown[0]!r}. "
            "Add them to zero_shot.classes, or mark the pictures `ood` and leave out the label."
        )
    words: dict[str, str] = {}
    for name in classes:
        other = words.setdefault(normalize(name), name)
        if other != name:
            raise DataError(
                f"the classes {other!r} and {name!r} are the same words once case, articles and punctuation "
                "are left out; answers could not be told apart. Rename one."
            )
    asked = recipe.evaluation
    about_questions = {
        "evaluation.perturbations: paraphrase": Perturbation.PARAPHRASE in asked.perturbations,
        "evaluation.negation": asked.negation is not None,
        "evaluation.blind_items": asked.blind_items > 0,
        "image.reduction": recipe.image.reduction is not None,
        "abstain: selector": recipe.abstain is not None and recipe.abstain.by is AbstainBy.SELECTOR,
    }
    for key, wanted in about_questions.items():
        if wanted:
            raise PlanError(f"{key}: a dual encoder is asked no question and has no decoder; leave it out.")


def versions(packages: Sequence[str]) -> dict[str, str]:
    return {"edgevlm": __version__, **{name: metadata.version(name) for name in packages}}


def compilers(made: Plan) -> dict[str, str]:
    """Versions of what quantises and exports."""
    return versions((*PACKAGES, *backends.PACKAGES[made.target.backend]))


def what_shapes_answers(spec: Model) -> Mapping[str, Any]:
    """The specification without what only the device sees."""
    return {
        key: value
        for key, value in to_json(spec).items()
        if key not in ("runtime", "graphs", "profiles", "max_context", "hidden", "feature_items")
    }
