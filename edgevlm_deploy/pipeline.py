"""The story in order: plan → source → calibration → items → reference → quantise → export → bundle.

Every stage is a folder named by the digest of its inputs (`artifacts.stage`), so a killed run goes on
after the last finished one, and a recipe that changes one gate repeats nothing that it does not touch.
"""

from __future__ import annotations

import importlib.util
import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from edgevlm_runner.contract import CLEAN, Answer, Item, ModelSpec, read_jsonl, to_json, write_jsonl
from edgevlm_runner.inputs import from_item, load_tokenizer

from edgevlm_deploy import (
    __version__,
    backends,
    bundle,
    calibration,
    datasets,
    metrics,
    plan,
    quantize,
    quiet,
    reference,
    resources,
    source,
    suites,
)
from edgevlm_deploy.artifacts import file_digest, pretty_json, stage, write_text_atomic
from edgevlm_deploy.calibration import CalibrationSet
from edgevlm_deploy.plan import Plan
from edgevlm_deploy.progress import Watcher
from edgevlm_deploy.quantize import QuantizedModel
from edgevlm_deploy.samples import Samples, gather
from edgevlm_deploy.source import SourceModel
from edgevlm_deploy.target import Backend

DEMO = "demo"
VERIFICATION_ITEMS = 4
"""Questions on which graphs and quantised model are compared, 32 greedy tokens each."""
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
    revision: str | None = None
    offline: bool = False

    @property
    def name(self) -> str:
        """Of the bundle: model and target, and the recipe when one was named other than `default`."""
        parts = [Path(self.model).name, Path(self.target).stem]
        named = self.recipe not in (None, "default")
        return "-".join([*parts, Path(str(self.recipe)).stem] if named else parts)


@dataclass(frozen=True)
class Job:
    """One compilation under way: what every stage needs to know."""

    source: SourceModel
    plan: Plan
    spec: ModelSpec
    cache: Path
    watch: Watcher


def compile(order: Order, watch: Watcher) -> Path:
    """Make the bundle `OUT/NAME.edgevlm` and return its path. It is not judged yet.

    Raises any of the host's errors (`edgevlm_deploy.errors`).
    """
    with quiet.libraries():
        job = _job(order, watch)
        watch.begin("Data")
        recipe = job.plan.recipe
        samples = gather(order.data, order.calibration, order.images, recipe, job.cache)
        calibrated = _calibration(job, samples.calibration)
        items = _items(job, samples)
        answers = _reference(job, items)
        quantized = _quantized(job, calibrated)
        exported = _graphs(job, items, calibrated, quantized)
        provenance = _provenance(job, calibrated, answers, exported)
        folder = _bundle(job, order.name, items, answers, exported, provenance)
        return bundle.pack(folder, order.out / f"{order.name}{bundle.SUFFIX}")


def needs_emulation(order: Order) -> bool:
    """Whether this machine lacks the runtime of the order's target, so that ONNX Runtime has to stand in."""
    is_tensorrt = resources.target(order.target).backend is Backend.TENSORRT
    return is_tensorrt and importlib.util.find_spec("tensorrt") is None


def _job(order: Order, watch: Watcher) -> Job:
    target = resources.target(order.target)
    recipe = resources.recipe(order.recipe or target.recipe)
    watch.begin("Model")
    checkpoint = str(resources.DEMO_CHECKPOINT) if order.model == DEMO else order.model
    model = source.inspect(checkpoint, order.revision, order.offline)
    made = plan.resolve(recipe, target, model.modules)
    backends.require_packages(target.backend)
    graphs = backends.graph_names(target.backend)
    spec = source.model_spec(model, recipe, target.backend.value, graphs)
    spec = backends.with_profiles(spec, recipe, target)
    return Job(model, made, spec, order.out / "stages", watch)


def _calibration(job: Job, samples: Sequence[datasets.Sample]) -> CalibrationSet:
    settings = job.plan.recipe.calibration
    inputs = {"samples": _identities(samples), "settings": settings, "version": __version__}

    def build(out: Path) -> None:
        calibration.build(samples, settings, out)

    return calibration.load(stage(job.cache, "calibration", inputs, build))


