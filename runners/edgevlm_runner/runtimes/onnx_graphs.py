"""Named ONNX graphs on the CPU, each a function of arrays by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Dict, List, Mapping, Optional, Sequence, TypeVar, Union

import numpy as np

from edgevlm_runner.contract import Model
from edgevlm_runner.errors import ExecutionError
from edgevlm_runner.runtimes import graph_path
from edgevlm_runner.runtimes.onnxruntime import exact_kernels, import_onnxruntime, open_session

Self = TypeVar("Self", bound="OnnxGraphs")
Shape = List[Union[str, int]]
"""Sizes, and names of those that may change."""

_NUMPY_TYPES = {
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
    "tensor(int32)": np.int32,
    "tensor(int64)": np.int64,
}


class OnnxGraphs:
    """One session per component; a context manager.

    Raises RuntimeUnavailable when the package is missing, ExecutionError when a graph is missing or damaged.
    """

    def __init__(
        self,
        root: Path,
        spec: Model,
        components: Sequence[str],
        threads: int = 1,
        optimize: bool = True,
        settings: Optional[Mapping[str, str]] = None,
    ) -> None:
        """Load the graphs that `spec.graphs` names below `root`.

        optimize: False switches every graph optimisation off, for comparing with the source model.
        settings: session options; by default those under which products of bytes are exact.
        """
        self._ort = import_onnxruntime()
        options = exact_kernels() if settings is None else settings
        self._paths = {component: graph_path(root, spec, component) for component in components}
        self._sessions: Dict[str, Any] = {
            component: open_session(self._ort, path, threads, optimize, options)
            for component, path in self._paths.items()
        }

    def versions(self) -> Dict[str, str]:
        return {"onnxruntime": str(self._ort.__version__), "numpy": np.__version__}

    def close(self) -> None:
        self._sessions = {}

    def __enter__(self: Self) -> Self:
        return self

    def __exit__(self, *error: Any) -> None:
        self.close()

    def _run(self, component: str, inputs: Mapping[str, np.ndarray]) -> Dict[str, np.ndarray]:
        """Every output of the graph by its name; inputs are converted to its types."""
        session = self._sessions[component]
        types = {one.name: _NUMPY_TYPES.get(one.type) for one in session.get_inputs()}
        given = {name: np.ascontiguousarray(array, types[name]) for name, array in inputs.items()}
        try:
            outputs: List[np.ndarray] = session.run(None, given)
        except Exception as error:  # onnxruntime raises a dozen unrelated classes
            shapes = ", ".join(f"{name} {list(array.shape)}" for name, array in inputs.items())
            raise ExecutionError(f"ONNX Runtime failed in the {component} on {shapes}: {error}") from error
        return {one.name: array for one, array in zip(session.get_outputs(), outputs)}

    def _check_signature(
        self, component: str, inputs: Mapping[str, Shape], outputs: Mapping[str, Shape]
    ) -> None:
        """Raises ExecutionError for other inputs, or outputs that are missing or of other shapes."""
        session = self._sessions[component]
        takes = {one.name: one.shape for one in session.get_inputs()}
        gives = {one.name: one.shape for one in session.get_outputs() if one.name in outputs}
        for found, wanted in ((takes, inputs), (gives, outputs)):
            wrong = [one for one in sorted({*found, *wanted}) if found.get(one) != wanted.get(one)]
            if wrong:
                raise ExecutionError(
                    f"{self._paths[component]}: {wrong[0]} is {found.get(wrong[0])}, the manifest asks for "
                    f"{wanted.get(wrong[0])}. Graph and manifest are of different models."
                )
