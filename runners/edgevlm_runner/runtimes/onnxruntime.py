"""ONNX Runtime on CPU: three sessions, and a KV cache that the decoder updates in place."""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import Any, Dict, List, Mapping, Optional, Tuple, Union

import numpy as np

from edgevlm_runner import native
from edgevlm_runner.contract import ModelSpec, NativeSpec, Pruning, kept_tokens
from edgevlm_runner.errors import ExecutionError, RuntimeUnavailable
from edgevlm_runner.positions import Positions
from edgevlm_runner.runtimes import graph_path

COMPONENTS = ("vision_encoder", "embedding", "decoder")


class OnnxRuntime:
    """`edgevlm_runner.runtimes.Runtime` on ONNX Runtime's CPU provider.

    Raises RuntimeUnavailable when the package is missing, ExecutionError when a graph is missing, damaged
    or of another shape than `spec` says.
    """

    def __init__(self, root: Path, spec: ModelSpec, threads: int = 1, optimize: bool = True) -> None:
        """Load the graphs that `spec.graphs` names below `root`.

        optimize: False switches every graph optimisation off, for comparing with the source model.
        """
        self._spec = spec
        self._ort = import_onnxruntime()
        paths = {component: graph_path(root, spec, component) for component in COMPONENTS}
        exact = exact_kernels()
        self._vision = open_session(self._ort, paths["vision_encoder"], threads, optimize, exact)
        self._embedding = open_session(self._ort, paths["embedding"], 1, optimize, exact)
        self._decoder = open_session(self._ort, paths["decoder"], threads, optimize, exact)
        self._cache: List[Any] = []
        self._tokens = self._kept = 0
        self._max_context = 0
        self._check_signatures(paths)

    def encode_image(self, pixel_values: np.ndarray) -> np.ndarray:
        """float32 [tiles, 3, S, S] → float32 [tiles, tokens per tile, D].

        Tile by tile: the peak memory does not grow with the picture, and a CPU gains nothing from batches.
        """
        features = [
            self._run(self._vision, native.vision_inputs(tile[None], self._spec)) for tile in pixel_values
        ]
        return np.concatenate(features) if features else np.zeros((0, 0, self._spec.embed_size), np.float32)

    def embed(self, input_ids: np.ndarray) -> np.ndarray:
        """int64 [1, T] → float32 [1, T, D]."""
        return self._run(self._embedding, {"input_ids": np.ascontiguousarray(input_ids, np.int64)})

    def start(self, max_context: int) -> None:
        """Allocate key and value per layer, float32 [1, kv heads, max_context, head dim], and bind them.

        The same buffer is input and output: GroupQueryAttention then appends to it instead of copying it.
        """
        spec, new = self._spec, self._ort.OrtValue
        shape = (1, spec.kv_heads, max_context, spec.head_dim)
        self._binding = self._decoder.io_binding()
        self._cache = [new.ortvalue_from_numpy(np.zeros(shape, np.float32)) for _ in range(2 * spec.layers)]
        for name, buffer in zip(self._cache_names(), self._cache):
            self._binding.bind_ortvalue_input(f"past_key_values.{name}", buffer)
            self._binding.bind_ortvalue_output(f"present.{name}", buffer)
        self._logits = new.ortvalue_from_numpy(np.zeros((1, spec.vocab_size), np.float32))
        self._binding.bind_ortvalue_output("logits", self._logits)
        if spec.hidden:
            self._hidden = new.ortvalue_from_numpy(np.zeros((1, spec.hidden_size), np.float32))
            self._binding.bind_ortvalue_output("hidden", self._hidden)
        self._mask = np.ones((1, max_context), np.int64)
        self._positions = Positions(spec.position_rows)
        self._max_context = max_context
        self.reset()

    def reset(self) -> None:
        """Forget all tokens; what is left in the buffers is behind the mask's length and never read."""
        self._tokens = self._kept = 0
        self._positions.reset()

    def read_prompt(self, embeds: np.ndarray, places: np.ndarray) -> np.ndarray:
        """As `step`, on a whole prompt; places: bool [1, T], where its image tokens are."""
        return self._step(embeds, places, None)

    def step(self, embeds: np.ndarray, positions: Optional[np.ndarray] = None) -> np.ndarray:
        """Append float32 [1, T, D] to the context → logits float32 [V] of its last token."""
        return self._step(embeds, np.zeros((1, embeds.shape[1]), bool), positions)

    def _step(self, embeds: np.ndarray, places: np.ndarray, positions: Optional[np.ndarray]) -> np.ndarray:
        total = self._tokens + embeds.shape[1]
        if total > self._max_context:
            raise ExecutionError(
                f"{total} tokens do not fit the cache of {self._max_context}; call start() with more."
            )
        inputs = {
            "inputs_embeds": np.ascontiguousarray(embeds, np.float32),
            "attention_mask": self._mask[:, :total],
            "position_ids": self._positions.take(embeds.shape[1], positions),
        }
        kept = total
        if self._spec.pruning is not None:
            dropped = pruned_inputs(self._spec.pruning, places, self._kept)
            inputs.update(dropped)
            kept = dropped["kept_mask"].shape[1]
        try:
            for name, array in inputs.items():
                self._binding.bind_cpu_input(name, array)
            self._decoder.run_with_iobinding(self._binding)
        except Exception as error:  # onnxruntime raises a dozen unrelated classes
            raise ExecutionError(f"ONNX Runtime failed while decoding: {error}") from error
        self._tokens, self._kept = total, kept
        logits: np.ndarray = self._logits.numpy()[0].copy()  # newer versions return a view of the buffer
        return logits

    def hidden(self) -> np.ndarray:
        """float32 [D] of the last step."""
        hidden: np.ndarray = self._hidden.numpy()[0].copy()
        return hidden

    def versions(self) -> Dict[str, str]:
        return {"onnxruntime": str(self._ort.__version__), "numpy": np.__version__}

    def close(self) -> None:
        self._cache = []
        self._hidden = None
        self._binding = self._logits = self._vision = self._embedding = self._decoder = None

    def __enter__(self) -> OnnxRuntime:
        return self

    def __exit__(self, *error: Any) -> None:
        self.close()

    def _run(self, session: Any, inputs: Dict[str, np.ndarray]) -> np.ndarray:
        try:
            output: np.ndarray = session.run(None, inputs)[0]
        except Exception as error:  # onnxruntime raises a dozen unrelated classes
            shapes = ", ".join(f"{name} {list(array.shape)}" for name, array in inputs.items())
            raise ExecutionError(f"ONNX Runtime failed on {shapes}: {error}") from error
        return output

    def _cache_names(self) -> List[str]:
        return [f"{layer}.{part}" for layer in range(self._spec.layers) for part in ("key", "value")]

    def _check_signatures(self, paths: Dict[str, Path]) -> None:
        spec = self._spec
        cache: List[Union[str, int]] = ["batch", spec.kv_heads, "past", spec.head_dim]
        decoder: Dict[str, List[Union[str, int]]] = {
            "inputs_embeds": ["batch", "tokens", spec.embed_size],
            "attention_mask": ["batch", "total"],
            "position_ids": [*([spec.position_rows] if spec.position_rows > 1 else []), "batch", "tokens"],
        }
        if spec.pruning is not None:
            decoder.update(
                image_tokens=["batch", "tokens"],
                kept_tokens=["batch", "kept_tokens"],
                kept_mask=["batch", "kept_total"],
            )
        decoder.update({f"past_key_values.{name}": cache for name in self._cache_names()})
        expected: Dict[str, Tuple[Any, Dict[str, List[Union[str, int]]]]] = {
            "vision_encoder": (self._vision, _vision_signature(spec)),
            "embedding": (self._embedding, {"input_ids": ["batch", "tokens"]}),
            "decoder": (self._decoder, decoder),
        }
        gives = {value.name for value in self._decoder.get_outputs()}
        if ("hidden" in gives) != spec.hidden:
            raise ExecutionError(
                f"{paths['decoder']}: gives {', '.join(sorted(gives)[:2])} …; the manifest says hidden = "
                f"{spec.hidden}. Graph and manifest are of different models."
            )
        for component, (session, inputs) in expected.items():
            found = {value.name: value.shape for value in session.get_inputs()}
            names = sorted(set(found) | set(inputs))
            wrong = [name for name in names if found.get(name) != inputs.get(name)]
            if wrong:
                raise ExecutionError(
                    f"{paths[component]}: input {wrong[0]} is {found.get(wrong[0])}, the manifest asks for "
                    f"{inputs.get(wrong[0])}. Graph and manifest are of different models."
                )


