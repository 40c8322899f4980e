"""A dual encoder on ONNX Runtime: two graphs on the CPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Dict, List, Mapping, Optional, TypeVar, Union

import numpy as np

from edgevlm_runner.contract import DualEncoderSpec
from edgevlm_runner.errors import ExecutionError
from edgevlm_runner.runtimes import graph_path
from edgevlm_runner.runtimes.onnxruntime import exact_kernels, import_onnxruntime, open_session

Self = TypeVar("Self", bound="OnnxEncoders")

COMPONENTS = ("vision_encoder", "text_encoder")
_NUMPY_TYPES = {
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
    "tensor(int32)": np.int32,
    "tensor(int64)": np.int64,
}


class OnnxEncoders:
    """`edgevlm_runner.runtimes.Encoders` on ONNX Runtime's CPU provider.

    Raises RuntimeUnavailable when the package is missing, ExecutionError when a graph is missing, damaged
    or of another shape than `spec` says.
    """

    def __init__(
        self,
        root: Path,
        spec: DualEncoderSpec,
        threads: int = 1,
        optimize: bool = True,
        settings: Optional[Mapping[str, str]] = None,
    ) -> None:
        """Load the graphs that `spec.graphs` names below `root`.

        optimize: False switches every graph optimisation off, for comparing with the source model.
        settings: session options; by default those under which products of bytes are exact.
        """
        self._spec = spec
        self._ort = import_onnxruntime()
        options = exact_kernels() if settings is None else settings
        self._sessions: Dict[str, Any] = {
            component: open_session(self._ort, graph_path(root, spec, component), threads, optimize, options)
            for component in COMPONENTS
        }
        self._check_signatures(root)

    def encode_image(self, pixel_values: np.ndarray) -> np.ndarray:
        """float32 [N, 3, S, S] → float32 [N, D], one picture after the other: a CPU gains nothing from
        batches."""
        return self._encode("vision_encoder", "pixel_values", pixel_values)

    def encode_text(self, input_ids: np.ndarray) -> np.ndarray:
        """int64 [N, T] → float32 [N, D]."""
        return self._encode("text_encoder", "input_ids", input_ids)

    def versions(self) -> Dict[str, str]:
        return {"onnxruntime": str(self._ort.__version__), "numpy": np.__version__}

    def close(self) -> None:
        self._sessions = {}

    def __enter__(self: Self) -> Self:
        return self

    def __exit__(self, *error: Any) -> None:
        self.close()

    def _encode(self, component: str, name: str, rows: np.ndarray) -> np.ndarray:
        outputs = [self._run(component, {name: rows[at : at + 1]})[0] for at in range(len(rows))]
        if not outputs:
            return np.zeros((0, self._spec.projection_size), np.float32)
        return np.concatenate(outputs).astype(np.float32)

    def _run(self, component: str, inputs: Dict[str, np.ndarray]) -> List[np.ndarray]:
        """Every output of the graph; inputs are converted to its types."""
        session = self._sessions[component]
        types = {one.name: _NUMPY_TYPES.get(one.type) for one in session.get_inputs()}
        given = {name: np.ascontiguousarray(array, types[name]) for name, array in inputs.items()}
        try:
            outputs: List[np.ndarray] = session.run(None, given)
        except Exception as error:  # onnxruntime raises a dozen unrelated classes
            shapes = ", ".join(f"{name} {list(array.shape)}" for name, array in inputs.items())
            raise ExecutionError(f"ONNX Runtime failed in the {component} on {shapes}: {error}") from error
        return outputs

    def _check_signatures(self, root: Path) -> None:
        side, width = self._spec.image.side, self._spec.projection_size
        tokens: Union[str, int] = self._spec.text.length if self._spec.text.padded else "tokens"
        expected = {
            "vision_encoder": ({"pixel_values": ["pictures", 3, side, side]}, ["pictures", width]),
            "text_encoder": ({"input_ids": ["texts", tokens]}, ["texts", width]),
        }
        for component, (inputs, output) in expected.items():
            session = self._sessions[component]
            found = {one.name: one.shape for one in session.get_inputs()}, session.get_outputs()[0].shape
            if found != (inputs, output):
                raise ExecutionError(
                    f"{root / self._spec.graphs[component]}: takes {found[0]} and gives {found[1]}, the "
                    f"manifest asks for {inputs} and {output}. Graph and manifest are of different models."
                )
