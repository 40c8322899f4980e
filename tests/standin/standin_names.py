"""What the stand-ins for TensorRT share: the names of a release, and classes that offer no other."""

from __future__ import annotations

import enum
from typing import Any

import numpy as np
import onnx
from standin_device import TENSORRT, listed

_, NAMES = listed("tensorrt", TENSORRT)
RELEASE = tuple(int(part) for part in TENSORRT.split("."))
UNLISTED = {"ILayer": frozenset({"name", "type", "get_input"})}
"""Real members that the lists leave out: those of ILayer, and of every class its `name`."""

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


class Member(enum.Enum):
    """Equal to nothing but itself, as the bindings' enumerations are."""

    def __int__(self) -> int:
        return int(self.value)


def _enum(name: str) -> Any:
    return Member(name, [one for one in NAMES[name] if one != "itemsize"], start=0)


ENUMERATIONS = {name: _enum(name) for name in ENUMS if name in NAMES}
DATA = ENUMERATIONS["DataType"]
FLAG = ENUMERATIONS["BuilderFlag"]
TYPES = {
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
    known = {*NAMES.get(owner.__name__, ()), *UNLISTED.get(owner.__name__, {"name"})}
    if not name.startswith("_") and name not in known:
        raise AttributeError(f"TensorRT {TENSORRT}: {owner.__name__} has no {name}")


class ILogger:
    Severity = enum.IntEnum("Severity", ["INTERNAL_ERROR", "ERROR", "WARNING", "INFO", "VERBOSE"])

    def __init__(self) -> None:
        self._ready = True

    def log(self, severity: Any, msg: str) -> None:
        raise NotImplementedError


def error(logger: Any, text: str) -> None:
    assert logger._ready, "ILogger.__init__ was not called"
    logger.log(ILogger.Severity.ERROR, text)


class IHostMemory(bytes):
    @property
    def nbytes(self) -> int:
        return len(self)
