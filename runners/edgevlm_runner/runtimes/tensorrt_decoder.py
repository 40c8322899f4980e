"""The decoder on a GPU: the KV cache stays in device memory and is never copied whole.

Prefill has a context of its own. Decoding has one for each bucket of past, because a captured CUDA graph
belongs to one shape: uploads, kernels and the download of the logits are then launched by a single call.
What cannot be captured is enqueued kernel by kernel, and the evidence says so.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Dict, List, Optional, Tuple

import numpy as np

from edgevlm_runner.contract import ModelSpec
from edgevlm_runner.errors import ExecutionError
from edgevlm_runner.positions import Positions
from edgevlm_runner.runtimes import decoder_window as window
from edgevlm_runner.runtimes import profiles as optimisation
from edgevlm_runner.runtimes.tensorrt_execution import Buffer, Engine, Execution, Shape

STAGED = ("inputs_embeds", "position_ids", "mask", "write_index")
"""Inputs that come from the host at every step."""

ALIGNMENT = 256
"""Bytes at whose multiples TensorRT wants every tensor to begin."""


class AppendCache:
    """Cache [2·layers, rows, kv heads, head dim]: its first rows are bound, new ones copied behind.

    Zeroed at allocation: rows that hold no token yet are masked, but NaN from old memory would pass any mask.
    """

    def __init__(self, engine: Engine, spec: ModelSpec, max_context: int) -> None:
        self._engine, self._max_context, self._whole = engine, max_context, spec.prefix
        self._rows = window.rows(max_context)
        self._row_shape = (spec.kv_heads, spec.head_dim)
        dtype = np.dtype(engine.types["new_keys_values"])
        self._row_bytes = spec.kv_heads * spec.head_dim * dtype.itemsize
        self._parts = 2 * spec.layers
        self._names = [f"past_{part}.{layer}" for layer in range(spec.layers) for part in ("key", "value")]
        self._pitch = -(-self._rows * self._row_bytes // ALIGNMENT) * ALIGNMENT
        """Bytes from one key or value to the next."""
        self._block = engine.cuda.allocate(self._parts * self._pitch)
        most = optimisation.largest(engine.profiles)["inputs_embeds"][1]
        self._new = engine.cuda.allocate(self._parts * most * self._row_bytes)

    def past(self, filled: int) -> int:
        return window.bucket(filled, self._max_context)

    def pasts(self) -> List[int]:
        return window.buckets(self._max_context)

    def addresses(self) -> Dict[str, int]:
        found = {name: self._block + number * self._pitch for number, name in enumerate(self._names)}
        return {**found, "new_keys_values": self._new}

    def shapes(self, past: int, tokens: int) -> Dict[str, Shape]:
        shapes: Dict[str, Shape] = dict.fromkeys(self._names, (1, past, *self._row_shape))
        return {**shapes, "mask": (1, 1, tokens, past + tokens)}

    def staged(self, filled: int, past: int, tokens: int) -> Dict[str, np.ndarray]:
        return {"mask": window.mask(filled, past, tokens, self._whole)}

    def keep(self, filled: int, tokens: int) -> None:
        """Enqueue the copy of all layers' new rows to their place: one strided copy."""
        run = tokens * self._row_bytes
        self._engine.cuda.copy_rows(
            self._block + filled * self._row_bytes,
            self._pitch,
            self._new,
            run,
            run,
            self._parts,
        )


