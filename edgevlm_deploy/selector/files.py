"""The Selector as a file: ONNX, .tflite, or for TensorRT's bundles a table that NumPy multiplies."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
from edgevlm_runner import abstain
from numpy.typing import NDArray

from edgevlm_deploy.artifacts import atomic_path
from edgevlm_deploy.errors import ExportError
from edgevlm_deploy.selector.training import Floats, Layers
from edgevlm_deploy.target import Backend

NAMES = {
    Backend.ONNXRUNTIME: "graphs/selector.onnx",
    Backend.LITERT: "graphs/selector.tflite",
    Backend.TENSORRT: "graphs/selector.npz",
}
"""Path inside the bundle."""
TOLERANCE = 1e-5
"""Largest difference between the file's scores and torch's."""
COMPARED = 256


def write(layers: Layers, backend: Backend, features: Floats, path: Path) -> float:
    """Write the Selector to `path` and return the largest difference of its scores from torch's.

    features float32 [N, F]: real ones, on which they are compared through the runner.
    Raises ExportError when they differ by more than `TOLERANCE`.
    """
    import torch

    module = _module(torch, layers).eval()
    if backend is Backend.TENSORRT:
        with atomic_path(path) as temporary, temporary.open("wb") as out:
            np.savez(out, **dataclasses.asdict(layers))
    elif backend is Backend.LITERT:
        from edgevlm_deploy.export import litert

        litert.export_selector(module, layers.weight_1.shape[0], path)
    else:
        from edgevlm_deploy.export import graph, onnx
        from edgevlm_deploy.export.passes import strip_traces

        zeros = torch.zeros(1, layers.weight_1.shape[0])
        model = onnx.trace(module, (zeros,), (None,), [abstain.FEATURES], [abstain.SCORE])
        strip_traces.strip_traces(model)
        graph.save(model, path)
    asked = np.ascontiguousarray(features[:COMPARED])
    with torch.no_grad():
        expected: NDArray[np.float32] = module(torch.from_numpy(asked))[:, 0].numpy()
    loaded = abstain.load(path, backend.value)
    difference = float(np.abs(np.array([loaded(one) for one in asked]) - expected).max())
    loaded.close()
    if not difference <= TOLERANCE:  # also true for NaN
        raise ExportError(
            f"{path}: the selector's scores differ from torch's by {difference:.2e}; {TOLERANCE:.0e} is "
            "allowed."
        )
    return difference


def _module(torch: Any, layers: Layers) -> Any:
    """float32 [N, F] → [N, 1]."""
    first, second = (torch.nn.Linear(*weight.shape) for weight in (layers.weight_1, layers.weight_2))
    with torch.no_grad():
        for linear, weight, bias in (
            (first, layers.weight_1, layers.bias_1),
            (second, layers.weight_2, layers.bias_2),
        ):
            linear.weight.copy_(torch.from_numpy(weight.T.copy()))
            linear.bias.copy_(torch.from_numpy(bias))
    return torch.nn.Sequential(first, torch.nn.ReLU(), second, torch.nn.Sigmoid())
