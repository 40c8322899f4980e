"""A dual encoder's exported graphs against the torch model that computes with the same integers.

As in `verify`: *exact* graphs must agree with torch to a tolerance and choose the same text for each
picture; what the *shipped* graphs add is measured and reported.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from edgevlm_runner.contract import DualEncoderSpec
from edgevlm_runner.inputs import Inputs
from edgevlm_runner.runtimes import Encoders
from edgevlm_runner.runtimes.onnxruntime_encoders import OnnxEncoders
from edgevlm_runner.zero_shot import normalize
from numpy.typing import NDArray

from edgevlm_deploy.errors import ExportError
from edgevlm_deploy.export import graph
from edgevlm_deploy.export.observation import expose_quantized_inputs, open_exactly, write_exact
from edgevlm_deploy.export.passes.matmul_integer import UINT8_SHIFT
from edgevlm_deploy.export.verify import TOLERANCE, Floats, difference, given_ties, relative
from edgevlm_deploy.quantize.table import QuantizedTable


@dataclass(frozen=True)
class EncoderVerification:
    """Worst values over all samples. Differences are relative to the largest magnitude of the reference."""

    samples: int
    """Pictures and texts compared; each picture's nearest text is torch's in the exact graphs."""
    vision_difference: float
    text_difference: float
    rounding_ties: int
    """Quantised inputs that torch and the graph rounded to different neighbours of one midpoint."""
    shipped_vision_difference: float
    shipped_text_difference: float
    shipped_max_abs_cosine_difference: float
    """Of the cosines between all pictures and all texts."""
    shipped_nearest_equal: float
    """Share of the pictures to which the shipped graphs find the same text nearest."""

    def numbers(self) -> dict[str, float]:
        """What was measured, name → number."""
        return asdict(self)


@dataclass(frozen=True)
class Observed:
    """What the exact graphs computed for one sample: embeddings [1, D], and int8 inputs by module."""

    image: Floats
    text: Floats
    quantized: Mapping[str, NDArray[np.int8]] = field(default_factory=dict)


def verify(
    reference: Any, table: QuantizedTable, spec: DualEncoderSpec, root: Path, samples: Sequence[Inputs]
) -> EncoderVerification:
    """Compare the ONNX Runtime graphs below `root` with `reference`, the fake-quantised torch model.

    Raises ExportError when the exact graphs differ from it by more than `verify.TOLERANCE`.
    """
    with tempfile.TemporaryDirectory(prefix="edgevlm-verify-") as temporary:
        directory = Path(temporary)
        exact = {name: write_exact(root / path, directory) for name, path in spec.graphs.items()}
        observed = observe(exact, samples, directory)
    with OnnxEncoders(root, spec) as shipped:
        return conclude(reference, table, samples, observed, shipped, TOLERANCE)


def observe(graphs: Mapping[str, Path], samples: Sequence[Inputs], directory: Path) -> list[Observed]:
    """Run every sample through the exact graphs; `directory` takes copies."""
    vision, text = (
        _Observing(graphs[name], directory / f"observed_{name}.onnx")
        for name in ("vision_encoder", "text_encoder")
    )
    found = []
    for sample in samples:
        image, seen_in_image = vision.run({"pixel_values": pixels_of(sample)})
        words, seen_in_words = text.run({"input_ids": sample.input_ids})
        found.append(Observed(image, words, {**seen_in_image, **seen_in_words}))
    return found


def observe_runtime(runtime: Encoders, samples: Sequence[Inputs]) -> list[Observed]:
    """The same through a runtime whose graphs have no quantised inputs."""
    return [
        Observed(runtime.encode_image(pixels_of(one)), runtime.encode_text(one.input_ids)) for one in samples
    ]


class _Observing:
    """One graph whose quantised inputs are outputs too."""

    def __init__(self, path: Path, copy: Path) -> None:
        model = graph.load(path)
        self._names = expose_quantized_inputs(model)
        graph.save(model, copy)
        self._session = open_exactly(copy)

    def run(self, inputs: Mapping[str, Any]) -> tuple[Floats, dict[str, NDArray[np.int8]]]:
        """(the graph's own output, module → its int8 input)"""
        names = [value.name for value in self._session.get_outputs()]
        outputs = dict(zip(names, self._session.run(names, dict(inputs)), strict=True))
        signed = {
            module: (outputs[name].astype(np.int16) - UINT8_SHIFT).astype(np.int8)
            for module, name in self._names.items()
        }
        return outputs[names[0]], signed


def conclude(
    reference: Any,
    table: QuantizedTable,
    samples: Sequence[Inputs],
    observed: Sequence[Observed],
    shipped: Encoders,
    tolerance: float,
) -> EncoderVerification:
    """The exact graphs' embeddings against torch, the shipped graphs against those.

    Raises ExportError when the exact graphs differ by more than `tolerance`, or find another text nearest.
    """
    if not samples:
        raise ExportError("Verification needs at least one sample, got none.")
    vision, text, ties, theirs = [], [], 0, []
    for sample, seen in zip(samples, observed, strict=True):
        with torch.inference_mode(), given_ties(reference, table, seen.quantized) as found:
            image = reference.get_image_features(
                pixel_values=torch.from_numpy(pixels_of(sample))
            ).pooler_output.numpy()
            words = reference.get_text_features(
                input_ids=torch.from_numpy(sample.input_ids)
            ).pooler_output.numpy()
        vision.append(difference("image embeddings", seen.image, image, tolerance))
        text.append(difference("text embeddings", seen.text, words, tolerance))
        ties += found[0]
        theirs.append((image, words))
    exact = _cosines([(one.image, one.text) for one in observed])
    _check_nearest(exact, _cosines(theirs), tolerance)
    given = [(shipped.encode_image(pixels_of(one)), shipped.encode_text(one.input_ids)) for one in samples]
    cosines = _cosines(given)
    pairs = list(zip(given, observed, strict=True))
    return EncoderVerification(
        samples=len(samples),
        vision_difference=max(vision),
        text_difference=max(text),
        rounding_ties=ties,
        shipped_vision_difference=max(relative(image, seen.image) for (image, _), seen in pairs),
        shipped_text_difference=max(relative(words, seen.text) for (_, words), seen in pairs),
        shipped_max_abs_cosine_difference=float(np.abs(cosines - exact).max()),
        shipped_nearest_equal=float(np.mean(cosines.argmax(axis=1) == exact.argmax(axis=1))),
    )


def pixels_of(sample: Inputs) -> Floats:
    if sample.pixel_values is None:
        raise ExportError("Verification of a dual encoder needs a picture in every sample.")
    return np.ascontiguousarray(sample.pixel_values, np.float32)


def _cosines(embeds: Sequence[tuple[Floats, Floats]]) -> NDArray[np.float64]:
    """[pictures, texts]"""
    images, texts = (normalize(np.concatenate(side)).astype(np.float64) for side in zip(*embeds, strict=True))
    found: NDArray[np.float64] = images @ texts.T
    return found


def _check_nearest(found: NDArray[np.float64], expected: NDArray[np.float64], tolerance: float) -> None:
    """Where torch itself finds several texts equally near, any of them will do."""
    chosen = np.take_along_axis(expected, found.argmax(axis=1)[:, None], axis=1)[:, 0]
    behind = expected.max(axis=1) - chosen
    if (behind > 2 * tolerance).any():
        place = int(behind.argmax())
        raise ExportError(
            f"Picture {place}: the graph finds another text nearest than torch does, whose cosine is "
            f"{behind[place]:.1e} lower. The graph does not compute what was quantised."
        )
