"""An encoder–decoder on TensorRT: three engines; what the decoder attends to never leaves device memory.

The question's keys and values are written by the text encoder where the decoder reads them. The answer's
cache is two sets of buffers that change places at each step: one is read, the other written.

Not run on hardware, as `tensorrt` says.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, Dict, List, TypeVar

import numpy as np

from edgevlm_runner.contract import EncoderDecoderSpec
from edgevlm_runner.errors import ExecutionError
from edgevlm_runner.runtimes import graph_path
from edgevlm_runner.runtimes import profiles as optimisation
from edgevlm_runner.runtimes.cuda import Cuda
from edgevlm_runner.runtimes.onnxruntime_encoder_decoder import COMPONENTS, layer_names
from edgevlm_runner.runtimes.tensorrt import open_engines
from edgevlm_runner.runtimes.tensorrt_build import import_tensorrt
from edgevlm_runner.runtimes.tensorrt_engines import typings
from edgevlm_runner.runtimes.tensorrt_execution import Component, Engine, Shape

Self = TypeVar("Self", bound="TensorRtEncoderDecoder")


class TensorRtEncoderDecoder:
    """`edgevlm_runner.runtimes.EncoderDecoder` on TensorRT. Raises what `tensorrt.TensorRt` raises."""

    def __init__(self, root: Path, spec: EncoderDecoderSpec, cache: Path) -> None:
        """Build the engines of the graphs that `spec.graphs` names below `root`, or find them in `cache`."""
        trt = import_tensorrt()
        graphs = {component: graph_path(root, spec, component) for component in COMPONENTS}
        for component in COMPONENTS:
            optimisation.check(component, spec.profiles.get(component, ()))
        self._spec = spec
        self._tokens: int = spec.max_new_tokens
        """Of the answer so far; a full one takes no more."""
        self._cuda = Cuda()
        try:
            self._open(trt, graphs, cache)
        except BaseException:
            self.close()
            raise

    def _open(self, trt: Any, graphs: Dict[str, Path], cache: Path) -> None:
        spec, cuda = self._spec, self._cuda
        self._board, self._plans, self._runtime, engines = open_engines(trt, cuda, spec, graphs, cache)
        self._check(engines)
        vision, text, decoder = (engines[component] for component in COMPONENTS)
        scratch_bytes = max(engine.scratch_bytes for engine in engines.values())
        scratch = (cuda.allocate(scratch_bytes), scratch_bytes)
        self._vision = Component(vision, "pixel_values", "image_states", scratch)
        self._text, self._decoder = (engine.execution(0, *scratch) for engine in (text, decoder))
        largest = {**optimisation.largest(text.profiles), **optimisation.largest(decoder.profiles)}
        ids = optimisation.largest(text.profiles)["input_ids"]
        self._ids = text.buffer("input_ids", ids)
        self._states = text.buffer("image_states", largest["image_states"])
        self._question = text.buffer("question_states", (1, ids[1], spec.hidden_size))
        self._token, self._position = decoder.buffer("input_ids", (1, 1)), decoder.buffer("position", (1,))
        self._logits = decoder.buffer("logits", (1, spec.vocab_size))
        self._cross = {name: self._held(text, name, largest[name]) for name in self._names("cross")}
        self._caches: List[List[int]] = [
            [self._held(decoder, name, largest[name]) for name in self._names("past")] for _ in range(2)
        ]
        self._text.bind(
            {
                "input_ids": self._ids.address,
                "image_states": self._states.address,
                "question_states": self._question.address,
                **self._cross,
            }
        )
        self._decoder.bind(
            {
                "input_ids": self._token.address,
                "position": self._position.address,
                "logits": self._logits.address,
                **self._cross,
            }
        )
        self._bind_caches()

    def encode_image(self, pixel_values: np.ndarray) -> np.ndarray:
        """float32 [1, 3, S, S] → float32 [1, image tokens, D]."""
        return self._vision.run(pixel_values)

    def read_question(self, image_states: np.ndarray, input_ids: np.ndarray) -> np.ndarray:
        """Leaves keys and values of the question for the decoder. int64 [1, T] → float32 [1, T, D]."""
        spec, tokens = self._spec, input_ids.shape[1]
        shapes: Dict[str, Shape] = {"input_ids": (1, tokens), "image_states": image_states.shape}
        optimisation.covering("text_encoder", spec.profiles["text_encoder"], shapes)
        self._text.shape(shapes)
        self._ids.fill(input_ids)
        self._ids.upload(input_ids.size)
        self._states.fill(image_states)
        self._states.upload(image_states.size)
        self._text.enqueue()
        self._question.download(tokens * spec.hidden_size)
        cross = dict.fromkeys(self._names("cross"), (1, spec.heads, tokens, spec.head_dim))
        cache = dict.fromkeys(self._names("past"), (1, spec.heads, spec.max_new_tokens, spec.head_dim))
        self._decoder.shape({"input_ids": (1, 1), "position": (1,), **cross, **cache})
        # What the last answer left in the caches lies behind the position and is masked.
        self._tokens = 0
        self._cuda.synchronize()
        found = self._question.host[: tokens * spec.hidden_size]
        states: np.ndarray = found.astype(np.float32).reshape(1, tokens, -1)
        return states

    def step(self, token: int) -> np.ndarray:
        """Append one token to the answer → logits float32 [V] of the next."""
        if self._tokens >= self._spec.max_new_tokens:
            raise ExecutionError(
                f"An answer of {self._spec.max_new_tokens} tokens is full, or no question was read; "
                "call read_question() first."
            )
        for buffer, value in ((self._token, token), (self._position, self._tokens)):
            buffer.fill(np.array([value]))
            buffer.upload(1)
        self._decoder.enqueue()
        self._logits.download(self._spec.vocab_size)
        self._cuda.synchronize()
        self._caches.reverse()
        self._bind_caches()
        self._tokens += 1
        logits: np.ndarray = self._logits.host[: self._spec.vocab_size].astype(np.float32)
        return logits

    def versions(self) -> Dict[str, str]:
        return {
            "tensorrt": self._board.tensorrt,
            "cuda": self._board.cuda,
            "cuda_driver": self._board.driver,
            "gpu": self._board.gpu,
            "typing": typings(self._plans),
            "numpy": np.__version__,
        }

    def device_bytes(self) -> int:
        """What was allocated here, and the engines' files: the least that they take."""
        return self._cuda.allocated + sum(plan.path.stat().st_size for plan in self._plans.values())

    def build_seconds(self) -> float:
        """What building engines took in this process; 0 when the cache had them all."""
        return sum(plan.build_seconds for plan in self._plans.values())

    def close(self) -> None:
        """Free the engines before the memory that they are bound to."""
        self._vision = self._text = self._decoder = self._runtime = None  # type: ignore[assignment]
        self._cuda.close()

    def __enter__(self: Self) -> Self:
        return self

    def __exit__(self, *error: Any) -> None:
        self.close()

    def _names(self, prefix: str) -> List[str]:
        return layer_names(prefix, self._spec.layers)

    def _held(self, engine: Engine, name: str, shape: Shape) -> int:
        """Address of memory that no host reads or writes."""
        return self._cuda.allocate(math.prod(shape) * np.dtype(engine.types[name]).itemsize)

    def _bind_caches(self) -> None:
        read, written = self._caches
        self._decoder.bind(dict(zip(self._names("past"), read)))
        self._decoder.bind(dict(zip(self._names("present"), written)))

    def _check(self, engines: Dict[str, Engine]) -> None:
        spec = self._spec
        side, width = spec.image.side, spec.hidden_size
        states: Dict[str, Shape] = {"image_states": (1, spec.image_tokens, width)}
        cross: Dict[str, Shape] = dict.fromkeys(self._names("cross"), (1, spec.heads, -1, spec.head_dim))
        cache = (1, spec.heads, spec.max_new_tokens, spec.head_dim)
        caches = dict.fromkeys((*self._names("past"), *self._names("present")), cache)
        engines["vision_encoder"].check({"pixel_values": (1, 3, side, side), **states})
        engines["text_encoder"].check(
            {"input_ids": (1, -1), **states, "question_states": (1, -1, width), **cross}
        )
        engines["decoder"].check(
            {"input_ids": (1, 1), "position": (1,), "logits": (1, spec.vocab_size), **cross, **caches}
        )
        for name in cross:
            made, taken = (engines[one].types[name] for one in ("text_encoder", "decoder"))
            if made != taken:
                raise ExecutionError(
                    f"The text encoder gives {name} as {made}, the decoder takes {taken}; compile the bundle "
                    "again."
                )
