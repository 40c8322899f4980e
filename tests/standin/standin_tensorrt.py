"""TensorRT's builder and runtime as far as the runner uses them, strict where the real ones are.

Refused are: every name that the release's bindings do not list, shapes outside of the active profile,
profiles that leave out an input, unbound addresses, running without scratch memory, capturing what was not
run before.
"""

from __future__ import annotations

import ctypes
import enum
import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
from standin_device import ALIGNMENT, DEVICE, FAILURES, TENSORRT, listed

_, NAMES = listed("tensorrt", TENSORRT)
RELEASE = tuple(int(part) for part in TENSORRT.split("."))
UNLISTED = frozenset({"name", "type", "get_input"})
"""Real members that the lists leave out: `name` everywhere, and all of ILayer's."""

ENUMS = [
    "BuilderFlag",
    "DataType",
    "ExecutionContextAllocationStrategy",
    "LayerType",
    "MemoryPoolType",
    "NetworkDefinitionCreationFlag",
    "PreviewFeature",
    "TensorIOMode",
]


def _enum(name: str) -> Any:
    return enum.IntEnum(name, [one for one in NAMES[name] if one != "itemsize"], start=0)


_ENUMS = {name: _enum(name) for name in ENUMS if name in NAMES}
DATA = _ENUMS["DataType"]
FLAG = _ENUMS["BuilderFlag"]
_TYPES = {
    onnx.TensorProto.FLOAT16: ("HALF", np.float16),
    onnx.TensorProto.FLOAT: ("FLOAT", np.float32),
    onnx.TensorProto.INT32: ("INT32", np.int32),
    onnx.TensorProto.INT64: ("INT64", np.int64),
    onnx.TensorProto.INT8: ("INT8", np.int8),
    onnx.TensorProto.INT4: ("INT4", np.int8),
}


class Listed:
    """Offers and accepts the members that the real class lists."""

    def __getattribute__(self, name: str) -> Any:
        _check(type(self), name)
        return object.__getattribute__(self, name)

    def __setattr__(self, name: str, value: Any) -> None:
        _check(type(self), name)
        object.__setattr__(self, name, value)


def _check(owner: type, name: str) -> None:
    if not name.startswith("_") and name not in UNLISTED and name not in NAMES.get(owner.__name__, ()):
        raise AttributeError(f"TensorRT {TENSORRT}: {owner.__name__} has no {name}")


class ILogger:
    Severity = enum.IntEnum("Severity", ["INTERNAL_ERROR", "ERROR", "WARNING", "INFO", "VERBOSE"])

    def __init__(self) -> None:
        self._ready = True

    def log(self, severity: Any, msg: str) -> None:
        raise NotImplementedError


def _error(logger: Any, text: str) -> None:
    assert logger._ready, "ILogger.__init__ was not called"
    logger.log(ILogger.Severity.ERROR, text)


class IHostMemory(bytes):
    @property
    def nbytes(self) -> int:
        return len(self)


class ITensor(Listed):
    def __init__(self, name: str, dtype: Any) -> None:
        self.name, self.dtype = name, dtype


class ILayer(Listed):
    def __init__(self, kind: str, dtype: Any) -> None:
        self.type, self._dtype = _ENUMS["LayerType"][kind], dtype

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
        found = _TYPES.get(weights.get(node.input[0], 0)) if node.input else None
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
        kinds = _ENUMS["NetworkDefinitionCreationFlag"]
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
            return _error(self._log, reason)
        config._cache = ITimingCache(b"timings" + bytes(len(config._profiles)))
        head = {
            "release": TENSORRT,
            "strong": network._strong,
            "flags": sorted(flag.name for flag in config._flags),
            "shares_profiles": config._shares_profiles,
            "profiles": [profile._shapes for profile in config._profiles],
        }
        return IHostMemory(json.dumps(head).encode() + b"\n" + network._model.SerializeToString())


class Runtime(Listed):
    def __init__(self, logger: Any) -> None:
        self.logger = logger

    def deserialize_cuda_engine(self, serialized_engine: Any) -> Any:
        head, _, model = bytes(serialized_engine).partition(b"\n")
        facts = json.loads(head)
        if facts["release"] != TENSORRT:
            return _error(self.logger, "The engine plan file is not compatible with this version of TensorRT")
        return ICudaEngine(facts, onnx.load_from_string(model), self.logger)


