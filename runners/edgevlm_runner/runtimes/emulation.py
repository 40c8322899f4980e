"""TensorRT's graphs executed by ONNX Runtime on a CPU: the same nodes and integers, no TensorRT.

For machines without the target's GPU. It says how the compiled model answers, up to TensorRT's own
arithmetic; its times and its memory say nothing about a device. Where the CPU has no kernel for fp16, ONNX
Runtime computes a node in fp32 and rounds its result to fp16.

The decoder's two forms are those of the graphs (`decoder_window`): with `write_index` the graph updates the
cache, otherwise the new rows come out and are put behind the old ones here.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Dict, List, Optional, TypeVar

import numpy as np

from edgevlm_runner.contract import ModelSpec
from edgevlm_runner.errors import ExecutionError
from edgevlm_runner.positions import Positions
from edgevlm_runner.runtimes import decoder_window, graph_path, profiles
from edgevlm_runner.runtimes.onnxruntime import import_onnxruntime, open_session

Self = TypeVar("Self", bound="EmulatedTensorRt")

COMPONENTS = ("vision_encoder", "embedding", "decoder")
SETTINGS = {
    # int4 products stay products of the dequantised weights, as TensorRT computes them.
    "session.qdq_matmulnbits_accuracy_level": "1",
    "session.x64quantprecision": "1",
}
_NUMPY_TYPES = {
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
    "tensor(int32)": np.int32,
    "tensor(int64)": np.int64,
}


class EmulatedTensorRt:
    """`edgevlm_runner.runtimes.Runtime` on the graphs of a TensorRT bundle.

    Raises RuntimeUnavailable when onnxruntime is missing, ExecutionError when a graph is missing, damaged
    or of another shape than `spec` says.
    """

    def __init__(self, root: Path, spec: ModelSpec, threads: int = 1, optimize: bool = True) -> None:
        """Load the graphs that `spec.graphs` names below `root`.

        optimize: False switches every graph optimisation off, for comparing with the source model.
        """
        self._spec = spec
        self._ort = import_onnxruntime()
        self._sessions: Dict[str, Any] = {}
        self._types: Dict[str, Dict[str, Any]] = {}
        for component in COMPONENTS:
            session = open_session(self._ort, graph_path(root, spec, component), threads, optimize, SETTINGS)
            self._sessions[component] = session
            self._types[component] = {one.name: _NUMPY_TYPES.get(one.type) for one in session.get_inputs()}
        self._in_place = "write_index" in self._types["decoder"]
        self._check_decoder()
        self._longest = _longest_prefill(spec)
        self._cache: List[np.ndarray] = []
        self._hidden = np.zeros(0, np.float32)
        self._max_context = 0
        self._filled = 0
        self._positions = Positions(spec.position_rows)

    def encode_image(self, pixel_values: np.ndarray) -> np.ndarray:
        """float32 [tiles, 3, S, S] → float32 [tiles, tokens per tile, D], tile by tile."""
        if not len(pixel_values):
            return np.zeros((0, 0, self._spec.embed_size), np.float32)
        features = [
            self._run("vision_encoder", {"pixel_values": tile[None]})["image_features"]
            for tile in pixel_values
        ]
        return np.concatenate(features).astype(np.float32)

    def embed(self, input_ids: np.ndarray) -> np.ndarray:
        """int64 [1, T] → float32 [1, T, D]."""
        embeds: np.ndarray = self._run("embedding", {"input_ids": input_ids})["inputs_embeds"]
        return embeds.astype(np.float32)

    def start(self, max_context: int) -> None:
        """Allocate key and value per layer: [1, rows, kv heads, head dim], or [1, kv heads, rows, head
        dim].
        """
        spec = self._spec
        shape = (1, decoder_window.rows(max_context), spec.kv_heads, spec.head_dim)
        if self._in_place:
            if max_context > spec.max_context:
                raise ExecutionError(f"The decoder is made for {spec.max_context} tokens, not {max_context}.")
            shape = (1, spec.kv_heads, spec.max_context, spec.head_dim)
        dtype = self._types["decoder"]["past_key.0"]
        self._cache = [np.zeros(shape, dtype) for _ in range(2 * spec.layers)]
        self._max_context = max_context
        self.reset()

    def reset(self) -> None:
        """Forget all tokens; what is left in the cache is masked and never read."""
        self._filled = 0
        self._positions.reset()

    def step(self, embeds: np.ndarray, positions: Optional[np.ndarray] = None) -> np.ndarray:
        """Append float32 [1, T, D] to the context → logits float32 [V] of its last token."""
        total = self._filled + embeds.shape[1]
        if total > self._max_context:
            raise ExecutionError(
                f"{total} tokens do not fit the cache of {self._max_context}; call start() with more."
            )
        places = self._positions.take(embeds.shape[1], positions)
        logits = np.zeros(0, np.float32)
        for first, count in decoder_window.pieces(embeds.shape[1], self._longest, self._spec.prefix):
            logits = self._piece(embeds[:, first : first + count], places[..., first : first + count])
        return logits

    def _piece(self, embeds: np.ndarray, places: np.ndarray) -> np.ndarray:
        filled, count = self._filled, embeds.shape[1]
        names = [f"past_{part}.{layer}" for layer in range(self._spec.layers) for part in ("key", "value")]
        inputs = {"inputs_embeds": embeds, "position_ids": places}
        if self._in_place:
            inputs["mask"] = decoder_window.mask_static(
                filled, count, self._spec.max_context, self._spec.prefix
            )
            inputs["write_index"] = np.array([filled])
            outputs = self._run("decoder", {**inputs, **dict(zip(names, self._cache))})
            self._cache = [outputs[f"present_{name[len('past_') :]}"] for name in names]
        else:
            past = decoder_window.bucket(filled, self._max_context)
            inputs["mask"] = decoder_window.mask(filled, past, count, self._spec.prefix)
            held = [buffer[:, :past] for buffer in self._cache]
            outputs = self._run("decoder", {**inputs, **dict(zip(names, held))})
            for buffer, rows in zip(self._cache, outputs["new_keys_values"]):
                buffer[0, filled : filled + count] = rows
        self._filled += count
        if self._spec.hidden:
            self._hidden = outputs["hidden"][0].astype(np.float32)
        logits: np.ndarray = outputs["logits"][0]
        return logits.astype(np.float32)

    def hidden(self) -> np.ndarray:
        """float32 [D] of the last step."""
        return self._hidden

    def versions(self) -> Dict[str, str]:
        return {"onnxruntime": str(self._ort.__version__), "numpy": np.__version__}

    def close(self) -> None:
        self._sessions = {}
        self._cache = []

    def __enter__(self: Self) -> Self:
        return self

    def __exit__(self, *error: Any) -> None:
        self.close()

    def _run(self, component: str, inputs: Dict[str, np.ndarray]) -> Dict[str, np.ndarray]:
        """Every output by name; inputs are converted to the graph's types."""
        session, types = self._sessions[component], self._types[component]
        names = [one.name for one in session.get_outputs()]
        given = {name: np.ascontiguousarray(array, types[name]) for name, array in inputs.items()}
        try:
            return dict(zip(names, session.run(names, given)))
        except Exception as error:  # onnxruntime raises a dozen unrelated classes
            shapes = ", ".join(f"{name} {list(array.shape)}" for name, array in inputs.items())
            raise ExecutionError(f"ONNX Runtime failed in the {component} on {shapes}: {error}") from error

    def _check_decoder(self) -> None:
        shapes = {one.name: one.shape for one in self._sessions["decoder"].get_inputs()}
        spec = self._spec
        held = ["past", spec.kv_heads, spec.head_dim]
        if self._in_place:
            held = [spec.kv_heads, spec.max_context, spec.head_dim]
        expected = {
            "inputs_embeds": [1, "tokens", spec.embed_size],
            f"past_value.{spec.layers - 1}": [1, *held],
        }
        for name, shape in expected.items():
            if shapes.get(name) != shape:
                raise ExecutionError(
                    f"The decoder's input {name} is {shapes.get(name)}, the manifest asks for {shape}. "
                    "Graph and manifest are of different models."
                )


def _longest_prefill(spec: ModelSpec) -> int:
    """Tokens that the decoder's optimisation profiles take at once."""
    found = spec.profiles.get("decoder", ())
    profiles.check("decoder", found)
    return profiles.largest(found)["inputs_embeds"][1]
