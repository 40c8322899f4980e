"""Build one TensorRT engine and end: `python3 -m edgevlm_runner.runtimes.tensorrt_build < request.json`.

A process of its own, because that gives back all of the builder's memory: the next engine starts with an
empty board, and the peak memory of the process that answers is its own.

Networks are strongly typed from TensorRT 10 on: TensorRT computes in the types that the graph states.
Releases before have no such networks, and some releases fail to build INT8 Q/DQ graphs as such
(NVIDIA/TensorRT issue 4832: 10.16.2 on SM 8.7). Those are built weakly typed, which leaves TensorRT the
choice between FP32, FP16 and INT8 kernels; the answer says so. TensorRT 11 has strong typing only.

Weights are never refitted: REFIT is not set. Nor is WEIGHT_STREAMING: where CPU and GPU share their memory
it would hold the weights in the same chips and copy them once more for every token.

Not run on hardware; every name is checked against the bindings of TensorRT 8.6 to 11.1.
"""

from __future__ import annotations

import dataclasses
import json
import os
import sys
from pathlib import Path
from typing import Any, Dict, List, Mapping, Optional, Sequence

from edgevlm_runner.errors import EdgeVlmError, ExecutionError, RuntimeUnavailable
from edgevlm_runner.storage import storage_errors

WORKSPACE_SHARE = 4
"""Kernels may use a quarter of the free memory as scratch; weights, the plan and the system need the rest."""
LEAST_WORKSPACE, MOST_WORKSPACE = 64 << 20, 4 << 30
OPTIMIZATION_LEVEL = 3
"""TensorRT's own default, said so that no release decides otherwise; higher ones need memory and hours."""


@dataclasses.dataclass(frozen=True)
class Request:
    """What to build, as it goes through the child's standard input."""

    graph: str
    profiles: Sequence[Mapping[str, Sequence[Sequence[int]]]]
    plan: str
    """Where the engine goes, under a temporary name first."""
    timing_cache: str
    """File of kernel timings that all builds of a board share."""
    free_bytes: int
    """Free device memory before the build."""


class _NotBuilt(ExecutionError):
    """The graph was read, but no engine came of it: the one failure that other typing may mend."""


def main() -> int:
    """Build; the last line of standard output is the typing, {"strong": bool, "reason": str}."""
    try:
        typing = build(import_tensorrt(), Request(**json.load(sys.stdin)))
    except EdgeVlmError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    print(json.dumps(typing), flush=True)
    return 0


def import_tensorrt() -> Any:
    """The `tensorrt` module. Raises RuntimeUnavailable."""
    try:
        import tensorrt as trt
    except ImportError as error:
        raise RuntimeUnavailable(
            f"tensorrt cannot be imported ({error}). On a Jetson its bindings are part of JetPack: "
            "apt install python3-libnvinfer, and use the system's Python "
            "(python3 -m venv --system-site-packages). Elsewhere: pip install tensorrt, or --emulate to run "
            "its graphs in ONNX Runtime."
        ) from error
    return trt


def build(trt: Any, request: Request) -> Dict[str, Any]:
    """Write the plan; returns how its network is typed and why.

    Raises ExecutionError with what TensorRT said when the graph cannot be built.
    """
    release = release_of(trt)
    if release < (10, 0):
        _attempt(trt, request, strong=False)
        return {"strong": False, "reason": f"TensorRT {trt.__version__} has no strongly typed networks"}
    try:
        _attempt(trt, request, strong=True)
        return {"strong": True, "reason": ""}
    except _NotBuilt as error:
        if release >= (11, 0):
            raise
        failed = str(error).replace(request.graph, Path(request.graph).name)
    try:
        _attempt(trt, request, strong=False)
    except ExecutionError as error:
        raise ExecutionError(f"{failed}\nWeakly typed it fails as well: {error}") from error
    return {"strong": False, "reason": f"strongly typed the build failed: {failed}"}


def release_of(trt: Any) -> Any:
    """(major, minor) of the `tensorrt` module."""
    major, minor = str(trt.__version__).split(".")[:2]
    return int(major), int(minor)


