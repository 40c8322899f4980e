"""What a compiled CLIP gives beyond the scores of classes: retrieval, and the spectrum of its features.

Pictures and captions of the demo go through the bundle's own graphs, and through transformers in float32.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from edgevlm_runner import zero_shot
from edgevlm_runner.bundle import Bundle, open_bundle
from edgevlm_runner.contract import DualEncoderSpec
from edgevlm_runner.inputs import load_tokenizer
from edgevlm_runner.preprocess import frame
from edgevlm_runner.runtimes.onnxruntime import exact_kernels, import_onnxruntime, open_session
from numpy.typing import NDArray
from PIL import Image

from benchmarks import page, side_by_side
from edgevlm_deploy import quiet, resources, source
from edgevlm_deploy.demo.captions import full_caption, truth
from edgevlm_deploy.demo.pictures import CLASSES, Picture, counterfactual, pair_picture
from edgevlm_deploy.demo.scenes import Split
from edgevlm_deploy.export import graph
from edgevlm_deploy.metrics import dual
from edgevlm_deploy.metrics.dual import spectrum
from edgevlm_deploy.metrics.dual.embeddings import RECALLS
from edgevlm_deploy.metrics.dual.tables import Direction, Retrieval, Spectral
from edgevlm_deploy.metrics.statistics import Estimate
from edgevlm_deploy.report.quantity import MISSING, Unit

Floats = NDArray[np.float64]

SCENES, PAIRS = 240, 120
LEVEL = 0.95
FEATURES = "vision_model.post_layernorm"
"""What the projection reads."""


@dataclass(frozen=True)
class Embedded:
    """float64. features [N, D] of clean pictures, pairs [P, W] of pictures with two objects; texts [·, W]."""

    features: Floats
    embeds: Floats
    classes: Floats
    pairs: Floats
    captions: Floats

    @property
    def projection(self) -> Floats:
        """[D, W] from features to embeddings, as the graph multiplies them."""
        found: Floats = np.linalg.lstsq(self.features, self.embeds)[0]
        return found


Encode = Callable[[NDArray[Any]], NDArray[Any]]


@dataclass(frozen=True)
class Asked:
    """Scenes on both grounds with their classes, pairs with their captions."""

    scenes: Sequence[Picture]
    labels: NDArray[np.int64]
    pairs: Sequence[Picture]
    relevant: NDArray[np.bool_]
    captions: tuple[str, ...]


def asked() -> Asked:
    scenes = [one for index in range(SCENES) for one in counterfactual(Split.EVALUATION, index)]
    pairs = [pair_picture(Split.EVALUATION, index) for index in range(PAIRS)]
    captions = [full_caption(one) for one in pairs]
    return Asked(
        scenes,
        np.array([CLASSES.index(one.things[0].name) for one in scenes]),
        pairs,
        truth(pairs, captions),
        tuple(one.text for one in captions),
    )


def _embedded(
    given: Asked, bundle: Bundle, encode_image: Callable[[NDArray[Any]], tuple[Any, Any]], encode_text: Encode
) -> Embedded:
    """encode_image: [1, 3, S, S] → (features [1, D], embeddings [1, W])."""
    spec = bundle.model
    assert isinstance(spec, DualEncoderSpec)
    tokenizer = load_tokenizer(bundle.path("tokenizer/tokenizer.json"))

    def pictures(images: Sequence[Image.Image]) -> tuple[Floats, Floats]:
        both = [encode_image(frame(one, spec.image)) for one in images]
        features, embeds = (np.concatenate(side).astype(np.float64) for side in zip(*both, strict=True))
        return features, embeds

    def texts(sentences: Sequence[str]) -> Floats:
        rows = [encode_text(zero_shot.tokens([one], spec.text, tokenizer)) for one in sentences]
        return np.concatenate(rows).astype(np.float64)

    features, embeds = pictures([one.image for one in given.scenes])
    classes = zero_shot.sentences(CLASSES, spec.text.templates[:1])
    pairs = pictures([one.image for one in given.pairs])[1]
    return Embedded(features, embeds, texts(classes), pairs, texts(given.captions))


def compiled(given: Asked, path: Path) -> Embedded:
    """By the bundle's graphs on ONNX Runtime, in the way of the runner."""
    bundle, ort = open_bundle(path), import_onnxruntime()
    graphs = bundle.model.graphs
    with tempfile.TemporaryDirectory(prefix="edgevlm-features-") as temporary:
        copy = Path(temporary) / "vision_encoder.onnx"
        model = graph.load(bundle.path(graphs["vision_encoder"]))
        (norm,) = (node for node in model.graph if graph.module_of(node) == FEATURES)
        model.graph.outputs.append(norm.outputs[0])
        graph.save(model, copy)
        vision, text = (
            open_session(ort, one, 1, True, exact_kernels())
            for one in (copy, bundle.path(graphs["text_encoder"]))
        )

    def encode_image(pixel_values: NDArray[Any]) -> tuple[Any, Any]:
        embeds, features = vision.run(None, {"pixel_values": pixel_values})
        return features[:, 0], embeds

    return _embedded(given, bundle, encode_image, lambda ids: text.run(None, {"input_ids": ids})[0])


