"""CUDA's runtime on host memory, with the error codes and the strides of the real one."""

from __future__ import annotations

import ctypes
import enum
from collections.abc import Callable
from typing import Any

from standin_device import CAPTURE_INVALIDATED, CUDA, DEVICE, FAILURES, INVALID_VALUE, OK, TOTAL, listed

MODULE, NAMES = listed("cuda", CUDA)
VERSION = int(CUDA.split(".")[0]) * 1000 + int(CUDA.split(".")[1]) * 10


class Error(enum.IntEnum):
    cudaSuccess = OK
    cudaErrorInvalidValue = INVALID_VALUE
    cudaErrorMemoryAllocation = 2
    cudaErrorStreamCaptureInvalidated = CAPTURE_INVALIDATED


class Properties:
    name = b"Orin"


class Stream:
    def __int__(self) -> int:
        return 7


STREAM = Stream()


def cudaMemGetInfo() -> Any:
    return Error(OK), DEVICE.free, TOTAL


def cudaStreamCreate() -> Any:
    return Error(OK), STREAM


def cudaStreamDestroy(stream: Any) -> Any:
    return (Error(OK),)


def cudaStreamSynchronize(stream: Any) -> Any:
    assert stream is STREAM and DEVICE.captured is None
    DEVICE.finish()
    return (Error(OK),)


def cudaGetDeviceProperties(device: int) -> Any:
    return Error(OK), Properties()


def cudaDeviceGetAttribute(attribute: Any, device: int) -> Any:
    answers = {"cudaDevAttrComputeCapabilityMajor": 8, "cudaDevAttrComputeCapabilityMinor": 7}
    return Error(OK), answers.get(attribute.name, 1)


def cudaRuntimeGetVersion() -> Any:
    return Error(OK), VERSION


def cudaDriverGetVersion() -> Any:
    return Error(OK), VERSION


def cudaGetErrorName(error: Error) -> Any:
    return Error(OK), error.name.encode()


def cudaGetLastError() -> Any:
    return (Error(OK),)


def cudaMalloc(size: int) -> Any:
    if size > DEVICE.free or "malloc" in FAILURES:
        return Error.cudaErrorMemoryAllocation, None
    return Error(OK), DEVICE.allocate(size)


def cudaFree(address: int) -> Any:
    DEVICE.finish()
    del DEVICE.blocks[address]
    return (Error(OK),)


cudaFreeHost = cudaFree
cudaHostAllocDefault = 0


def cudaHostAlloc(size: int, flags: int) -> Any:
    return Error(OK), DEVICE.allocate(size)


def cudaMemsetAsync(address: int, value: int, size: int, stream: Any) -> Any:
    if not DEVICE.holds(address, size):
        return (Error(INVALID_VALUE),)
    DEVICE.put(lambda: _set(address, value, size))
    return (Error(OK),)


def _set(address: int, value: int, size: int) -> None:
    ctypes.memset(address, value, size)


def cudaMemcpyAsync(target: int, source: int, size: int, kind: Any, stream: Any) -> Any:
    return cudaMemcpy2DAsync(target, size, source, size, size, 1, kind, stream)


def cudaMemcpy2DAsync(
    target: int,
    target_pitch: int,
    source: int,
    source_pitch: int,
    width: int,
    rows: int,
    kind: Any,
    stream: Any,
) -> Any:
    DEVICE.strided += rows > 1
    ends = [(target, target_pitch), (source, source_pitch)]
    inside = all(DEVICE.holds(start, (rows - 1) * pitch + width) for start, pitch in ends)
    if not inside or width > min(target_pitch, source_pitch) or stream is not STREAM:
        return (Error(INVALID_VALUE),)

    def work() -> None:
        for row in range(rows):
            ctypes.memmove(target + row * target_pitch, source + row * source_pitch, width)

    DEVICE.put(work)
    return (Error(OK),)


def cudaStreamBeginCapture(stream: Any, mode: Any) -> Any:
    assert DEVICE.captured is None
    DEVICE.captured, DEVICE.capture_broken = [], "capture" in FAILURES
    return (Error(OK),)


def cudaStreamEndCapture(stream: Any) -> Any:
    graph, DEVICE.captured = DEVICE.captured, None
    if DEVICE.capture_broken:
        return Error(CAPTURE_INVALIDATED), None
    return Error(OK), graph


def cudaGraphInstantiateWithFlags(graph: Any, flags: int) -> Any:
    return Error(OK), list(graph)


def cudaGraphDestroy(graph: Any) -> Any:
    return (Error(OK),)


def cudaGraphExecDestroy(graph: Any) -> Any:
    graph.clear()
    return (Error(OK),)


def cudaGraphLaunch(graph: Any, stream: Any) -> Any:
    DEVICE.launches += 1
    for work in graph:
        DEVICE.put(work)
    return (Error(OK),)


def attribute(module: str) -> Callable[[str], Any]:
    """`__getattr__` of the module that cuda-python of this release has; the other one cannot be imported."""
    if module != MODULE:
        raise ImportError(f"no {module} in this release")

    def get(name: str) -> Any:
        if name not in NAMES:
            raise AttributeError(f"CUDA {CUDA} has no {name}")
        if name in ("cudaMemcpyKind", "cudaStreamCaptureMode", "cudaDeviceAttr"):
            return enum.IntEnum(name, NAMES[name])
        return globals()[name]

    return get
