"""An engine with static buffers, and its execution contexts, which share one block of scratch memory.

Everything is allocated before the first question and stays: no allocation can fail, and none takes time,
later on. Not run on hardware; every name is checked against the bindings of TensorRT 8.6 to 11.1.
"""

from __future__ import annotations

import math
from typing import Any, Dict, List, Mapping, Sequence, Tuple

import numpy as np

from edgevlm_runner.errors import ExecutionError
from edgevlm_runner.runtimes import profiles as optimisation
from edgevlm_runner.runtimes.cuda import Cuda
from edgevlm_runner.runtimes.tensorrt_build import release_of

Shape = Tuple[int, ...]


class Buffer:
    """Device memory of one input or output, and pinned host memory of the same size to fill it from."""

    def __init__(self, cuda: Cuda, count: int, dtype: Any) -> None:
        self._cuda = cuda
        self.address = cuda.allocate(count * np.dtype(dtype).itemsize)
        self.host = cuda.allocate_pinned(count, dtype)
        """[count], of the engine's type: assigning converts."""

    def fill(self, array: np.ndarray) -> None:
        """Put `array` into the host's side; `upload` sends it."""
        self.host[: array.size] = array.reshape(-1)

    def upload(self, count: int) -> None:
        self._cuda.upload(self.address, self.host[:count])

    def download(self, count: int) -> None:
        self._cuda.download(self.host[:count], self.address)


class Engine:
    """A deserialised engine: names, types and shapes of what goes in and out, and contexts that run it."""

    def __init__(
        self, trt: Any, cuda: Cuda, native: Any, component: str, profiles: Sequence[optimisation.Profile]
    ) -> None:
        self.component = component
        self.profiles = profiles
        self.cuda = cuda
        self._trt = trt
        self._native = native
        types = _numpy_types(trt)
        names = [native.get_tensor_name(number) for number in range(native.num_io_tensors)]
        self.inputs = [name for name in names if native.get_tensor_mode(name) == trt.TensorIOMode.INPUT]
        self.shapes: Dict[str, Shape] = {name: tuple(native.get_tensor_shape(name)) for name in names}
        """−1 where a profile decides."""
        self.types: Dict[str, Any] = {}
        for name in names:
            dtype = native.get_tensor_dtype(name)
            if dtype not in types:
                raise ExecutionError(
                    f"The {component}'s {name} is {dtype}; this runner feeds FP16, FP32 and integers."
                )
            if native.is_shape_inference_io(name):
                raise ExecutionError(f"The {component}'s {name} decides shapes; the runner binds data only.")
            self.types[name] = types[dtype]

    @property
    def scratch_bytes(self) -> int:
        """Device memory that a context needs while it runs, over all profiles."""
        native = self._native
        if release_of(self._trt) >= (10, 0):
            return int(native.device_memory_size_v2)
        return int(native.device_memory_size)

    def check(self, expected: Mapping[str, Shape]) -> None:
        """Raises ExecutionError unless inputs and outputs are those of `expected`; −1 allows any size."""
        for name in sorted({*expected, *self.shapes}):
            found, wanted = self.shapes.get(name), expected.get(name)
            if found is None or wanted is None or len(found) != len(wanted):
                same = False
            else:
                same = all(-1 in pair or pair[0] == pair[1] for pair in zip(found, wanted))
            if not same:
                raise ExecutionError(
                    f"{name} of the {self.component} is {found}, the manifest asks for {wanted}. "
                    "Graph and manifest are of different models; compile the bundle again."
                )

    def aliased_input(self, output: str) -> Any:
        """The input whose memory `output` is written into, or None. From TensorRT 10.15."""
        native = self._native
        return native.get_aliased_input_tensor(output)

    def buffer(self, name: str, shape: Shape) -> Buffer:
        return Buffer(self.cuda, math.prod(shape), self.types[name])

    def execution(self, profile: int, scratch: int, scratch_bytes: int) -> Execution:
        """A context on `profile`. Contexts may share the scratch memory, as one stream runs them in turn."""
        trt, native = self._trt, self._native
        if release_of(trt) >= (10, 0):
            context = native.create_execution_context(trt.ExecutionContextAllocationStrategy.USER_MANAGED)
        else:
            context = native.create_execution_context_without_device_memory()
        if context is None:
            raise ExecutionError(
                f"TensorRT gives no execution context for the {self.component}: memory is short."
            )
        if release_of(trt) >= (10, 0):
            context.set_device_memory(scratch, scratch_bytes)
        else:
            context.device_memory = scratch
        try:
            context.set_optimization_profile_async(profile, self.cuda.stream)
        except RuntimeError as error:
            raise ExecutionError(
                f"TensorRT refuses profile {profile} of the {self.component}: {error}"
            ) from error
        return Execution(self, context)