class ICudaEngine(Listed):
    refittable = False

    def __init__(self, facts: Mapping[str, Any], model: Any, logger: Any) -> None:
        self._facts, self._logger = facts, logger
        self._busy: set[int] = set()
        self._values = {value.name: value for value in (*model.graph.input, *model.graph.output)}
        self._inputs = [value.name for value in model.graph.input]
        self._outputs = [value.name for value in model.graph.output]
        scatters = (node for node in model.graph.node if node.op_type == "TensorScatter")
        self._aliases = {node.output[0]: node.input[0] for node in scatters}
        import onnxruntime  # the builder's process does without

        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.log_severity_level = 3
        options.intra_op_num_threads = 1
        self._session = onnxruntime.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
        self._scratch = 4096 + len(model.graph.node)

    @property
    def num_io_tensors(self) -> int:
        return len(self._values)

    def get_tensor_name(self, index: int) -> str:
        return [*self._inputs, *self._outputs][index]

    def get_tensor_mode(self, name: str) -> Any:
        return _ENUMS["TensorIOMode"]["INPUT" if name in self._inputs else "OUTPUT"]

    def get_tensor_dtype(self, name: str) -> Any:
        return DATA[_TYPES[self._values[name].type.tensor_type.elem_type][0]]

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        dims = self._values[name].type.tensor_type.shape.dim
        return tuple(dim.dim_value if dim.HasField("dim_value") else -1 for dim in dims)

    def is_shape_inference_io(self, name: str) -> bool:
        return False

    def get_aliased_input_tensor(self, name: str) -> str | None:
        return None if "alias" in FAILURES else self._aliases.get(name)

    @property
    def device_memory_size(self) -> int:
        return self._scratch

    @property
    def device_memory_size_v2(self) -> int:
        return self._scratch

    def create_execution_context(self, strategy: Any) -> IExecutionContext:
        assert strategy.name == "USER_MANAGED"
        return IExecutionContext(self)

    def create_execution_context_without_device_memory(self) -> IExecutionContext:
        return IExecutionContext(self)


class IExecutionContext(Listed):
    def __init__(self, engine: ICudaEngine) -> None:
        self._engine = engine
        self._profile = 0
        self._scratch = False
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._addresses: dict[str, int] = {}
        self._warm = False
        self._results: dict[Any, list[tuple[int, ...]]] = {}

    def set_device_memory(self, memory: int, size: int) -> None:
        assert size >= self._engine._scratch and DEVICE.holds(memory, size) and memory % ALIGNMENT == 0
        self._scratch = True

    @property
    def device_memory(self) -> int:
        raise AttributeError("write only")

    @device_memory.setter
    def device_memory(self, memory: int) -> None:
        assert DEVICE.holds(memory, self._engine._scratch)
        self._scratch = True

    def set_optimization_profile_async(self, profile_index: int, stream_handle: int) -> bool:
        if profile_index in self._engine._busy and not self._engine._facts["shares_profiles"]:
            raise RuntimeError("Error in set optimization profile async.")
        self._engine._busy.add(profile_index)
        self._profile = profile_index
        return True

    def set_tensor_address(self, name: str, memory: int) -> bool:
        self._addresses[name] = memory
        return name in self._engine._values and memory % ALIGNMENT == 0

    def set_input_shape(self, name: str, shape: Any) -> bool:
        low, _, high = self._engine._facts["profiles"][self._profile][name]
        fits = len(shape) == len(low) and all(a <= b <= c for a, b, c in zip(low, shape, high, strict=True))
        if fits:
            self._warm &= self._shapes.get(name) == tuple(shape)
            self._shapes[name] = tuple(shape)
        return fits

    def infer_shapes(self) -> list[str]:
        return [name for name in self._engine._inputs if name not in self._shapes]

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        if name in self._engine._inputs:
            return self._shapes[name]
        key = tuple(sorted(self._shapes.items()))
        if key not in self._results:
            feeds = {one: np.zeros(shape, self._dtype(one)) for one, shape in self._shapes.items()}
            self._results[key] = [array.shape for array in self._engine._session.run(None, feeds)]
        return self._results[key][self._engine._outputs.index(name)]

    def execute_async_v3(self, stream_handle: int) -> bool:
        engine = self._engine
        assert stream_handle == 7 and self._scratch and not self.infer_shapes()
        assert set(self._addresses) == set(engine._values), "unbound memory"
        if DEVICE.captured is not None and not self._warm:
            DEVICE.capture_broken = True
            return False
        self._warm = True
        DEVICE.kernels += DEVICE.captured is None
        shapes, addresses = dict(self._shapes), dict(self._addresses)
        DEVICE.put(lambda: self._run(shapes, addresses))
        return True

    def _run(self, shapes: dict[str, tuple[int, ...]], addresses: dict[str, int]) -> None:
        engine = self._engine
        feeds = {name: self._view(name, addresses[name], shapes[name]).copy() for name in engine._inputs}
        for name, array in zip(engine._outputs, engine._session.run(None, feeds), strict=True):
            self._view(name, addresses[name], array.shape)[...] = array

    def _view(self, name: str, address: int, shape: tuple[int, ...]) -> Any:
        dtype = np.dtype(self._dtype(name))
        size = int(np.prod(shape)) * dtype.itemsize
        assert DEVICE.holds(address, size), f"{name} {shape} reaches beyond its memory"
        return np.frombuffer((ctypes.c_char * size).from_address(address), dtype).reshape(shape)

    def _dtype(self, name: str) -> Any:
        return _TYPES[self._engine._values[name].type.tensor_type.elem_type][1]


def attribute(name: str) -> Any:
    """`__getattr__` of the module `tensorrt`."""
    if name.startswith("__"):
        raise AttributeError(name)
    if name not in NAMES:
        raise AttributeError(f"TensorRT {TENSORRT} has no {name}")
    return _ENUMS[name] if name in _ENUMS else globals()[name]
