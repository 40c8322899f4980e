"""One CUDA device and one stream: memory, copies, graphs. Every failure is an ExecutionError with CUDA's
name for it.

Through NVIDIA's own bindings (`cuda-python`), which changed their module's name between releases.
Not run on hardware; the names are checked against the bindings of CUDA 11.8 to 13.2.
"""

from __future__ import annotations

import ctypes
from typing import Any, Callable, List, Tuple

import numpy as np

from edgevlm_runner.errors import ExecutionError, RuntimeUnavailable

_MENDING = {
    True: "Close other programs that use the GPU; if it stays, compile for a smaller context or fewer tiles.",
    False: "Check that this process sees the GPU and its driver; a container needs `--runtime nvidia`.",
}
"""Whether memory was short → what to do."""


class Cuda:
    """The first CUDA device with a stream of its own; all its memory is freed by `close`.

    Raises RuntimeUnavailable when cuda-python is missing, ExecutionError when there is no device.
    """

    def __init__(self) -> None:
        self._cudart = _import_cudart()
        self._device: List[int] = []
        self._pinned: List[int] = []
        self._graphs: List[Any] = []
        self.allocated = 0
        """Bytes of device memory that were allocated here."""
        self._free_before = self.memory()[0]
        self._stream = self._checked(self._cudart.cudaStreamCreate())

    @property
    def stream(self) -> int:
        return int(self._stream)

    def memory(self) -> Tuple[int, int]:
        """(free, total) bytes of device memory."""
        cudart = self._cudart
        free, total = self._checked(cudart.cudaMemGetInfo())
        return int(free), int(total)

    def taken(self) -> int:
        """Bytes by which free device memory shrank since this object was made, whoever took them."""
        return self._free_before - self.memory()[0]

    def device_name(self) -> str:
        """Such as "Orin (SM 8.7)"."""
        cudart = self._cudart
        name = self._checked(cudart.cudaGetDeviceProperties(0)).name
        text = name.decode() if isinstance(name, bytes) else str(name)
        major = self._attribute(cudart.cudaDeviceAttr.cudaDevAttrComputeCapabilityMajor)
        minor = self._attribute(cudart.cudaDeviceAttr.cudaDevAttrComputeCapabilityMinor)
        return f"{text.strip()} (SM {major}.{minor})"

    def shares_memory(self) -> bool:
        """Whether CPU and GPU use the same memory chips, as on a Jetson."""
        cudart = self._cudart
        return bool(self._attribute(cudart.cudaDeviceAttr.cudaDevAttrIntegrated))

    def versions(self) -> Tuple[str, str]:
        """(runtime, newest that the driver supports), such as ("12.6", "12.6")."""
        cudart = self._cudart
        runtime = int(self._checked(cudart.cudaRuntimeGetVersion()))
        driver = int(self._checked(cudart.cudaDriverGetVersion()))
        return _version(runtime), _version(driver)

    def allocate(self, size: int) -> int:
        """Address of `size` zeroed bytes on the device."""
        cudart = self._cudart
        size = max(size, 1)
        address = int(self._checked(cudart.cudaMalloc(size), f"allocating {size:,} bytes"))
        self._device.append(address)
        self.allocated += size
        self._checked(cudart.cudaMemsetAsync(address, 0, size, self._stream))
        return address

    def allocate_pinned(self, count: int, dtype: Any) -> np.ndarray:
        """`count` elements of page-locked host memory: the device copies from and to it without a detour."""
        cudart = self._cudart
        size = max(count, 1) * np.dtype(dtype).itemsize
        address = int(self._checked(cudart.cudaHostAlloc(size, cudart.cudaHostAllocDefault)))
        self._pinned.append(address)
        return np.frombuffer((ctypes.c_byte * size).from_address(address), dtype)

    def upload(self, address: int, source: np.ndarray) -> None:
        """Enqueue a copy of pinned host memory to the device."""
        cudart = self._cudart
        kind = cudart.cudaMemcpyKind.cudaMemcpyHostToDevice
        self._checked(cudart.cudaMemcpyAsync(address, source.ctypes.data, source.nbytes, kind, self._stream))

    def download(self, target: np.ndarray, address: int) -> None:
        """Enqueue a copy from the device into pinned host memory."""
        cudart = self._cudart
        kind = cudart.cudaMemcpyKind.cudaMemcpyDeviceToHost
        self._checked(cudart.cudaMemcpyAsync(target.ctypes.data, address, target.nbytes, kind, self._stream))

    def copy_rows(
        self, target: int, target_pitch: int, source: int, source_pitch: int, width: int, rows: int
    ) -> None:
        """Enqueue a copy of `rows` runs of `width` bytes, `pitch` bytes apart, within the device."""
        cudart = self._cudart
        kind = cudart.cudaMemcpyKind.cudaMemcpyDeviceToDevice
        self._checked(
            cudart.cudaMemcpy2DAsync(
                target, target_pitch, source, source_pitch, width, rows, kind, self._stream
            )
        )

    def synchronize(self) -> None:
        """Wait until everything that was enqueued is done."""
        cudart = self._cudart
        self._checked(cudart.cudaStreamSynchronize(self._stream))

    def capture(self, enqueue: Callable[[], None]) -> Any:
        """What `enqueue` puts on the stream as a graph that `launch` repeats at the cost of one call.

        Raises ExecutionError when something in it cannot be captured; the stream can be used afterwards.
        """
        cudart = self._cudart
        mode = cudart.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        self._checked(cudart.cudaStreamBeginCapture(self._stream, mode))
        try:
            enqueue()
        except ExecutionError:
            cudart.cudaStreamEndCapture(self._stream)
            cudart.cudaGetLastError()
            raise
        graph = self._checked(cudart.cudaStreamEndCapture(self._stream), "capturing a graph")
        executable = self._checked(cudart.cudaGraphInstantiateWithFlags(graph, 0))
        self._checked(cudart.cudaGraphDestroy(graph))
        self._graphs.append(executable)
        return executable

    def launch(self, graph: Any) -> None:
        """Enqueue all that was captured."""
        cudart = self._cudart
        self._checked(cudart.cudaGraphLaunch(graph, self._stream))

    def close(self) -> None:
        """Free everything; afterwards the object is of no use."""
        cudart = self._cudart
        for graph in self._graphs:
            cudart.cudaGraphExecDestroy(graph)
        for address in self._device:
            cudart.cudaFree(address)
        for address in self._pinned:
            cudart.cudaFreeHost(address)
        if self._stream is not None:
            cudart.cudaStreamDestroy(self._stream)
        self._graphs, self._device, self._pinned, self._stream = [], [], [], None

    def _attribute(self, attribute: Any) -> int:
        cudart = self._cudart
        return int(self._checked(cudart.cudaDeviceGetAttribute(attribute, 0)))

    def _checked(self, result: Any, doing: str = "") -> Any:
        """What a call returned after its error code: nothing, one value or a tuple."""
        cudart = self._cudart
        error, values = result[0], result[1:]
        if int(error) != 0:
            name = cudart.cudaGetErrorName(error)[1]
            text = name.decode() if isinstance(name, bytes) else str(name)
            short = "MemoryAllocation" in text
            raise ExecutionError(f"CUDA: {text}{' while ' + doing if doing else ''}. {_MENDING[short]}")
        return values[0] if len(values) == 1 else values


def _import_cudart() -> Any:
    try:
        from cuda.bindings import runtime as cudart
    except ImportError:
        try:
            from cuda import cudart
        except ImportError as error:
            raise RuntimeUnavailable(
                f"cuda-python cannot be imported ({error}). Install the one of the board's CUDA release: "
                "pip install 'cuda-python<12' on JetPack 5, 'cuda-python<13' on JetPack 6, cuda-python on 7."
            ) from error
    return cudart


def _version(number: int) -> str:
    """12060 → "12.6"."""
    return f"{number // 1000}.{number % 1000 // 10}"