def _identities(samples: Sequence[datasets.Sample]) -> list[list[Any]]:
    """What a sample is, wherever its picture lies."""
    return [[one.id, one.group, one.image_id, one.prompt, one.answers] for one in samples]


@dataclass(frozen=True)
class Items:
    """The table of items; their pictures lie below `root` under `Item.image`."""

    rows: tuple[Item, ...]
    root: Path


def _items(job: Job, samples: Samples) -> Items:
    evaluation = job.plan.recipe.evaluation
    given = (*samples.evaluation, *samples.calibration)
    inputs = {
        "samples": _identities(samples.evaluation),
        "calibration": _identities(samples.calibration),
        "evaluation": evaluation,
        "version": __version__,
    }

    def build(out: Path) -> None:
        pictures = {_picture(one): one.image for one in given if one.image is not None}
        asked = [_item(one) for one in samples.evaluation]
        rows = suites.build(asked, evaluation, [_item(one) for one in samples.calibration])
        (out / "images").mkdir(exist_ok=True)
        for name in {item.image for item in rows if item.image}:
            shutil.copyfile(pictures[name], out / name)
        write_jsonl(out / "items.jsonl", rows)

    root = stage(job.cache, "items", inputs, build)
    return Items(tuple(read_jsonl(root / "items.jsonl", Item)), root)


def _picture(sample: datasets.Sample) -> str:
    return bundle.picture_name(sample.image, sample.image_id) if sample.image is not None else ""


def _item(sample: datasets.Sample) -> Item:
    return Item(
        id=sample.id,
        base_id=sample.id,
        group=sample.group,
        condition=CLEAN,
        image=_picture(sample),
        image_id=sample.image_id,
        prompt=sample.prompt,
        answers=sample.answers,
    )


@dataclass(frozen=True)
class ReferenceAnswers:
    rows: tuple[Answer, ...]
    noise_floor: metrics.Estimate
    """How often the reference differs from itself when it answers one item at a time."""


def _reference(job: Job, items: Items) -> ReferenceAnswers:
    evaluation = job.plan.recipe.evaluation
    inputs = {
        "model": job.source.digest,
        "items": file_digest(items.root / "items.jsonl"),
        "spec": _what_shapes_answers(job.spec),
        "seed": evaluation.seed,
        "packages": _versions(("torch", "transformers", "pillow", "numpy")),
    }
    job.watch.begin("Reference answers", len(items.rows))

    def answer(out: Path) -> None:
        reference.answer(
            source.load(job.source),
            items.rows,
            items.root,
            evaluation.seed,
            job.spec,
            job.source.tokenizer,
            out,
            job.watch.advance,
        )

    directory = stage(job.cache, "reference", inputs, answer, resumable=True)
    rows = read_jsonl(directory / "answers.jsonl", Answer)
    again = read_jsonl(directory / "again.jsonl", Answer)
    batched = {one.item_id: one for one in rows}
    asked_again = {one.item_id for one in again}
    floor = metrics.noise_floor(
        [item for item in items.rows if item.id in asked_again],
        [batched[one.item_id] for one in again],
        again,
        evaluation,
    )
    return ReferenceAnswers(tuple(rows), floor)


def _what_shapes_answers(spec: ModelSpec) -> Mapping[str, Any]:
    """The specification without what only the device sees."""
    return {
        key: value
        for key, value in to_json(spec).items()
        if key not in ("runtime", "graphs", "profiles", "max_context")
    }


def _versions(packages: Sequence[str]) -> dict[str, str]:
    return {"edgevlm": __version__, **{name: metadata.version(name) for name in packages}}


def _compilers(made: Plan) -> dict[str, str]:
    """Versions of what quantises and exports."""
    return _versions((*PACKAGES, *backends.PACKAGES[made.target.backend]))


def _quantized(job: Job, calibrated: CalibrationSet) -> Path:
    """Folder of a QuantizedModel."""
    recipe = job.plan.recipe
    inputs = {
        "model": job.source.digest,
        "request": job.plan.request,
        "quantizer": recipe.quantizer,
        "calibration": calibrated.digest,
        "spec": _what_shapes_answers(job.spec),
        "packages": _versions(PACKAGES),
    }
    job.watch.begin("Quantise")

    def run(out: Path) -> None:
        batches = calibration.batches(calibrated, job.spec, job.source.tokenizer)
        made = quantize.quantize(lambda: source.load(job.source), job.plan.request, batches, recipe.quantizer)
        made.save(out)

    return stage(job.cache, "quantized", inputs, run)