class UpdateCache:
    """Cache [kv heads, S, head dim] per key and value, which the graph itself updates in place.

    Raises ExecutionError when TensorRT compiled it otherwise: an output in its own memory would be lost.
    """

    def __init__(self, engine: Engine, spec: ModelSpec, max_context: int) -> None:
        self._length, self._whole = engine.shapes["past_key.0"][2], spec.prefix
        if max_context > self._length:
            raise ExecutionError(
                f"The decoder was made for a context of {self._length} tokens, {max_context} were asked for."
            )
        self._shape = (1, spec.kv_heads, self._length, spec.head_dim)
        size = spec.kv_heads * self._length * spec.head_dim * np.dtype(engine.types["past_key.0"]).itemsize
        self._addresses: Dict[str, int] = {}
        self._pasts: List[str] = []
        for layer in range(spec.layers):
            for part in ("key", "value"):
                past, present = f"past_{part}.{layer}", f"present_{part}.{layer}"
                if engine.aliased_input(present) != past:
                    raise ExecutionError(
                        f"TensorRT does not write {present} into {past}. "
                        "Compile the bundle for TensorRT before 10.15."
                    )
                self._addresses[past] = self._addresses[present] = engine.cuda.allocate(size)
                self._pasts.append(past)

    def past(self, filled: int) -> int:
        return self._length

    def pasts(self) -> List[int]:
        return [self._length]

    def addresses(self) -> Dict[str, int]:
        return self._addresses

    def shapes(self, past: int, tokens: int) -> Dict[str, Shape]:
        shapes: Dict[str, Shape] = dict.fromkeys(self._pasts, self._shape)
        return {**shapes, "mask": (1, 1, tokens, self._length), "write_index": (1,)}

    def staged(self, filled: int, past: int, tokens: int) -> Dict[str, np.ndarray]:
        return {
            "mask": window.mask_static(filled, tokens, self._length, self._whole),
            "write_index": np.array([filled], np.int64),
        }

    def keep(self, filled: int, tokens: int) -> None:
        """Nothing to do: the graph has written."""


@dataclasses.dataclass
class _Decoding:
    """One token on `past` rows; `graph` is None where it is enqueued kernel by kernel."""

    execution: Execution
    graph: Optional[Any] = None


