"""The quantised model and the graphs that a backend makes of it."""

from __future__ import annotations

from pathlib import Path

from edgevlm_runner.contract import CLEAN, ModelSpec, to_json
from edgevlm_runner.inputs import from_item, load_tokenizer

from edgevlm_deploy import backends, calibration, quantize
from edgevlm_deploy.artifacts import pretty_json, require_free, stage, write_text_atomic
from edgevlm_deploy.calibration import CalibrationSet
from edgevlm_deploy.export.footprint import weight_bytes
from edgevlm_deploy.pipeline.data import Items
from edgevlm_deploy.pipeline.job import PACKAGES, Job, compilers, versions, what_shapes_answers
from edgevlm_deploy.quantize import QuantizedModel
from edgevlm_deploy.recipe import Component
from edgevlm_deploy.target import Backend

VERIFICATION_ITEMS = 4
"""Questions on which graphs and quantised model are compared, 32 greedy tokens each."""


def quantized_model(job: Job, calibrated: CalibrationSet) -> Path:
    """Folder of a QuantizedModel."""
    recipe = job.plan.recipe
    inputs = {
        "model": job.source.digest,
        "request": job.plan.request,
        "quantizer": recipe.quantizer,
        "reduction": recipe.image.reduction,
        "calibration": calibrated.digest,
        "observer": recipe.calibration.observer,
        "spec": what_shapes_answers(job.spec),
        "packages": versions(PACKAGES),
    }
    job.watch.begin("Quantise")

    def run(out: Path) -> None:
        require_free(out, disk_bytes(job))
        batches = calibration.batches(calibrated, job.spec, job.source.tokenizer)
        made = quantize.quantize(
            job.load_model,
            job.plan.request,
            batches,
            recipe.quantizer,
            recipe.calibration.observer,
            scratch=out,
        )
        made.save(out)

    return stage(job.cache, "quantized", inputs, run)


def disk_bytes(job: Job) -> int:
    """What is written from here on, at most: integers twice, because those of a paged model wait on the disk,
    and the graphs' weights three times, as a stage, in the bundle's folder and in the bundle."""
    request, backend = job.plan.request, job.plan.target.backend
    integers = graphs = 0
    for component, names in job.source.modules.items():
        for name in names:
            rows, columns = job.source.shapes[name]
            asked = request.get(name)
            stored = None if asked is None else asked.format
            integers += 0 if asked is None else rows * columns
            graphs += weight_bytes(rows, columns, stored, Component(component), backend)
    return 2 * integers + 3 * graphs


def exported_graphs(job: Job, items: Items, calibrated: CalibrationSet, quantized: Path) -> Path:
    """Folder with `graphs/` and `verification.json`."""
    asked = [item for item in items.rows if item.condition == CLEAN][:VERIFICATION_ITEMS]
    inputs = {
        "quantized": quantized.name,
        "spec": to_json(job.spec),
        "items": [[item.image_id, item.prompt, item.answers] for item in asked],
        "lengths": _lengths(job),
        "packages": compilers(job.plan),
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
        made = compile_graphs(job.load_model, QuantizedModel.load(quantized), job.spec, samples, out)
        write_text_atomic(out / "verification.json", pretty_json(made.verification))

    return stage(job.cache, "graphs", inputs, export)


def _lengths(job: Job) -> object:
    """What static graphs of a decoder are made for; None without one."""
    if not isinstance(job.spec, ModelSpec):
        return None
    return job.plan.recipe.generation.static_lengths(job.spec.max_context)