def _graphs(job: Job, items: Items, calibrated: CalibrationSet, quantized: Path) -> Path:
    """Folder with `graphs/` and `verification.json`."""
    asked = [item for item in items.rows if item.condition == CLEAN][:VERIFICATION_ITEMS]
    inputs = {
        "quantized": quantized.name,
        "spec": to_json(job.spec),
        "items": [[item.image_id, item.prompt] for item in asked],
        "lengths": job.plan.recipe.generation.static_lengths(job.spec.max_context),
        "packages": _compilers(job.plan),
        # TensorRT's graphs are made for one release, and linted against one board.
        "target": job.plan.target if job.plan.target.backend is Backend.TENSORRT else None,
    }
    job.watch.begin("Export")
    tokenizer = load_tokenizer(job.source.tokenizer)
    compile_graphs = backends.compiler(
        job.plan, lambda: calibration.inputs(calibrated, job.spec, job.source.tokenizer)
    )

    def export(out: Path) -> None:
        samples = [from_item(item, items.root, 0, job.spec, tokenizer) for item in asked]
        made = compile_graphs(
            lambda: source.load(job.source), QuantizedModel.load(quantized), job.spec, samples, out
        )
        write_text_atomic(out / "verification.json", pretty_json(made.verification))

    return stage(job.cache, "graphs", inputs, export)


def _bundle(
    job: Job,
    name: str,
    items: Items,
    answers: ReferenceAnswers,
    exported: Path,
    provenance: bundle.Provenance,
) -> Path:
    """Folder of the bundle."""
    job.watch.begin("Bundle")
    parts = bundle.Parts(
        name=name,
        model=job.spec,
        graphs=exported / "graphs",
        tokenizer=job.source.tokenizer,
        items=items.rows,
        pictures={item.image: items.root / item.image for item in items.rows if item.image},
        reference=answers.rows,
        gates=job.plan.gates,
        recipe=job.plan.recipe,
        target=job.plan.target,
        quantization={
            module: {
                "scheme": wanted.scheme.value,
                "algorithm": wanted.algorithm.value,
                "bits": wanted.format.bits,
            }
            for module, wanted in job.plan.request.items()
        },
        provenance=provenance,
    )

    def write(folder: Path) -> None:
        bundle.write(parts, folder)

    inputs = {"parts": _part_digests(parts), "exported": exported.name}
    return stage(job.cache, "bundle", inputs, write)


def _provenance(
    job: Job, calibrated: CalibrationSet, answers: ReferenceAnswers, exported: Path
) -> bundle.Provenance:
    model, recipe = job.source, job.plan.recipe
    return bundle.Provenance(
        edgevlm_version=__version__,
        packages=_compilers(job.plan),
        source={
            "name": model.name,
            "revision": model.revision,
            "digest": model.digest,
            "family": model.family,
            "weights": model.dtype,
            "parameters": model.parameters,
        },
        seeds={"evaluation": recipe.evaluation.seed, "calibration": recipe.calibration.seed},
        calibration={"digest": calibrated.digest, "samples": len(calibrated.rows)},
        quantization=job.plan.summary(),
        verification=json.loads((exported / "verification.json").read_text()),
        reference={
            "weights": model.dtype,
            "arithmetic": "float32 on the CPU, batched, greedy",
            "noise_floor": answers.noise_floor.model_dump(mode="json"),
        },
    )


def _part_digests(parts: bundle.Parts) -> dict[str, Any]:
    """What the bundle's content depends on, without paths."""
    return {
        "name": parts.name,
        "model": parts.model,
        "items": [vars(item) for item in parts.items],
        "reference": [vars(answer) for answer in parts.reference],
        "gates": parts.gates,
        "recipe": parts.recipe,
        "target": parts.target,
        "provenance": parts.provenance,
    }
