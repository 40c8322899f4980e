"""What executes the graphs: one Protocol, one module per runtime."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Dict, Optional, Protocol, Union, runtime_checkable

import numpy as np

from edgevlm_runner.bundle import default_cache
from edgevlm_runner.contract import Answering, DualEncoderSpec, EncoderDecoderSpec, Model
from edgevlm_runner.errors import BundleError, ExecutionError


class Runtime(Protocol):
    """A loaded model that answers one question at a time. A context manager: leaving it frees the graphs."""

    def encode_image(self, pixel_values: np.ndarray) -> np.ndarray:
        """float32 [tiles, 3, S, S] → float32 [tiles, tokens per tile, D]; of a picture at its own resolution
        [1, 3, H, W] → [1, tokens, D].
        """

    def embed(self, input_ids: np.ndarray) -> np.ndarray:
        """int64 [1, T] → float32 [1, T, D]."""

    def start(self, max_context: int) -> None:
        """Allocate an empty KV cache of `max_context` tokens."""

    def reset(self) -> None:
        """Forget all tokens; the memory is kept."""

    def step(self, embeds: np.ndarray, positions: Optional[np.ndarray] = None) -> np.ndarray:
        """Append float32 [1, T, D] to the context → logits float32 [V] of its last token.

        Prefill (T > 1) and decoding (T = 1) are the same call. positions: int64 [3, 1, T] of a model with
        M-RoPE; None: one after the other, behind the largest so far.
        """

    def hidden(self) -> np.ndarray:
        """float32 [D]: the hidden state, after the final norm, that the last step's logits were made of.

        Only of graphs with `ModelSpec.hidden`.
        """

    def versions(self) -> Dict[str, str]:
        """Names and versions of the software that computes, for the evidence."""

    def close(self) -> None:
        """Free the graphs and the cache."""

    def __enter__(self) -> Runtime: ...

    def __exit__(self, *error: Any) -> None: ...


class EncoderDecoder(Protocol):
    """A loaded encoder–decoder that answers one question at a time. A context manager, as `Runtime`."""

    def encode_image(self, pixel_values: np.ndarray) -> np.ndarray:
        """float32 [1, 3, S, S] → float32 [1, image tokens, D]."""

    def read_question(self, image_states: np.ndarray, input_ids: np.ndarray) -> np.ndarray:
        """What the answer will attend to; forgets the answer before. int64 [1, T] → float32 [1, T, D]."""

    def step(self, token: int) -> np.ndarray:
        """Append one token to the answer → logits float32 [V] of the next."""

    def versions(self) -> Dict[str, str]:
        """Names and versions of the software that computes, for the evidence."""

    def close(self) -> None:
        """Free the graphs."""

    def __enter__(self) -> EncoderDecoder: ...

    def __exit__(self, *error: Any) -> None: ...


class Encoders(Protocol):
    """A loaded dual encoder. A context manager: leaving it frees the graphs."""

    def encode_image(self, pixel_values: np.ndarray) -> np.ndarray:
        """float32 [N, 3, S, S] → float32 [N, D]."""

    def encode_text(self, input_ids: np.ndarray) -> np.ndarray:
        """int64 [N, T] → float32 [N, D]."""

    def versions(self) -> Dict[str, str]:
        """Names and versions of the software that computes, for the evidence."""

    def close(self) -> None:
        """Free the graphs."""

    def __enter__(self) -> Encoders: ...

    def __exit__(self, *error: Any) -> None: ...


@runtime_checkable
class PruningRuntime(Protocol):
    """A runtime whose decoder drops image tokens as `ModelSpec.pruning` says."""

    def read_prompt(self, embeds: np.ndarray, places: np.ndarray) -> np.ndarray:
        """As `step`, on a whole prompt; places: bool [1, T], where its image tokens are."""


@runtime_checkable
class OnAccelerator(Protocol):
    """A runtime that compiles for an accelerator and holds memory on it."""

    def device_bytes(self) -> int:
        """Memory held there since `start`, which the process's resident set does not count."""

    def build_seconds(self) -> float:
        """Spent on compiling before anything could be loaded; 0 when all was in a cache."""


