"""TensorRT's runtime: engines that ONNX Runtime computes, on the stand-in's device memory."""

from __future__ import annotations

import ctypes
import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
from standin_device import ALIGNMENT, DEVICE, FAILURES, TENSORRT
from standin_names import DATA, ENUMERATIONS, TYPES, Listed, error


class Runtime(Listed):
    def __init__(self, logger: Any) -> None:
        self.logger = logger

    def deserialize_cuda_engine(self, serialized_engine: Any) -> Any:
        head, _, model = bytes(serialized_engine).partition(b"\n")
        facts = json.loads(head)
        if facts["release"] != TENSORRT:
            return error(self.logger, "The engine plan file is not compatible with this version of TensorRT")
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
        return ENUMERATIONS["TensorIOMode"]["INPUT" if name in self._inputs else "OUTPUT"]

    def get_tensor_dtype(self, name: str) -> Any:
        return DATA[TYPES[self._values[name].type.tensor_type.elem_type][0]]

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
        return TYPES[self._engine._values[name].type.tensor_type.elem_type][1]
