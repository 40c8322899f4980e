"""A stand-in for NVIDIA's `tensorrt`: the names of one real release; ONNX Runtime computes."""

from typing import Any

import standin_tensorrt

__version__ = {"8.6": "8.6.2", "10.3": "10.3.0", "10.16": "10.16.2.10", "11.1": "11.1.0"}.get(
    standin_tensorrt.TENSORRT, standin_tensorrt.TENSORRT + ".0"
)


def __getattr__(name: str) -> Any:
    return standin_tensorrt.attribute(name)
