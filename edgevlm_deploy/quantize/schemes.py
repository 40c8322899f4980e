"""What a scheme means in numbers: bits, columns per scale, kind of activation.

A recipe names no device, and runtimes store the same idea differently: ONNX Runtime's MatMulNBits wants
8-bit weights in groups, LiteRT's kernels and TensorRT want them per channel. So the meaning depends on the
backend and, for LiteRT, on the accelerator.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass

from edgevlm_deploy.errors import PlanError
from edgevlm_deploy.recipe import Algorithm, Component, Precision, Scheme
from edgevlm_deploy.target import Backend


@dataclass(frozen=True)
class WeightFormat:
    """How the weights [N, K] of one module are stored, and whether its input is quantised too."""

    bits: int
    group: int | None
    """Columns that share a scale; None is one scale per output channel (per row of an embedding)."""
    symmetric: bool = True
    """Else each scale has a zero-point."""
    static_activation: bool = False
    """int8 input with one calibrated scale per tensor."""
    whole_groups: bool = False
    """Whether groups must divide the columns; else the last group may be short."""
    graph_activation_bits: int | None = None
    """Bits of inputs and outputs that the backend calibrates in its own float graph. They are asymmetric
    and belong to that graph, so the table of integers does not hold them."""

    def block(self, columns: int) -> int:
        """Columns per scale in a matrix of `columns` columns, as `QuantizedLinear.block` states it."""
        return columns if self.group is None else self.group


_GROUPED: Mapping[Scheme, WeightFormat] = {
    Scheme.W8A8: WeightFormat(bits=8, group=None, static_activation=True),
    Scheme.W8A16: WeightFormat(bits=8, group=32),
    Scheme.W4A16_G32: WeightFormat(bits=4, group=32),
    Scheme.W4A16_G64: WeightFormat(bits=4, group=64),
    Scheme.W4A16_G128: WeightFormat(bits=4, group=128),
    Scheme.W4A16_CHANNEL: WeightFormat(bits=4, group=None),
    Scheme.W3A16_CHANNEL: WeightFormat(bits=3, group=None),
}

# Int8 inputs get their range while running, so no scheme has calibrated ones. The GPU computes the same
# integers in fp16.
_LITERT_FLOAT_INPUTS: Mapping[Scheme, WeightFormat] = {
    Scheme.W8A8: WeightFormat(bits=8, group=None),
    Scheme.W8A16: WeightFormat(bits=8, group=None),
    Scheme.W4A16_G32: WeightFormat(bits=4, group=32, whole_groups=True),
    Scheme.W4A16_G64: WeightFormat(bits=4, group=64, whole_groups=True),
    Scheme.W4A16_G128: WeightFormat(bits=4, group=128, whole_groups=True),
    Scheme.W4A16_CHANNEL: WeightFormat(bits=4, group=None),
    Scheme.W3A16_CHANNEL: WeightFormat(bits=3, group=None),
}

# Hexagon takes calibrated integers on both sides of a product, and one scale per channel.
_LITERT_NPU: Mapping[Scheme, WeightFormat] = {
    Scheme.W8A8: WeightFormat(bits=8, group=None, graph_activation_bits=8),
    Scheme.W8A16: WeightFormat(bits=8, group=None, graph_activation_bits=16),
}

# Explicit quantisation as TensorRT reads it; int8 weights with float inputs are dequantised when the
# engine is built, int4 blocks while it runs. What a board executes is in its target's `formats`.
_TENSORRT: Mapping[Scheme, WeightFormat] = {
    Scheme.W8A8: WeightFormat(bits=8, group=None, static_activation=True),
    Scheme.W8A16: WeightFormat(bits=8, group=None),
    Scheme.W4A16_G64: WeightFormat(bits=4, group=64, whole_groups=True),
    Scheme.W4A16_G128: WeightFormat(bits=4, group=128, whole_groups=True),
}

_LITERT = {"cpu": _LITERT_FLOAT_INPUTS, "gpu": _LITERT_FLOAT_INPUTS, "npu": _LITERT_NPU}

_EMBEDDING_FORMAT = WeightFormat(bits=8, group=None)


def formats(backend: Backend, accelerator: str) -> Mapping[Scheme, WeightFormat]:
    """Every scheme that the accelerator accepts, and what it means there. All formats are symmetric; only
    ONNX Runtime takes zero-points, when an algorithm asks for them.

    `Scheme.FP16` has no format: such a module is not in the table.
    Raises PlanError for an accelerator that the backend does not have.
    """
    if backend is Backend.TENSORRT:
        return _TENSORRT
    if backend is Backend.ONNXRUNTIME:
        return _GROUPED
    if accelerator not in _LITERT:
        raise PlanError(f"LiteRT has no accelerator {accelerator!r}; it has {', '.join(_LITERT)}.")
    return _LITERT[accelerator]


def weight_format(
    precision: Precision, component: Component, offered: Mapping[Scheme, WeightFormat]
) -> WeightFormat:
    """An embedding has one scale per row on every device, because a lookup reads one row."""
    if component is Component.EMBEDDING and precision.scheme is Scheme.W8A16:
        return _EMBEDDING_FORMAT
    symmetric = precision.algorithm is not Algorithm.HQQ
    return dataclasses.replace(offered[precision.scheme], symmetric=symmetric)
