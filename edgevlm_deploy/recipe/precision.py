"""Bits, algorithms and quantisers: which module gets which precision."""

from __future__ import annotations

from enum import Enum

from edgevlm_deploy.config import Frozen


class Component(str, Enum):
    VISION_ENCODER = "vision_encoder"
    PROJECTOR = "projector"
    EMBEDDING = "embedding"
    DECODER = "decoder"
    HEAD = "head"
    TEXT_ENCODER = "text_encoder"
    """Of a dual encoder; its projector is the projections into the common space."""


class Scheme(str, Enum):
    """Bits of weights (w) and activations (a); g is the number of columns that share a scale."""

    FP16 = "fp16"
    W8A8 = "w8a8"
    W8A16 = "w8a16"
    W4A16_G32 = "w4a16_g32"
    W4A16_G64 = "w4a16_g64"
    W4A16_G128 = "w4a16_g128"
    W4A16_CHANNEL = "w4a16_channel"
    W3A16_CHANNEL = "w3a16_channel"


class Algorithm(str, Enum):
    RTN = "rtn"
    GPTQ = "gptq"
    AWQ = "awq"
    SMOOTHQUANT = "smoothquant"
    HQQ = "hqq"
    MBQ = "mbq"
    AUTOROUND = "autoround"


class Quantizer(str, Enum):
    NEURAL_COMPRESSOR = "neural-compressor"
    TENSORRT = "tensorrt"
    """NVIDIA Model Optimizer, which is how TensorRT is quantised for today."""


class Precision(Frozen):
    scheme: Scheme = Scheme.FP16
    algorithm: Algorithm = Algorithm.RTN


class ModuleOverride(Frozen):
    """Mixed precision: modules whose name matches `pattern` (fnmatch) get their own scheme."""

    pattern: str
    scheme: Scheme
    algorithm: Algorithm = Algorithm.RTN
