"""From the quantised model to the files that a device executes: one module per backend.

A backend is a module with one function, `compile`, of the shape of `Compile`. Its steps are its own: each
toolchain wants quantisation and export in another order. What they share is what goes in and comes out.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Protocol

from edgevlm_runner.contract import (
    DUAL_ENCODER,
    ENCODER_DECODER,
    GENERATIVE,
    DualEncoderSpec,
    EncoderDecoderSpec,
    Model,
)
from edgevlm_runner.inputs import Inputs

from edgevlm_deploy.errors import MissingExtraError
from edgevlm_deploy.plan import Plan
from edgevlm_deploy.quantize.quantized_model import QuantizedModel
from edgevlm_deploy.recipe import Recipe
from edgevlm_deploy.target import Backend, Target

_THREE_GRAPHS = {
    "vision_encoder": "graphs/vision_encoder.onnx",
    "embedding": "graphs/embedding.onnx",
    "decoder": "graphs/decoder.onnx",
}
_TWO_GRAPHS = {
    "vision_encoder": "graphs/vision_encoder.onnx",
    "text_encoder": "graphs/text_encoder.onnx",
}
_READING_GRAPHS = {**_TWO_GRAPHS, "decoder": "graphs/decoder.onnx"}
_ONE_FILE = {"model": "graphs/model.tflite"}
GRAPH_NAMES: Mapping[str, Mapping[Backend, Mapping[str, str]]] = {
    GENERATIVE: {
        Backend.ONNXRUNTIME: _THREE_GRAPHS,
        Backend.TENSORRT: _THREE_GRAPHS,
        Backend.LITERT: _ONE_FILE,
    },
    ENCODER_DECODER: {
        Backend.ONNXRUNTIME: _READING_GRAPHS,
        Backend.TENSORRT: _READING_GRAPHS,
        Backend.LITERT: _ONE_FILE,
    },
    DUAL_ENCODER: {
        Backend.ONNXRUNTIME: _TWO_GRAPHS,
        Backend.TENSORRT: _TWO_GRAPHS,
        Backend.LITERT: _ONE_FILE,
    },
}
"""kind of model → backend → component → path inside the bundle."""

PACKAGES: Mapping[Backend, tuple[str, ...]] = {
    Backend.ONNXRUNTIME: (),
    Backend.TENSORRT: (),
    Backend.LITERT: ("litert-torch", "ai-edge-quantizer", "ai-edge-litert"),
}
"""What a backend needs besides the extra `compile`: its own extra has the backend's name."""


@dataclass(frozen=True)
class CompiledGraphs:
    """What a backend wrote below its output folder.

    graphs        component → path relative to the folder, as in `ModelSpec.graphs`
    files         every file that belongs to the graphs (external weights too) → size in bytes
    verification  what was compared and measured, name → number; for the manifest
    """

    graphs: Mapping[str, str]
    files: Mapping[str, int]
    verification: Mapping[str, float]


class Compile(Protocol):
    def __call__(
        self,
        load_source: Callable[[], Any],
        quantized: QuantizedModel | None,
        spec: Model,
        samples: Sequence[Inputs],
        out_dir: Path,
    ) -> CompiledGraphs:
        """Write the graphs that `spec.graphs` names below `out_dir`, read them back and verify them.

        load_source  returns a fresh float32 copy of the source model, in evaluation mode
        quantized    None keeps every weight in fp16
        samples      questions on which graphs and source model are compared; at least one

        Raises ExportError when a graph does not hold or compute what was quantised.
        """


def graph_names(backend: Backend, kind: str = GENERATIVE) -> dict[str, str]:
    """component → path inside the bundle, for a model of that kind (`ModelSpec.kind`)."""
    return dict(GRAPH_NAMES[kind][backend])


def with_profiles(spec: Model, recipe: Recipe, target: Target) -> Model:
    """The shapes that engines are built for, where the backend builds engines."""
    if target.backend is not Backend.TENSORRT:
        return spec
    from edgevlm_deploy.backends import tensorrt

    if isinstance(spec, DualEncoderSpec):
        return dataclasses.replace(spec, profiles=tensorrt.encoder_profiles(spec))
    if isinstance(spec, EncoderDecoderSpec):
        return dataclasses.replace(spec, profiles=tensorrt.answering_profiles(spec))
    profiles = tensorrt.profiles(target, spec, recipe.image.usual_tiles, recipe.generation.usual_prompt)
    return dataclasses.replace(spec, profiles=profiles)


def require_packages(backend: Backend) -> None:
    """Raises MissingExtraError before anything is computed in vain."""
    missing = [name for name in PACKAGES[backend] if not list(metadata.distributions(name=name))]
    if missing:
        raise MissingExtraError(
            f"Compiling for {backend.value} needs {', '.join(missing)}: "
            f"pip install 'edgevlm[compile,{backend.value}]'"
        )


def compiler(plan: Plan, calibration: Callable[[], Iterable[Inputs]]) -> Compile:
    """The `compile` of the target's backend.

    calibration: gives the calibration questions, to a backend that calibrates its own graphs.
    """
    from edgevlm_deploy.backends import litert, onnxruntime, tensorrt

    if plan.target.backend is Backend.LITERT:
        return functools.partial(litert.compile, plan=plan, calibration=calibration)
    if plan.target.backend is Backend.TENSORRT:
        return functools.partial(tensorrt.compile, plan=plan)
    return onnxruntime.compile