def _attempt(trt: Any, request: Request, strong: bool) -> None:
    log = error_log(trt)
    builder = trt.Builder(log)
    network = builder.create_network(_creation_flags(trt, strong))
    parser = trt.OnnxParser(network, log)
    if not parser.parse_from_file(request.graph):  # not parse(): weights may lie in a file beside the graph
        errors = [str(parser.get_error(number)) for number in range(parser.num_errors)]
        raise ExecutionError(
            f"{request.graph}: TensorRT {trt.__version__} does not read this graph: {'; '.join(errors)}. "
            "Compile the bundle for the target with this TensorRT release."
        )
    config = builder.create_builder_config()
    workspace = min(max(request.free_bytes // WORKSPACE_SHARE, LEAST_WORKSPACE), MOST_WORKSPACE)
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, workspace)
    if release_of(trt) >= (8, 6):
        config.builder_optimization_level = OPTIMIZATION_LEVEL
    config.clear_flag(trt.BuilderFlag.TF32)  # what the graph states as FP32 keeps its 23 bits
    if not strong:
        _allow_low_precision(trt, config, network)
    if (8, 6) <= release_of(trt) < (10, 0):  # what later releases always allow: contexts that share a profile
        config.set_preview_feature(trt.PreviewFeature.PROFILE_SHARING_0806, True)
    _add_profiles(request, builder, config, network)
    _read_timings(config, Path(request.timing_cache))
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        told = log.told() or "it gives no reason"
        raise _NotBuilt(f"{request.graph}: TensorRT {trt.__version__} cannot build this graph: {told}.")
    timings = config.get_timing_cache()
    if timings is not None:
        _write(Path(request.timing_cache), timings.serialize())
    _write(Path(request.plan), plan)


def _creation_flags(trt: Any, strong: bool) -> int:
    flag = trt.NetworkDefinitionCreationFlag
    if strong:
        return 1 << int(flag.STRONGLY_TYPED)
    if release_of(trt) < (10, 0):  # later releases know no other kind of batch
        return 1 << int(flag.EXPLICIT_BATCH)
    return 0


def _allow_low_precision(trt: Any, config: Any, network: Any) -> None:
    """What a weakly typed network may compute in: FP16, and the integers that its Q/DQ layers name."""
    config.set_flag(trt.BuilderFlag.FP16)
    layers = [network.get_layer(number) for number in range(network.num_layers)]
    quantized = [
        layer for layer in layers if layer.type in (trt.LayerType.QUANTIZE, trt.LayerType.DEQUANTIZE)
    ]
    if quantized:
        config.set_flag(trt.BuilderFlag.INT8)
    if release_of(trt) >= (10, 0):
        four_bits = [layer for layer in quantized if layer.get_input(0).dtype == trt.DataType.INT4]
        if four_bits:
            config.set_flag(trt.BuilderFlag.INT4)


def _add_profiles(request: Request, builder: Any, config: Any, network: Any) -> None:
    """Raises ExecutionError when the graph's inputs are not those that the profiles name."""
    inputs = {network.get_input(number).name for number in range(network.num_inputs)}
    for shapes in request.profiles:
        if set(shapes) != inputs:
            differing = sorted(set(shapes) ^ inputs)
            raise ExecutionError(
                f"{request.graph}: the inputs of graph and profiles differ: {', '.join(differing)}. "
                "Graph and manifest are of different models; compile the bundle again."
            )
        profile = builder.create_optimization_profile()
        for name, (low, typical, high) in shapes.items():
            profile.set_shape(name, tuple(low), tuple(typical), tuple(high))
        if config.add_optimization_profile(profile) < 0:
            raise ExecutionError(f"{request.graph}: TensorRT refuses the profile {dict(shapes)}.")


def _read_timings(config: Any, path: Path) -> None:
    """Timings of earlier builds. Those of another board or release, or a damaged file, count as none."""
    known = path.read_bytes() if path.is_file() else b""
    for data in [known, b""] if known else [b""]:
        timings = config.create_timing_cache(data)
        if timings is not None and config.set_timing_cache(timings, ignore_mismatch=False):
            return


def _write(path: Path, data: Any) -> None:
    """`data` offers its bytes as a buffer; a reader sees the old file or the whole new one."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    with storage_errors(path.parent):
        with open(temporary, "wb") as stream:
            stream.write(data)
        temporary.replace(path)


def error_log(trt: Any) -> Any:
    """A logger that keeps the errors, for messages, and prints nothing."""

    class ErrorLog(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)  # NVIDIA's bindings crash without it
            self.errors: List[str] = []

        def log(self, severity: Any, msg: str) -> None:
            if severity in (trt.ILogger.Severity.INTERNAL_ERROR, trt.ILogger.Severity.ERROR):
                self.errors.append(str(msg).strip())

        def told(self, most: Optional[int] = 3) -> str:
            return "; ".join(self.errors[:most])

    return ErrorLog()


if __name__ == "__main__":
    sys.exit(main())