def _vision_signature(spec: ModelSpec) -> Dict[str, List[Union[str, int]]]:
    """Input → shape; a name stands for a size that may change."""
    if not isinstance(spec.image, NativeSpec):
        return {"pixel_values": ["tiles", 3, spec.image.tile_size, spec.image.tile_size]}
    if spec.image.size is not None:
        return {"pixel_values": [1, 3, *spec.image.size]}
    return {name: list(shape) for name, shape in native.signature(spec.image).items()}


def pruned_inputs(pruning: Pruning, places: np.ndarray, kept: int) -> Dict[str, np.ndarray]:
    """What a decoder that drops image tokens takes besides the others.

    places: bool [1, T], where this step's image tokens are; kept: tokens that its later layers hold already.

    image_tokens  int64 [1, T], 1 for an image token
    kept_tokens   int64 [1, N]: only its length is read, the number of this step's tokens that go on
    kept_mask     int64 [1, kept + N]: ones, as `attention_mask` for the later layers
    """
    images = int(places.sum())
    going_on = places.shape[1] - images + kept_tokens(images, pruning.keep)
    return {
        "image_tokens": np.ascontiguousarray(places, np.int64),
        "kept_tokens": np.ones((1, going_on), np.int64),
        "kept_mask": np.ones((1, kept + going_on), np.int64),
    }