def load(
    root: Path, spec: Answering, threads: int, accelerator: str = "cpu", emulate: bool = False
) -> Union[Runtime, EncoderDecoder]:
    """The runtime that `spec.runtime` names, with the graphs below `root` loaded and a cache allocated.

    accelerator: what the target computes on; only LiteRT has a choice.
    emulate: execute TensorRT's graphs by ONNX Runtime on a CPU; other runtimes execute anyway.
    Raises BundleError for a runtime that this version does not know, RuntimeUnavailable when its package
    is missing, ExecutionError when it refuses a graph.
    """
    if isinstance(spec, EncoderDecoderSpec):
        return _load_encoder_decoder(root, spec, threads, accelerator, emulate)
    runtime: Runtime
    if spec.runtime == "onnxruntime":
        from edgevlm_runner.runtimes.onnxruntime import OnnxRuntime

        runtime = OnnxRuntime(root, spec, threads)
    elif spec.runtime == "litert":
        from edgevlm_runner.runtimes.litert import LiteRt

        runtime = LiteRt(root, spec, threads, accelerator, packed_weights=default_cache() / "xnnpack")
    elif spec.runtime == "tensorrt" and emulate:
        from edgevlm_runner.runtimes.emulation import EmulatedTensorRt

        runtime = EmulatedTensorRt(root, spec, threads)
    elif spec.runtime == "tensorrt":
        from edgevlm_runner.runtimes.tensorrt import TensorRt

        runtime = TensorRt(root, spec, default_cache() / "tensorrt")
    else:
        raise BundleError(_unknown(spec))
    runtime.start(spec.max_context)
    return runtime


def _load_encoder_decoder(
    root: Path, spec: EncoderDecoderSpec, threads: int, accelerator: str, emulate: bool
) -> EncoderDecoder:
    if spec.runtime == "onnxruntime":
        from edgevlm_runner.runtimes.onnxruntime_encoder_decoder import OnnxEncoderDecoder

        return OnnxEncoderDecoder(root, spec, threads)
    if spec.runtime == "litert":
        from edgevlm_runner.runtimes.litert_encoder_decoder import LiteRtEncoderDecoder

        kept = default_cache() / "xnnpack"
        return LiteRtEncoderDecoder(root, spec, threads, accelerator, packed_weights=kept)
    if spec.runtime == "tensorrt" and emulate:
        from edgevlm_runner.runtimes.emulation import SETTINGS
        from edgevlm_runner.runtimes.onnxruntime_encoder_decoder import OnnxEncoderDecoder

        return OnnxEncoderDecoder(root, spec, threads, settings=SETTINGS)
    if spec.runtime == "tensorrt":
        from edgevlm_runner.runtimes.tensorrt_encoder_decoder import TensorRtEncoderDecoder

        return TensorRtEncoderDecoder(root, spec, default_cache() / "tensorrt")
    raise BundleError(_unknown(spec))


def load_encoders(
    root: Path, spec: DualEncoderSpec, threads: int, accelerator: str = "cpu", emulate: bool = False
) -> Encoders:
    """The same for a dual encoder."""
    if spec.runtime == "onnxruntime":
        from edgevlm_runner.runtimes.onnxruntime_encoders import OnnxEncoders

        return OnnxEncoders(root, spec, threads)
    if spec.runtime == "litert":
        from edgevlm_runner.runtimes.litert_encoders import LiteRtEncoders

        return LiteRtEncoders(root, spec, threads, accelerator, packed_weights=default_cache() / "xnnpack")
    if spec.runtime == "tensorrt" and emulate:
        from edgevlm_runner.runtimes.emulation import SETTINGS
        from edgevlm_runner.runtimes.onnxruntime_encoders import OnnxEncoders

        return OnnxEncoders(root, spec, threads, settings=SETTINGS)
    if spec.runtime == "tensorrt":
        from edgevlm_runner.runtimes.tensorrt_encoders import TensorRtEncoders

        return TensorRtEncoders(root, spec, default_cache() / "tensorrt")
    raise BundleError(_unknown(spec))


def _unknown(spec: Model) -> str:
    return (
        f"The bundle needs the runtime {spec.runtime!r}, this runner has 'onnxruntime', 'litert' and "
        "'tensorrt'. Use the runner of the edgevlm that compiled it."
    )


def graph_path(root: Path, spec: Model, component: str) -> Path:
    """Raises ExecutionError when the manifest names no such graph, or it is not there."""
    name = spec.graphs.get(component)
    if name is None or not (root / name).is_file():
        raise ExecutionError(f"{root}: the graph of the {component} ({name}) is missing.")
    return root / name