def reference(given: Asked, path: Path) -> Embedded:
    """By transformers in float32, on the pixels and tokens of the bundle at `path`."""
    import torch

    with quiet.libraries():
        model = source.load(source.inspect(resources.DEMO_CLIP))

    def encode_image(pixel_values: NDArray[Any]) -> tuple[Any, Any]:
        with torch.inference_mode():
            features = model.vision_model(torch.from_numpy(pixel_values)).pooler_output
            return features.numpy(), model.visual_projection(features).numpy()

    def encode_text(ids: NDArray[Any]) -> Any:
        with torch.inference_mode():
            return model.get_text_features(input_ids=torch.from_numpy(ids)).pooler_output.numpy()

    return _embedded(given, open_bundle(path), encode_image, encode_text)


def tables(bundles: Mapping[str, Path]) -> list[page.Table]:
    """Column → bundle. Retrieval and spectrum of each against transformers."""
    given = asked()
    before = reference(given, next(iter(bundles.values())))
    retrieval, spectra = {}, {}
    for column, path in bundles.items():
        now = compiled(given, path)
        similarity = (spectrum.cosines(one.pairs, one.captions) for one in (before, now))
        retrieval[column] = dual.retrieval_table(*similarity, given.relevant, LEVEL)
        spectra[column] = dual.spectral_table(
            before.features,
            now.features,
            before.classes,
            now.classes,
            given.labels,
            (before.projection, now.projection),
        )
    return [
        page.Table("Retrieval", ("metric", *bundles), tuple(_retrieval_rows(retrieval)), words=1),
        page.Table("Spectrum of the features", ("ranks", *bundles), tuple(_bands(spectra)), words=1),
    ]


def _retrieval_rows(found: Mapping[str, Retrieval]) -> Iterator[side_by_side.Row]:
    directions: Mapping[str, Callable[[Retrieval], Direction]] = {
        "picture → text": lambda one: one.image_to_text,
        "text → picture": lambda one: one.text_to_image,
    }
    for title, direction in directions.items():
        columns = [direction(one).estimates for one in found.values()]
        for k in RECALLS:
            name = f"recall_at_{k}"
            cells = (_recall(one[name], one[f"{name}_drop"]) for one in columns)
            yield (f"{title}, R@{k}, %", *cells)
        ranks = (one["median_rank"].value for one in columns)
        yield (f"{title}, median rank", *(MISSING if rank is None else f"{rank:g}" for rank in ranks))


def _recall(estimate: Estimate, drop: Estimate) -> str:
    return side_by_side.cell(estimate, Unit.SHARE, side_by_side.differs(drop, 0.0))


def _bands(found: Mapping[str, Spectral]) -> Iterator[side_by_side.Row]:
    first = next(iter(found.values()))
    for place, band in enumerate(first.bands):
        rows = [one.bands[place] for one in found.values()]
        ranks = f"{band.first}–{band.last}" if band.last > band.first else str(band.first)
        yield (f"{ranks}: SQNR, dB", *("∞" if row.sqnr_db is None else f"{row.sqnr_db:.1f}" for row in rows))
        yield (f"{ranks}: accuracy by them alone, %", *(f"{row.artifact_accuracy:.1%}"[:-1] for row in rows))