def import_onnxruntime() -> Any:
    # From 1.29 on it reports its use over the network unless told not to; a device must not.
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    try:
        import onnxruntime
    except ImportError as error:
        raise RuntimeUnavailable(
            f"onnxruntime cannot be imported ({error}). Install it: pip install 'onnxruntime>=1.23'."
        ) from error
    return onnxruntime


def open_session(ort: Any, path: Path, threads: int, optimize: bool, settings: Mapping[str, str]) -> Any:
    """The graph at `path` on the CPU; `settings` are ONNX Runtime's session options by their keys.

    Raises ExecutionError when it refuses the graph.
    """
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    # Idle threads of one session must not take the cores that the next session computes on.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    for key, value in settings.items():
        options.add_session_config_entry(key, value)
    if not optimize:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    try:
        return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime raises a dozen unrelated classes
        raise ExecutionError(f"{path}: ONNX Runtime {ort.__version__} refuses this graph: {error}") from error


def exact_kernels() -> Dict[str, str]:
    """Settings under which products of bytes are exact on this machine."""
    return {} if _multiplies_bytes_exactly() else {"session.x64quantprecision": "1"}


def _multiplies_bytes_exactly() -> bool:
    """Whether products of uint8 and int8 cannot saturate: ARM, or x86 with VNNI.

    Older AVX2 and AVX-512 do; ONNX Runtime then has to be told to take exact kernels, which are slower.
    """
    if platform.machine() not in ("x86_64", "AMD64"):
        return True
    try:
        flags = Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace")
    except OSError:
        return False
    return "avx512_vnni" in flags or "avx_vnni" in flags
