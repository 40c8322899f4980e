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
RUNTIMES = Path(__file__).parents[2] / "runners/edgevlm_runner/runtimes"
SOURCES = sorted([*RUNTIMES.glob("tensorrt*.py"), RUNTIMES / "cuda.py"])

TENSORRT = ("8.6", "10.3", "10.13", "10.16", "11.1")
CUDA = ("11.8", "12.6", "13.0", "13.2")

UNPUBLISHED = {"8.2", "8.5"}
"""Releases that a target names and whose bindings were never published: nothing is claimed about them."""

OBJECTS = {
    "builder": "Builder",
    "config": "IBuilderConfig",
    "network": "INetworkDefinition",
    "parser": "OnnxParser",
    "profile": "IOptimizationProfile",
    "timings": "ITimingCache",
    "runtime": "Runtime",
    "native": "ICudaEngine",
    "context": "IExecutionContext",
    "flag": "NetworkDefinitionCreationFlag",
}
"""Name of a variable in the runtime → class of what it holds; see `test_the_variables_are_those`."""

SINCE = {
    "NetworkDefinitionCreationFlag.STRONGLY_TYPED": "10.3",
    "DataType.INT64": "10.3",
    "DataType.INT4": "10.3",
    "BuilderFlag.INT4": "10.3",
    "ExecutionContextAllocationStrategy": "10.3",
    "ExecutionContextAllocationStrategy.USER_MANAGED": "10.3",
    "ICudaEngine.device_memory_size_v2": "10.3",
    "IExecutionContext.set_device_memory": "10.3",
    "ICudaEngine.get_aliased_input_tensor": "10.16",
}
"""Name that the runtime asks for only from a release on → the first of the lists that has it."""

UNTIL = {
    "NetworkDefinitionCreationFlag.EXPLICIT_BATCH": "10.16",
    "BuilderFlag.FP16": "10.16",
    "BuilderFlag.INT8": "10.16",
    "BuilderFlag.INT4": "10.16",
    "PreviewFeature.PROFILE_SHARING_0806": "10.16",
    "ICudaEngine.device_memory_size": "10.16",
    "ICudaEngine.create_execution_context_without_device_memory": "10.16",
}
"""Name that the runtime asks for only before a release → the last of the lists that has it."""


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


def used_on_objects(source: str) -> set[str]:
    """`Class.member` for every `variable.member` whose variable is one of `OBJECTS`."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in OBJECTS:
            found.add(f"{OBJECTS[node.value.id]}.{node.attr}")
    return found


def asked_for() -> set[str]:
    """Every TensorRT name that the runtime uses, as `Name` or `Class.member`."""
    found: set[str] = set()
    for path in SOURCES:
        source = path.read_text()
        found |= used(source, "trt") | used_on_objects(source)
    return {name for name in found if "__" not in name}


def position(release: str) -> int:
    return TENSORRT.index(release)


def in_use(name: str, release: str) -> bool:
    """Whether the runtime asks this release for the name."""
    first, last = SINCE.get(name, TENSORRT[0]), UNTIL.get(name, TENSORRT[-1])
    return position(first) <= position(release) <= position(last)


@pytest.mark.parametrize("release", TENSORRT)
def test_the_runtime_uses_no_tensorrt_name_that_a_release_lacks(release: str) -> None:
    missing = {name for name in asked_for() if in_use(name, release)} - offered("tensorrt", release)
    assert missing == set()


def test_what_is_conditional_is_used_and_ends_where_it_says() -> None:
    assert {*SINCE, *UNTIL} <= asked_for()
    for name, first in SINCE.items():
        before = [release for release in TENSORRT if position(release) < position(first)]
        assert not any(name in offered("tensorrt", release) for release in before), name
    for name, last in UNTIL.items():
        after = [release for release in TENSORRT if position(release) > position(last)]
        gone = [release for release in after if name not in offered("tensorrt", release)]
        assert gone == after or name == "PreviewFeature.PROFILE_SHARING_0806", name


@pytest.mark.parametrize("release", CUDA)
def test_the_runtime_uses_no_cuda_name_that_a_release_lacks(release: str) -> None:
    names = set().union(*(used(path.read_text(), "cudart") for path in SOURCES))
    assert len(names) > 20
    assert names - offered("cuda", release) == set()


def test_the_variables_are_those() -> None:
    """The classes that are built or asked for all occur under the names that `OBJECTS` lists."""
    classes = {name.split(".")[0] for name in asked_for()}
    assert set(OBJECTS.values()) <= classes
    assert {"ILogger.Severity", "IBuilderConfig.set_timing_cache", "IExecutionContext.execute_async_v3"} <= (
        asked_for()
    )
    assert len(asked_for()) > 60


def test_every_release_that_a_target_names_is_covered_or_said_not_to_be() -> None:
    targets = [resources.target(name) for name in resources.names("targets")]
    named = {
        ".".join(one.software["tensorrt"].split(".")[:2])
        for one in targets
        if one.backend is Backend.TENSORRT
    }
    assert named - set(TENSORRT) == UNPUBLISHED


def test_a_misspelt_or_removed_name_is_found() -> None:
    source = (
        "builder = trt.Builder(log)\nflags = trt.BuilderFlag.FP16 | trt.BuildFlag.REFIT\n"
        "trt.nptype(x).name\nconfig.set_memory_limit(1)"
    )
    names = used(source, "trt") | used_on_objects(source)
    assert names >= {"Builder", "BuilderFlag.FP16", "BuildFlag.REFIT", "nptype"}
    wrong = {"BuildFlag.REFIT", "BuildFlag", "IBuilderConfig.set_memory_limit"}
    assert names - offered("tensorrt", "10.16") == wrong & names
    assert "BuilderFlag.FP16" not in offered("tensorrt", "11.1")
