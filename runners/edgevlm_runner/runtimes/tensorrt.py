"""TensorRT on the board that runs it: three engines, and a KV cache that never leaves device memory.

The likeliest token and its log-probability are found on the host, not on the GPU. The evidence needs the
sum over all V logits in double precision, the same for every runtime. Bringing them over costs V·4 bytes
(200 kB for 49,000 tokens) in memory that CPU and GPU of a Jetson share: microseconds, where a token takes
milliseconds.

Not run on hardware. What runs in the tests is all of this code against a stand-in for TensorRT and CUDA
that offers the names of one real release each and computes the same graphs with ONNX Runtime.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Dict, List, Mapping, Optional, Tuple, TypeVar

import numpy as np

from edgevlm_runner.contract import Model, ModelSpec, NativeSpec, sides
from edgevlm_runner.errors import ExecutionError
from edgevlm_runner.positions import Positions
from edgevlm_runner.runtimes import decoder_window, graph_path
from edgevlm_runner.runtimes import profiles as optimisation
from edgevlm_runner.runtimes.cuda import Cuda
from edgevlm_runner.runtimes.tensorrt_build import import_tensorrt, release_of
from edgevlm_runner.runtimes.tensorrt_decoder import Decoder
from edgevlm_runner.runtimes.tensorrt_engines import (
    Board,
    Plan,
    deserialize,
    find_or_build,
    open_runtime,
    typings,
)
from edgevlm_runner.runtimes.tensorrt_execution import Component, Engine

Self = TypeVar("Self", bound="TensorRt")

COMPONENTS = ("vision_encoder", "embedding", "decoder")


class TensorRt:
    """`edgevlm_runner.runtimes.Runtime` on TensorRT.

    Raises RuntimeUnavailable when `tensorrt` or `cuda-python` is missing, BundleError when the manifest has
    no profiles, ExecutionError when a graph is missing, cannot be built, or is of another shape than `spec`
    says.
    """

    def __init__(self, root: Path, spec: ModelSpec, cache: Path) -> None:
        """Build the engines of the graphs that `spec.graphs` names below `root`, or find them in `cache`."""
        self._trt = import_tensorrt()
        graphs = {component: graph_path(root, spec, component) for component in COMPONENTS}
        for component in COMPONENTS:
            optimisation.check(component, spec.profiles.get(component, ()))
        self._spec = spec
        self._cuda = Cuda()
        self._resident_before = _resident_bytes()
        self._taken = 0
        try:
            self._open(graphs, cache)
        except BaseException:
            self.close()
            raise

    def _open(self, graphs: Dict[str, Path], cache: Path) -> None:
        trt, cuda, spec = self._trt, self._cuda, self._spec
        opened = open_engines(trt, cuda, spec, graphs, cache)
        self._board, self._plans, self._runtime, engines = opened
        (height, wide), width, tokens = sides(spec.image), spec.embed_size, spec.prompt.tokens_per_tile
        vision, embedding = engines["vision_encoder"], engines["embedding"]
        many = 1 if isinstance(spec.image, NativeSpec) else -1
        vision.check({"pixel_values": (many, 3, height, wide), "image_features": (many, tokens, width)})
        embedding.check({"input_ids": (1, -1), "inputs_embeds": (1, -1, width)})
        scratch_bytes = max(engine.scratch_bytes for engine in engines.values())
        scratch = (cuda.allocate(scratch_bytes), scratch_bytes)
        self._vision = Component(vision, "pixel_values", "image_features", scratch)
        self._embedding = Component(embedding, "input_ids", "inputs_embeds", scratch)
        # Before 8.6 a profile serves one context at a time.
        self._decoder = Decoder(engines["decoder"], spec, scratch, release_of(trt) >= (8, 6))
        self._most_tiles = optimisation.largest(spec.profiles["vision_encoder"])["pixel_values"][0]
        self._most_ids = optimisation.largest(spec.profiles["embedding"])["input_ids"][1]
        self._max_context: Optional[int] = None
        self._tokens = 0
        self._positions = Positions(spec.position_rows)

    def encode_image(self, pixel_values: np.ndarray) -> np.ndarray:
        """float32 [tiles, 3, S, S] → float32 [tiles, tokens per tile, D], as many tiles at once as were
        built for."""
        features: List[np.ndarray] = [
            self._vision.run(pixel_values[first : first + count])
            for first, count in decoder_window.pieces(len(pixel_values), self._most_tiles)
        ]
        return np.concatenate(features) if features else np.zeros((0, 0, self._spec.embed_size), np.float32)

    def embed(self, input_ids: np.ndarray) -> np.ndarray:
        """int64 [1, T] → float32 [1, T, D]."""
        found = [
            self._embedding.run(input_ids[:, first : first + count])
            for first, count in decoder_window.pieces(input_ids.shape[1], self._most_ids)
        ]
        return np.concatenate(found, axis=1)

    def start(self, max_context: int) -> None:
        """Allocate the cache in device memory and capture the graphs of decoding."""
        if self._max_context != max_context:
            self._decoder.start(max_context)
            self._max_context = max_context
            own = _resident_bytes() - self._resident_before if self._cuda.shares_memory() else 0
            self._taken = self._cuda.taken() - max(0, own)
        self.reset()

    def reset(self) -> None:
        """Forget all tokens; what is left in the cache is masked."""
        self._tokens = 0
        self._positions.reset()

    def step(self, embeds: np.ndarray, positions: Optional[np.ndarray] = None) -> np.ndarray:
        """Append float32 [1, T, D] to the context → logits float32 [V] of its last token."""
        total = self._tokens + embeds.shape[1]
        if self._max_context is None or total > self._max_context:
            raise ExecutionError(
                f"{total} tokens do not fit the cache of {self._max_context}; call start() with more."
            )
        places = self._positions.take(embeds.shape[1], positions)
        for first, count in decoder_window.pieces(
            embeds.shape[1], self._decoder.most_tokens, self._spec.prefix
        ):
            some = slice(first, first + count)
            logits = self._decoder.append(embeds[:, some], self._tokens, places[..., some])
            self._tokens += count
        return logits

    def hidden(self) -> np.ndarray:
        """float32 [D] of the last step."""
        return self._decoder.hidden()

    def versions(self) -> Dict[str, str]:
        return {
            "tensorrt": self._board.tensorrt,
            "cuda": self._board.cuda,
            "cuda_driver": self._board.driver,
            "gpu": self._board.gpu,
            "typing": typings(self._plans),
            "decoding": self._decoder.note,
            "numpy": np.__version__,
        }

    def device_bytes(self) -> int:
        """What CUDA saw disappear between creation and `start`: weights, contexts, buffers, cache.

        Where CPU and GPU share their memory, this process's own growth is in that number and in its
        resident set; it is counted once. Other processes move the number too, so what is known for certain
        is its floor: what was allocated here, and the engines' files.
        """
        known = self._cuda.allocated + sum(plan.path.stat().st_size for plan in self._plans.values())
        return max(known, self._taken)

    def build_seconds(self) -> float:
        """What building engines took in this process; 0 when the cache had them all."""
        return sum(plan.build_seconds for plan in self._plans.values())

    def close(self) -> None:
        """Free the engines before the memory that they are bound to."""
        self._vision = self._embedding = self._decoder = self._runtime = None  # type: ignore[assignment]
        self._cuda.close()

    def __enter__(self: Self) -> Self:
        return self

    def __exit__(self, *error: Any) -> None:
        self.close()


def open_engines(
    trt: Any, cuda: Cuda, spec: Model, graphs: Mapping[str, Path], cache: Path
) -> Tuple[Board, Dict[str, Plan], Any, Dict[str, Engine]]:
    """(board, plans, TensorRT's runtime, engines) of the graphs, built or found in `cache`."""
    runtime_version, driver = cuda.versions()
    board = Board(str(trt.__version__), cuda.device_name(), runtime_version, driver)
    plans: Dict[str, Plan] = {}
    for component, graph in graphs.items():  # all builds come before any engine takes memory
        free = cuda.memory()[0]
        plans[component] = find_or_build(graph, spec.profiles[component], board, cache, free)
    runtime = open_runtime(trt)
    engines = {
        component: Engine(trt, cuda, deserialize(trt, runtime, plan), component, spec.profiles[component])
        for component, plan in plans.items()
    }
    return board, plans, runtime, engines


def _resident_bytes() -> int:
    """This process's resident set now; 0 where the system does not tell."""
    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    except (OSError, ValueError, IndexError):
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")