class Decoder:
    """Appends tokens to a KV cache of `max_context` rows.

    Raises ExecutionError when the engine is of another shape than `spec` says, or when a profile lacks a
    shape that decoding up to `max_context` needs.
    """

    def __init__(
        self, engine: Engine, spec: ModelSpec, scratch: Tuple[int, int], many_contexts: bool
    ) -> None:
        self._engine, self._spec = engine, spec
        self._scratch, self._many_contexts = scratch, many_contexts
        self._updates = "write_index" in engine.inputs
        self._rows = (spec.position_rows,) if spec.position_rows > 1 else ()
        engine.check(_signature(spec, self._updates))
        largest = optimisation.largest(engine.profiles)
        self.most_tokens = largest["inputs_embeds"][1]
        self._buffers: Dict[str, Buffer] = {
            name: engine.buffer(name, largest[name]) for name in STAGED if name in engine.inputs
        }
        self._results = {"logits": spec.vocab_size, **({"hidden": spec.hidden_size} if spec.hidden else {})}
        """Outputs that come to the host at every step → values."""
        for name, count in self._results.items():
            self._buffers[name] = engine.buffer(name, (count,))
        self._prefill: Dict[int, Execution] = {}
        self._decoding: Dict[int, _Decoding] = {}
        self.note = ""
        """How single tokens are launched."""

    def start(self, max_context: int) -> None:
        """Allocate the cache, and capture one graph for each bucket of past."""
        kind = UpdateCache if self._updates else AppendCache
        self._cache = kind(self._engine, self._spec, max_context)
        self._prefill, self._decoding = {}, {}
        self.note = "CUDA graphs" if self._many_contexts else "enqueue (one context for each profile)"
        for past in self._cache.pasts():
            shapes = self._shapes(past, 1)
            number = optimisation.covering("decoder", self._engine.profiles, shapes)
            if self._many_contexts:
                decoding = _Decoding(self._execution(number))
                decoding.execution.shape(shapes)
                self._capture(decoding, past)
                self._decoding[past] = decoding

    def append(self, embeds: np.ndarray, filled: int, places: np.ndarray) -> np.ndarray:
        """float32 [1, T, D] behind `filled` tokens → logits float32 [V] of the last; T ≤ `most_tokens`.

        places: int64 [1, T] or [3, 1, T], where the tokens stand (`edgevlm_runner.positions`).
        """
        tokens = embeds.shape[1]
        past = self._cache.past(filled)
        decoding = self._decoding.get(past) if tokens == 1 else None
        shaped = self._shaped(past, tokens) if decoding is None else decoding.execution
        self._stage(embeds, filled, past, places)
        if decoding is not None and decoding.graph is not None:
            self._engine.cuda.launch(decoding.graph)
        else:
            self._run(shaped, past, tokens)
        self._cache.keep(filled, tokens)
        self._engine.cuda.synchronize()
        logits: np.ndarray = self._buffers["logits"].host.astype(np.float32)
        return logits

    def hidden(self) -> np.ndarray:
        """float32 [D] of the last token appended."""
        hidden: np.ndarray = self._buffers["hidden"].host.astype(np.float32)
        return hidden

    def _shapes(self, past: int, tokens: int) -> Dict[str, Shape]:
        shapes: Dict[str, Shape] = {
            "inputs_embeds": (1, tokens, self._spec.embed_size),
            "position_ids": (*self._rows, 1, tokens),
        }
        return {**shapes, **self._cache.shapes(past, tokens)}

    def _stage(self, embeds: np.ndarray, filled: int, past: int, places: np.ndarray) -> None:
        tokens = embeds.shape[1]
        self._buffers["inputs_embeds"].fill(embeds)
        self._buffers["position_ids"].fill(places.astype(np.int32))
        for name, array in self._cache.staged(filled, past, tokens).items():
            self._buffers[name].fill(array)

    def _shaped(self, past: int, tokens: int) -> Execution:
        """For a step whose shape changes from call to call: prefill, and decoding without a context per
        bucket."""
        shapes = self._shapes(past, tokens)
        number = optimisation.covering("decoder", self._engine.profiles, shapes)
        if number not in self._prefill:
            self._prefill[number] = self._execution(number)
        self._prefill[number].shape(shapes)
        return self._prefill[number]

    def _run(self, execution: Execution, past: int, tokens: int) -> None:
        """Enqueue uploads, kernels and the download of the results."""
        shapes = self._shapes(past, tokens)
        for name in STAGED:
            if name in shapes:
                count = int(np.prod(shapes[name]))
                self._buffers[name].upload(count)
        execution.enqueue()
        for name, count in self._results.items():
            self._buffers[name].download(count)

    def _capture(self, decoding: _Decoding, past: int) -> None:
        """Warm up once, as TensorRT asks for after a change of shape, then record. Leaves the cache as it
        was: the update form writes row 0, which the first token overwrites."""
        first = Positions(self._spec.position_rows).take(1)
        self._stage(np.zeros((1, 1, self._spec.embed_size), np.float32), 0, past, first)
        self._run(decoding.execution, past, 1)
        self._engine.cuda.synchronize()
        if not self.note.startswith("CUDA graphs"):
            return
        try:
            decoding.graph = self._engine.cuda.capture(lambda: self._run(decoding.execution, past, 1))
        except ExecutionError as error:
            self.note = f"enqueue (no CUDA graph: {error})"

    def _execution(self, profile: int) -> Execution:
        execution = self._engine.execution(profile, *self._scratch)
        execution.bind({name: buffer.address for name, buffer in self._buffers.items()})
        execution.bind(self._cache.addresses())
        return execution


def _signature(spec: ModelSpec, updates: bool) -> Dict[str, Shape]:
    """Names and shapes of everything that goes in and out; −1 varies."""
    row = (spec.kv_heads, spec.head_dim)
    shapes: Dict[str, Shape] = {
        "inputs_embeds": (1, -1, spec.embed_size),
        "position_ids": (*([spec.position_rows] if spec.position_rows > 1 else []), 1, -1),
        "mask": (1, 1, -1, -1),
        "logits": (1, spec.vocab_size),
        **({"hidden": (1, spec.hidden_size)} if spec.hidden else {}),
    }
    cache: Shape = (1, -1, *row)
    if updates:
        cache = (1, spec.kv_heads, -1, spec.head_dim)
        shapes["write_index"] = (1,)
    else:
        shapes["new_keys_values"] = (2 * spec.layers, -1, *row)
    for layer in range(spec.layers):
        for part in ("key", "value"):
            shapes[f"past_{part}.{layer}"] = cache
            if updates:
                shapes[f"present_{part}.{layer}"] = cache
    return shapes
