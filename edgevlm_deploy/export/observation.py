"""A runtime for verification: the exact graphs without optimisation, every intermediate of interest kept.

It is a plain second implementation of `edgevlm_runner.runtimes.Runtime`: the cache grows by copying, so
that it also checks the runner's in-place cache.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from edgevlm_runner import native
from edgevlm_runner.contract import ModelSpec
from edgevlm_runner.positions import Positions
from edgevlm_runner.runtimes.onnxruntime import pruned_inputs
from numpy.typing import NDArray

from edgevlm_deploy.export import graph, onnx
from edgevlm_deploy.export.passes import matmul_nbits
from edgevlm_deploy.export.passes.matmul_integer import UINT8_SHIFT

Floats = NDArray[np.float32]


class ObservedRuntime:
    """Keeps what one question computed, until `clear`.

    features   float32 [tiles, tokens per tile, D] of the last picture
    logits     float32 [V] per step
    states     float32 [D] per step, the hidden states behind the logits, where the graphs give them
    quantized  module with a static activation → int8 inputs, [tiles, …, K] or [1, tokens, K]
    """

    def __init__(self, graphs: Mapping[str, Path], spec: ModelSpec, directory: Path) -> None:
        """`graphs`: component → file, computing exactly (`write_exact`); `directory` takes copies."""
        self._spec = spec
        self._sessions: dict[str, Any] = {}
        self._observed: dict[str, dict[str, str]] = {}
        for component, path in graphs.items():
            model = graph.load(path)
            self._observed[component] = expose_quantized_inputs(model)
            exposed = directory / f"observed_{path.name}"
            graph.save(model, exposed)
            self._sessions[component] = open_exactly(exposed)
        self.clear()

    def clear(self) -> None:
        self.features: Floats | None = None
        self.logits: list[Floats] = []
        self.states: list[Floats] = []
        self._pieces: dict[str, list[NDArray[np.int8]]] = defaultdict(list)
        self._axis: dict[str, int] = {}

    @property
    def quantized(self) -> dict[str, NDArray[np.int8]]:
        return {module: np.concatenate(all_, self._axis[module]) for module, all_ in self._pieces.items()}

    def encode_image(self, pixel_values: Floats) -> Floats:
        tiles = [native.vision_inputs(tile[None], self._spec) for tile in pixel_values]
        features = [self._run("vision_encoder", tile, axis=0) for tile in tiles]
        self.features = np.concatenate([outputs["image_features"] for outputs in features])
        return self.features

    def embed(self, input_ids: NDArray[np.int64]) -> Floats:
        embeds: Floats = self._run("embedding", {"input_ids": input_ids}, axis=1)["inputs_embeds"]
        return embeds

    def start(self, max_context: int) -> None:
        self.reset()

    def reset(self) -> None:
        spec = self._spec
        past, _ = onnx.cache_names(spec.layers)
        self._past = {name: np.zeros((1, spec.kv_heads, 0, spec.head_dim), np.float32) for name in past}
        self._tokens = self._kept = 0
        self._positions = Positions(spec.position_rows)

    def read_prompt(self, embeds: Floats, places: NDArray[np.bool_]) -> Floats:
        return self._step(embeds, places, None)

    def step(self, embeds: Floats, positions: NDArray[np.int64] | None = None) -> Floats:
        return self._step(embeds, np.zeros((1, embeds.shape[1]), np.bool_), positions)

    def _step(self, embeds: Floats, places: NDArray[np.bool_], positions: NDArray[np.int64] | None) -> Floats:
        total = self._tokens + embeds.shape[1]
        inputs = {
            "inputs_embeds": embeds,
            "attention_mask": np.ones((1, total), np.int64),
            "position_ids": self._positions.take(embeds.shape[1], positions),
        }
        if self._spec.pruning is not None:
            inputs |= pruned_inputs(self._spec.pruning, places, self._kept)
            self._kept = inputs["kept_mask"].shape[1]
        outputs = self._run("decoder", {**inputs, **self._past}, axis=1)
        past, present = onnx.cache_names(self._spec.layers)
        self._past = {old: outputs[new] for old, new in zip(past, present, strict=True)}
        self._tokens = total
        self.logits.append(outputs["logits"][0])
        if self._spec.hidden:
            self.states.append(outputs["hidden"][0])
        return self.logits[-1]

    def hidden(self) -> Floats:
        return self.states[-1]

    def versions(self) -> dict[str, str]:
        return {}

    def close(self) -> None:
        self._sessions = {}

    def __enter__(self) -> ObservedRuntime:
        return self

    def __exit__(self, *error: Any) -> None:
        self.close()

    def _run(self, component: str, inputs: Mapping[str, Any], axis: int) -> dict[str, Any]:
        session = self._sessions[component]
        names = [value.name for value in session.get_outputs()]
        outputs = dict(zip(names, session.run(names, dict(inputs)), strict=True))
        for module, name in self._observed[component].items():
            signed = (outputs[name].astype(np.int16) - UINT8_SHIFT).astype(np.int8)
            self._pieces[module].append(signed)
            self._axis[module] = axis
        return outputs


def write_exact(path: Path, directory: Path) -> Path:
    """The graph at `path` with every MatMulNBits computing in float32; `path` itself when it has none."""
    model = graph.load(path)
    if not matmul_nbits.set_accuracy_level(model, matmul_nbits.EXACT):
        return path
    exact = directory / path.name
    graph.save(model, exact)
    return exact


def expose_quantized_inputs(model: ir.Model) -> dict[str, str]:
    """Make the quantised input of every int8 product a graph output; module → output name."""
    exposed = {}
    for node in model.graph:
        module = graph.module_of(node)
        if node.op_type == "MatMulIntegerToFloat" and module is not None:
            value = node.inputs[0]
            if value not in model.graph.outputs:
                model.graph.outputs.append(value)
            exposed[module] = value.name
    return exposed


def open_exactly(path: Path) -> Any:
    """A session without optimisation, whose products of bytes are exact."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.add_session_config_entry("session.x64quantprecision", "1")
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
