"""Everything into one bundle, with what the manifest says about its making."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from edgevlm_runner.contract import DUAL_ENCODER

from edgevlm_deploy import __version__, bundle
from edgevlm_deploy.artifacts import stage
from edgevlm_deploy.calibration import CalibrationSet
from edgevlm_deploy.pipeline.certainty import Fitted
from edgevlm_deploy.pipeline.data import Items, ReferenceAnswers
from edgevlm_deploy.pipeline.job import Job, compilers


def bundle_folder(
    job: Job,
    name: str,
    items: Items,
    answers: ReferenceAnswers,
    exported: Path,
    provenance: bundle.Provenance,
    fitted: Fitted,
    features: Path | None,
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
        certainty=fitted.certainty,
        selector=fitted.selector,
        features=features,
    )

    def write(folder: Path) -> None:
        bundle.write(parts, folder)

    inputs = {
        "parts": _part_digests(parts),
        "exported": exported.name,
        "fitted": fitted.name,
        "features": features.parent.name if features is not None else None,
    }
    return stage(job.cache, "bundle", inputs, write)


def provenance_of(
    job: Job, calibrated: CalibrationSet, answers: ReferenceAnswers, exported: Path, fitted: Fitted
) -> bundle.Provenance:
    model, recipe = job.source, job.plan.recipe
    return bundle.Provenance(
        edgevlm_version=__version__,
        packages=compilers(job.plan),
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
            "arithmetic": "float32 on the CPU, batched" + ("" if model.kind == DUAL_ENCODER else ", greedy"),
            "noise_floor": answers.noise_floor.model_dump(mode="json"),
        },
        certainty=fitted.facts,
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
