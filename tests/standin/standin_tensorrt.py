"""TensorRT's builder and runtime as far as the runner uses them, strict where the real ones are.

Refused are: every name that the release's bindings do not list, shapes outside of the active profile,
profiles that leave out an input, unbound addresses, running without scratch memory, capturing what was not
run before.
"""

from __future__ import annotations

import json
from typing import Any

import onnx
import standin_engine
from standin_device import FAILURES, TENSORRT
from standin_names import DATA, ENUMERATIONS, FLAG, NAMES, RELEASE, TYPES, IHostMemory, ILogger, Listed, error


class ITensor(Listed):
    def __init__(self, name: str, dtype: Any) -> None:
        self.name, self.dtype = name, dtype


class ILayer(Listed):
    def __init__(self, kind: str, dtype: Any) -> None:
        self.type, self._dtype = ENUMERATIONS["LayerType"][kind], dtype

    def get_input(self, index: int) -> ITensor:
        return ITensor("", self._dtype)


class INetworkDefinition(Listed):
    _model: Any = None

    def __init__(self, strong: bool) -> None:
        self._strong = strong

    @property
    def num_inputs(self) -> int:
        return len(self._model.graph.input)

    def get_input(self, index: int) -> ITensor:
        value = self._model.graph.input[index]
        return ITensor(value.name, value.type.tensor_type.elem_type)

    @property
    def num_layers(self) -> int:
        return len(self._model.graph.node)

    def get_layer(self, index: int) -> ILayer:
        node = self._model.graph.node[index]
        kinds = {"QuantizeLinear": "QUANTIZE", "DequantizeLinear": "DEQUANTIZE"}
        weights = {one.name: one.data_type for one in self._model.graph.initializer}
        found = TYPES.get(weights.get(node.input[0], 0)) if node.input else None
        return ILayer(kinds.get(node.op_type, "IDENTITY"), DATA.__members__.get(found[0]) if found else None)


class OnnxParser(Listed):
    def __init__(self, network: INetworkDefinition, logger: Any) -> None:
        self._network, self._errors = network, []

    def parse_from_file(self, model: str) -> bool:
        try:
            self._network._model = onnx.load(model)
        except Exception as error:
            self._errors.append(f"{type(error).__name__}: {error}")
            return False
        operators = {node.op_type for node in self._network._model.graph.node}
        if "TensorScatter" in operators and RELEASE < (10, 15):
            self._errors.append("no importer for TensorScatter")
        return not self._errors

    @property
    def num_errors(self) -> int:
        return len(self._errors)

    def get_error(self, index: int) -> str:
        return self._errors[index]


class IOptimizationProfile(Listed):
    def __init__(self) -> None:
        self._shapes: dict[str, list[list[int]]] = {}

    def set_shape(self, input: str, min: Any, opt: Any, max: Any) -> None:
        self._shapes[input] = [list(min), list(opt), list(max)]


class ITimingCache(Listed):
    def __init__(self, data: bytes) -> None:
        self._data = data

    def serialize(self) -> IHostMemory:
        return IHostMemory(self._data)


class IBuilderConfig(Listed):
    builder_optimization_level = -1

    def __init__(self) -> None:
        self._profiles: list[IOptimizationProfile] = []
        self._flags: set[Any] = {FLAG.TF32}
        self._pools: dict[Any, int] = {}
        self._cache: ITimingCache | None = None
        self._shares_profiles = RELEASE >= (10, 0)

    def set_flag(self, flag: Any) -> None:
        self._flags.add(FLAG(flag))

    def clear_flag(self, flag: Any) -> None:
        self._flags.discard(FLAG(flag))

    def set_memory_pool_limit(self, pool: Any, pool_size: int) -> None:
        self._pools[pool] = pool_size

    def set_preview_feature(self, feature: Any, enable: bool) -> None:
        shares = feature.name == "PROFILE_SHARING_0806" and "sharing" not in FAILURES
        self._shares_profiles |= shares and enable

    def add_optimization_profile(self, profile: IOptimizationProfile) -> int:
        self._profiles.append(profile)
        return len(self._profiles) - 1

    def create_timing_cache(self, serialized_timing_cache: bytes) -> ITimingCache | None:
        known = serialized_timing_cache in (b"",) or serialized_timing_cache.startswith(b"timings")
        return ITimingCache(serialized_timing_cache) if known else None

    def set_timing_cache(self, cache: ITimingCache, ignore_mismatch: bool) -> bool:
        self._cache = cache
        return True

    def get_timing_cache(self) -> ITimingCache | None:
        return self._cache


class Builder(Listed):
    def __init__(self, logger: Any) -> None:
        self._log = logger

    def create_network(self, flags: int = 0) -> INetworkDefinition:
        kinds = ENUMERATIONS["NetworkDefinitionCreationFlag"]
        names = {one.name for one in kinds if flags & (1 << int(one))}
        assert ("EXPLICIT_BATCH" in names) == (RELEASE < (10, 0))
        assert "STRONGLY_TYPED" in names or RELEASE < (11, 0)
        return INetworkDefinition("STRONGLY_TYPED" in names)

    def create_builder_config(self) -> IBuilderConfig:
        return IBuilderConfig()

    def create_optimization_profile(self) -> IOptimizationProfile:
        return IOptimizationProfile()

    def build_serialized_network(self, network: INetworkDefinition, config: IBuilderConfig) -> Any:
        quantized = any("DEQUANTIZE" in network.get_layer(n).type.name for n in range(network.num_layers))
        reason = ""
        if "build" in FAILURES or (network._strong and "strong" in FAILURES):
            reason = "Could not find any implementation for node {ForeignNode[x]}."
        elif not network._strong and quantized and FLAG["INT8"] not in config._flags:
            reason = "Int8 precision has not been configured in the builder."
        elif not config._pools or config.builder_optimization_level < 0:
            reason = "the stand-in wants a memory limit and an optimisation level"
        for profile in config._profiles:
            if set(profile._shapes) != {value.name for value in network._model.graph.input}:
                reason = "a profile leaves out an input"
        if reason:
            return error(self._log, reason)
        config._cache = ITimingCache(b"timings" + bytes(len(config._profiles)))
        head = {
            "release": TENSORRT,
            "strong": network._strong,
            "flags": sorted(flag.name for flag in config._flags),
            "shares_profiles": config._shares_profiles,
            "profiles": [profile._shapes for profile in config._profiles],
        }
        return IHostMemory(json.dumps(head).encode() + b"\n" + network._model.SerializeToString())


def attribute(name: str) -> Any:
    """`__getattr__` of the module `tensorrt`."""
    if name.startswith("__"):
        raise AttributeError(name)
    if name not in NAMES:
        raise AttributeError(f"TensorRT {TENSORRT} has no {name}")
    if name in ENUMERATIONS:
        return ENUMERATIONS[name]
    return ILogger if name == "ILogger" else {**vars(standin_engine), **globals()}[name]
