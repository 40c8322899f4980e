"""One compilation: what was asked for, and what every stage needs to know."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from edgevlm_runner.contract import ModelSpec, to_json

from edgevlm_deploy import __version__, backends, plan, reduction, resources, source
from edgevlm_deploy.plan import Plan
from edgevlm_deploy.progress import Watcher
from edgevlm_deploy.source import SourceModel
from edgevlm_deploy.target import Backend

DEMO = "demo"
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
    spec: ModelSpec
    """Of the artifact, which may have fewer image tokens than the source model."""
    source_spec: ModelSpec
    """Of the source model, which gives the reference answers."""
    cache: Path
    watch: Watcher

    def load_model(self) -> Any:
        """The torch model that is quantised and exported, image tokens reduced as the recipe says."""
        tokens = self.source_spec.prompt.tokens_per_tile
        return reduction.apply(source.load(self.source), self.plan.recipe.image.reduction, tokens)


def prepare(order: Order, watch: Watcher) -> Job:
    target = resources.target(order.target)
    recipe = resources.recipe(order.recipe or target.recipe)
    watch.begin("Model")
    checkpoint = str(resources.DEMO_CHECKPOINT) if order.model == DEMO else order.model
    model = source.inspect(checkpoint, order.revision, order.offline)
    made = plan.resolve(recipe, target, model.modules, model.architecture)
    backends.require_packages(target.backend)
    graphs = backends.graph_names(target.backend)
    whole = source.model_spec(model, recipe, target.backend.value, graphs)
    spec = reduction.reduced(whole, recipe.image.reduction)
    spec = backends.with_profiles(spec, recipe, target)
    return Job(model, made, spec, whole, order.out / "stages", watch)


def versions(packages: Sequence[str]) -> dict[str, str]:
    return {"edgevlm": __version__, **{name: metadata.version(name) for name in packages}}


def compilers(made: Plan) -> dict[str, str]:
    """Versions of what quantises and exports."""
    return versions((*PACKAGES, *backends.PACKAGES[made.target.backend]))


def what_shapes_answers(spec: ModelSpec) -> Mapping[str, Any]:
    """The specification without what only the device sees."""
    return {
        key: value
        for key, value in to_json(spec).items()
        if key not in ("runtime", "graphs", "profiles", "max_context", "hidden")
    }
