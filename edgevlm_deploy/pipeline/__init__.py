"""The story in order: plan → source → calibration → items → reference → quantise → export → certainty →
bundle.

Every stage is a folder named by the digest of its inputs (`artifacts.stage`), so a killed run goes on
after the last finished one, and a recipe that changes one gate repeats nothing that it does not touch.
"""

from __future__ import annotations

from pathlib import Path

from edgevlm_deploy import bundle, quiet
from edgevlm_deploy.pipeline.certainty import fitted_certainty
from edgevlm_deploy.pipeline.data import calibration_set, item_table, reference_answers, reference_features
from edgevlm_deploy.pipeline.graphs import exported_graphs, quantized_model
from edgevlm_deploy.pipeline.job import DEMOS, Order, needs_emulation, prepare
from edgevlm_deploy.pipeline.packing import bundle_folder, provenance_of
from edgevlm_deploy.progress import Watcher

__all__ = ["DEMOS", "Order", "compile", "needs_emulation"]


def compile(order: Order, watch: Watcher) -> Path:
    """Make the bundle `OUT/NAME.edgevlm` and return its path. It is not judged yet.

    Raises any of the host's errors (`edgevlm_deploy.errors`).
    """
    with quiet.libraries():
        job = prepare(order, watch)
        calibrated = calibration_set(job, job.samples.calibration)
        items = item_table(job, job.samples)
        answers = reference_answers(job, items)
        quantized = quantized_model(job, calibrated)
        exported = exported_graphs(job, items, calibrated, quantized)
        fitted = fitted_certainty(job, items, job.samples.tuning, exported)
        provenance = provenance_of(job, calibrated, answers, exported, fitted)
        embeddings = reference_features(job, items)
        folder = bundle_folder(job, order.name, items, answers, exported, provenance, fitted, embeddings)
        return bundle.pack(folder, order.out / f"{order.name}{bundle.SUFFIX}")