class Execution:
    """One context: shapes and addresses in, work on the stream out."""

    def __init__(self, engine: Engine, context: Any) -> None:
        self._engine = engine
        self._context = context

    def bind(self, addresses: Mapping[str, int]) -> None:
        """Device addresses of inputs and outputs; they stay until bound anew."""
        context = self._context
        for name, address in addresses.items():
            if not context.set_tensor_address(name, address):
                raise ExecutionError(
                    f"TensorRT refuses the memory of {name} of the {self._engine.component}."
                )

    def shape(self, shapes: Mapping[str, Shape]) -> None:
        """Shapes of all inputs. Raises ExecutionError outside of the profile."""
        context = self._context
        for name, shape in shapes.items():
            if not context.set_input_shape(name, shape):
                raise ExecutionError(
                    f"TensorRT refuses {name} of shape {list(shape)} for the {self._engine.component}."
                )
        try:
            missing = context.infer_shapes()
        except RuntimeError as error:
            raise ExecutionError(
                f"TensorRT infers no shapes for the {self._engine.component}: {error}"
            ) from error
        if missing:
            raise ExecutionError(
                f"The {self._engine.component} lacks shapes or memory for {', '.join(missing)}."
            )

    def output_shape(self, name: str) -> Shape:
        context = self._context
        return tuple(context.get_tensor_shape(name))

    def enqueue(self) -> None:
        """Put one run on the stream. Raises ExecutionError when TensorRT cannot."""
        context = self._context
        if not context.execute_async_v3(self._engine.cuda.stream):
            raise ExecutionError(f"TensorRT failed to run the {self._engine.component}.")


class Component:
    """An engine with one input and one output that goes from host to host: vision encoder, embedding."""

    def __init__(self, engine: Engine, source: str, result: str, scratch: Tuple[int, int]) -> None:
        self._engine, self._source, self._result = engine, source, result
        self._executions = [engine.execution(number, *scratch) for number in range(len(engine.profiles))]
        largest = optimisation.largest(engine.profiles)[source]
        self._in = engine.buffer(source, largest)
        for execution in self._executions:
            execution.bind({source: self._in.address})
        self._out = engine.buffer(result, self._largest_result())
        for execution in self._executions:
            execution.bind({result: self._out.address})

    def run(self, array: np.ndarray) -> np.ndarray:
        """float32 of the output's shape; the input may be any type, it is converted to the engine's.

        Raises ExecutionError when no profile holds its shape.
        """
        number = optimisation.covering(
            self._engine.component, self._engine.profiles, {self._source: array.shape}
        )
        execution = self._executions[number]
        execution.shape({self._source: array.shape})
        shape = execution.output_shape(self._result)
        self._in.fill(array)
        self._in.upload(array.size)
        execution.enqueue()
        count = math.prod(shape)
        self._out.download(count)
        self._engine.cuda.synchronize()
        found: np.ndarray = self._out.host[:count].astype(np.float32).reshape(shape)
        return found

    def _largest_result(self) -> Shape:
        found: List[Shape] = []
        for execution, profile in zip(self._executions, self._engine.profiles):
            execution.shape({self._source: tuple(profile[self._source][2])})
            found.append(execution.output_shape(self._result))
        return max(found, key=math.prod)


def _numpy_types(trt: Any) -> Dict[Any, Any]:
    """Not `trt.nptype`: that of TensorRT 8 breaks with NumPy 1.24."""
    types = {trt.DataType.HALF: np.float16, trt.DataType.FLOAT: np.float32, trt.DataType.INT32: np.int32}
    if release_of(trt) >= (10, 0):
        types[trt.DataType.INT64] = np.int64
    return types
