"""Every TensorRT and CUDA name that the TensorRT runtime uses exists in the bindings of each release.

The lists in `names/` were extracted from NVIDIA's public wheels by `tensorrt_names.py`; nothing of NVIDIA's
is needed here.
"""

from __future__ import annotations

import ast
import json
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path

import pytest

from edgevlm_deploy import resources
from edgevlm_deploy.target import Backend

FOLDER = Path(__file__).parent / "names"
RUNTIME = Path(__file__).parents[2] / "runners/edgevlm_runner/runtimes/tensorrt.py"

TENSORRT = ("8.6", "10.3", "10.13", "10.16", "11.1")
CUDA = ("11.8", "12.6", "13.0", "13.2")

UNPUBLISHED = {"8.2", "8.5"}
"""Releases that a target names and whose bindings were never published: nothing is claimed about them."""

NEEDED = {
    "Builder": [
        "create_network",
        "create_builder_config",
        "create_optimization_profile",
        "build_serialized_network",
    ],
    "IBuilderConfig": [
        "set_memory_pool_limit",
        "add_optimization_profile",
        "create_timing_cache",
        "get_timing_cache",
        "set_timing_cache",
        "builder_optimization_level",
        "profiling_verbosity",
        "set_flag",
    ],
    "ITimingCache": ["serialize", "combine"],
    "MemoryPoolType": ["WORKSPACE"],
    "ProfilingVerbosity": ["DETAILED"],
    "NetworkDefinitionCreationFlag": [],
    "IOptimizationProfile": ["set_shape"],
    "INetworkDefinition": ["num_inputs", "get_input", "num_outputs", "get_output"],
    "OnnxParser": ["parse", "parse_from_file", "num_errors", "get_error"],
    "ParserError": ["desc", "node"],
    "Logger": ["WARNING"],
    "ILogger": ["Severity"],
    "Runtime": ["deserialize_cuda_engine"],
    "ICudaEngine": [
        "create_execution_context",
        "num_io_tensors",
        "get_tensor_name",
        "get_tensor_mode",
        "get_tensor_dtype",
        "get_tensor_shape",
        "get_tensor_profile_shape",
        "num_optimization_profiles",
        "create_engine_inspector",
    ],
    "EngineInspector": ["get_engine_information"],
    "LayerInformationFormat": ["JSON"],
    "IExecutionContext": [
        "set_input_shape",
        "set_tensor_address",
        "get_tensor_shape",
        "set_optimization_profile_async",
        "execute_async_v3",
        "infer_shapes",
    ],
    "TensorIOMode": ["INPUT"],
    "DataType": ["HALF", "FLOAT", "INT32"],
}
"""Class → members that building, caching and running an engine takes; in every release."""

SINCE = {
    "NetworkDefinitionCreationFlag.STRONGLY_TYPED": "10.3",
    "DataType.INT64": "10.3",
    "DataType.INT4": "10.3",
    "ICudaEngine.device_memory_size_v2": "10.3",
}
"""Name → first release that has it."""

UNTIL = {
    "NetworkDefinitionCreationFlag.EXPLICIT_BATCH": "10.16",
    "BuilderFlag.FP16": "10.16",
    "BuilderFlag.INT8": "10.16",
}
"""Name → last release that has it: weak typing ends with TensorRT 10."""

NEEDED_CUDA = [
    "cudaMalloc",
    "cudaFree",
    "cudaMemcpyAsync",
    "cudaMemsetAsync",
    "cudaHostAlloc",
    "cudaFreeHost",
    "cudaStreamCreate",
    "cudaStreamDestroy",
    "cudaStreamSynchronize",
    "cudaStreamBeginCapture",
    "cudaStreamEndCapture",
    "cudaGraphInstantiate",
    "cudaGraphLaunch",
    "cudaGraphExecDestroy",
    "cudaGraphDestroy",
    "cudaEventCreate",
    "cudaEventRecord",
    "cudaEventElapsedTime",
    "cudaEventSynchronize",
    "cudaMemGetInfo",
    "cudaGetDeviceProperties",
    "cudaDriverGetVersion",
    "cudaRuntimeGetVersion",
    "cudaGetErrorName",
    "cudaError_t",
    "cudaMemcpyKind.cudaMemcpyHostToDevice",
    "cudaMemcpyKind.cudaMemcpyDeviceToHost",
    "cudaMemcpyKind.cudaMemcpyDeviceToDevice",
    "cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal",
]


@cache
def offered(kind: str, release: str) -> frozenset[str]:
    """Names and `Name.member`s of one release's bindings."""
    return frozenset(flat(json.loads((FOLDER / f"{kind}-{release}.json").read_text())["names"]))


def flat(names: Mapping[str, Sequence[str]]) -> list[str]:
    return [*names, *(f"{name}.{member}" for name, members in names.items() for member in members)]


def used(source: str, module: str) -> set[str]:
    """`A` and `A.B` for every `module.A` and `module.A.B` in Python source."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        chain: list[str] = []
        while isinstance(node, ast.Attribute):
            chain.insert(0, node.attr)
            node = node.value
        if chain and isinstance(node, ast.Name) and node.id == module:
            found.add(".".join(chain[:2]))
    return found


def position(release: str) -> int:
    return TENSORRT.index(release)


@pytest.mark.parametrize("release", TENSORRT)
def test_tensorrt_offers_what_a_runtime_needs(release: str) -> None:
    names = offered("tensorrt", release)
    assert [name for name in flat(NEEDED) if name not in names] == []
    for name, first in SINCE.items():
        assert (name in names) == (position(release) >= position(first)), name
    for name, last in UNTIL.items():
        assert (name in names) == (position(release) <= position(last)), name


@pytest.mark.parametrize("release", CUDA)
def test_cuda_offers_what_a_runtime_needs(release: str) -> None:
    assert [name for name in NEEDED_CUDA if name not in offered("cuda", release)] == []


def test_every_release_that_a_target_names_is_covered_or_said_not_to_be() -> None:
    targets = [resources.target(name) for name in resources.names("targets")]
    named = {
        ".".join(one.software["tensorrt"].split(".")[:2])
        for one in targets
        if one.backend is Backend.TENSORRT
    }
    assert named - set(TENSORRT) == UNPUBLISHED


@pytest.mark.skipif(not RUNTIME.is_file(), reason="no TensorRT runtime yet")
def test_the_runtime_uses_no_name_that_a_release_lacks() -> None:
    source = RUNTIME.read_text()
    conditional = {*SINCE, *UNTIL}
    for module, kind, releases in (("trt", "tensorrt", TENSORRT), ("cudart", "cuda", CUDA)):
        names = {name for name in used(source, module) - conditional if not name.startswith("__")}
        assert names, f"the runtime imports the bindings under another name than {module}"
        for release in releases:
            assert names - offered(kind, release) == set(), f"{kind} {release}"


def test_a_misspelt_or_removed_name_is_found() -> None:
    source = (
        "builder = trt.Builder(log)\nflags = trt.BuilderFlag.FP16 | trt.BuildFlag.REFIT\ntrt.nptype(x).name"
    )
    names = used(source, "trt")
    assert names >= {"Builder", "BuilderFlag.FP16", "BuildFlag.REFIT", "nptype"}
    assert names - offered("tensorrt", "10.16") == {"BuildFlag.REFIT", "BuildFlag"} & names
    assert "BuilderFlag.FP16" not in offered("tensorrt", "11.1")
