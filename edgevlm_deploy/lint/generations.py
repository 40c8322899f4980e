"""What the ONNX parser of each TensorRT generation takes: operators, their types, opsets, quantised types.

Source: `docs/operators.md` and `docs/Changelog.md` of github.com/onnx/onnx-tensorrt at the commit that each
release of github.com/NVIDIA/TensorRT pins; `Generation.source` names it. Where the page of a release itself
was not to be had, that field says from which neighbour and which line of the changelog it was derived.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from edgevlm_deploy.errors import PlanError

Operators = Mapping[str, frozenset[str]]
"""Operator of the ONNX domain → types of its data, named as in operators.md."""


@dataclass(frozen=True)
class Generation:
    """Releases from `since` (major, minor) up to the next generation.

    opset             first and last opset of the ONNX domain that the parser documents
    built_with_opset  last opset of the ONNX release that the parser is built with; it has no upper check
    quantized         types of QuantizeLinear and DequantizeLinear
    int64             INT64 is a type of its own; before, the parser casts it to INT32
    custom            operators that the parser defines itself, in any domain
    """

    since: tuple[int, int]
    opset: tuple[int, int]
    built_with_opset: int
    quantized: frozenset[str]
    int64: bool
    operators: Operators
    custom: frozenset[str]
    source: str

    @property
    def name(self) -> str:
        return ".".join(map(str, self.since))


def _operators(*groups: tuple[str, str]) -> dict[str, frozenset[str]]:
    return {name: frozenset(types.split()) for types, names in groups for name in names.split()}


_TENSORRT_8_2 = _operators(
    (
        "FP32 FP16 INT32",
        "Abs Add DepthToSpace Div Equal Greater GreaterOrEqual IsNaN Less LessOrEqual Max Mean Min Mul Neg "
        "Range SpaceToDepth Sub Sum",
    ),
    (
        "FP32 FP16",
        "Acos Acosh ArgMax ArgMin Asin Asinh Atan Atanh BatchNormalization Ceil Celu Cos Cosh CumSum Dropout "
        "Einsum Erf Exp Floor GRU ImageScaler InstanceNormalization Log LogSoftmax LRN LSTM LpNormalization "
        "MatMul NonMaxSuppression Pow QuantizeLinear RandomUniform RandomUniformLike ReduceL1 ReduceL2 "
        "ReduceLogSum ReduceLogSumExp ReduceMax ReduceMean ReduceMin ReduceProd ReduceSum ReduceSumSquare "
        "Resize ReverseSequence RNN Scan Sin Sinh Softmax Sqrt Tan TopK Upsample",
    ),
    ("BOOL", "And Not Or"),
    (
        "FP32 FP16 INT8 INT32",
        "AveragePool Gather GatherElements GatherND Pad Scatter ScatterElements ScatterND Sign",
    ),
    (
        "FP32 FP16 INT32 INT8 BOOL",
        "Cast Concat Constant Identity Reshape Shape Size Slice Squeeze Transpose Unsqueeze",
    ),
    (
        "FP32 FP16 INT8",
        "Clip Conv ConvTranspose Elu Gemm GlobalAveragePool GlobalLpPool GlobalMaxPool HardSigmoid LeakyRelu "
        "LpPool MaxPool ParametricSoftplus PRelu Relu Round ScaledTanh Selu Sigmoid Softplus Softsign Tanh "
        "ThresholdedRelu",
    ),
    ("FP32", "ConstantOfShape"),
    ("INT8", "DequantizeLinear"),
    ("FP32 FP16 INT32 BOOL", "Expand EyeLike Flatten If Loop Split Tile Where"),
)

_TENSORRT_8_5 = {
    **_TENSORRT_8_2,
    **_operators(
        ("FP32 FP16 INT32", "Mod Shrink"),
        (
            "FP32 FP16",
            "GridSample MeanVarianceNormalization NonZero RandomNormal RandomNormalLike Reciprocal RoiAlign",
        ),
        ("BOOL", "Xor"),
        ("FP32 FP16 INT8", "HardSwish"),
        ("FP32 FP16 INT32 INT8 BOOL", "Trilu Gather GatherElements GatherND"),
        ("FP32 FP16 INT32 BOOL", "OneHot"),
    ),
}

_TENSORRT_8_6 = {
    **_TENSORRT_8_5,
    **_operators(
        ("FP32 FP16", "GroupNormalization IsInf LayerNormalization"),
        ("FP32 FP16 INT32", "ArgMax ArgMin TopK"),
        ("FP32 FP16 INT32 INT8 BOOL", "ReverseSequence"),
        ("FP32 FP16 INT32 INT8 UINT8 BOOL", "Cast"),
    ),
}

_TENSORRT_10_3 = _operators(
    (
        "FP32 FP16 BF16 INT32 INT64",
        "Abs Add ArgMax ArgMin DepthToSpace Div Equal Greater GreaterOrEqual IsNaN Less LessOrEqual Max Min "
        "Mod Mul Neg Pad Range ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMax ReduceMean ReduceMin "
        "ReduceProd ReduceSum ReduceSumSquare Relu Scatter ScatterElements ScatterND Shrink Sign "
        "SpaceToDepth Sub Sum TopK",
    ),
    (
        "FP32 FP16 BF16",
        "Acos Acosh Asin Asinh Atan Atanh AveragePool BatchNormalization Ceil Celu Clip Conv ConvTranspose "
        "Cos Cosh CumSum Dropout Einsum Elu Erf Exp Floor Gemm GlobalAveragePool GlobalLpPool GlobalMaxPool "
        "GroupNormalization GRU HardSigmoid HardSwish Hardmax ImageScaler InstanceNormalization IsInf "
        "LayerNormalization LeakyRelu Log LogSoftmax LRN LSTM LpNormalization LpPool MatMul MaxPool "
        "MeanVarianceNormalization ParametricSoftplus Pow PRelu QuantizeLinear RandomNormal RandomNormalLike "
        "RandomUniform RandomUniformLike Reciprocal Resize RNN Round ScaledTanh Scan Selu Sigmoid Sin Sinh "
        "Softmax Softplus Softsign Sqrt Tan Tanh ThresholdedRelu Upsample",
    ),
    ("BOOL", "And Not Or Xor"),
    ("FP32 FP16 BF16 INT32 INT64 UINT8 BOOL", "Cast CastLike"),
    (
        "FP32 FP16 BF16 INT32 INT64 BOOL",
        "Concat Constant ConstantOfShape Expand EyeLike Flatten Gather GatherElements GatherND Identity If "
        "Loop OneHot Reshape ReverseSequence Shape Size Slice Split Squeeze Tile Transpose Trilu Unsqueeze "
        "Where",
    ),
    ("FP32 FP16", "DeformConv GridSample Mish NonMaxSuppression NonZero RoiAlign"),
    ("INT8 FP8 INT4", "DequantizeLinear"),
    ("FP32 FP16 BF16 INT8 INT32 INT64", "Gelu"),
    ("FP32 FP16 BF16 FP8 INT32 INT64", "Mean"),
)

_TENSORRT_10_13 = {
    **_TENSORRT_10_3,
    **_operators(
        ("FP32 FP16", "BlackmanWindow HammingWindow HannWindow"),
        ("FP32", "STFT"),
        ("FP32 FP16 BF16 INT32 INT64", "Pow"),
        ("FP32 FP16 BF16 FP8 FP4 INT4 INT32 INT64 BOOL", "Constant ConstantOfShape"),
        ("INT8 FP8 FP4 INT4", "DequantizeLinear"),
    ),
}

_TENSORRT_10_16 = {
    **_TENSORRT_10_13,
    **_operators(
        ("FP32 FP16 BF16 INT8 FP8", "Attention"),
        ("FP32 FP16 BF16", "RMSNormalization RotaryEmbedding"),
        ("FP32 FP16 BF16 INT32", "TensorScatter"),
    ),
}

_TENSORRT_11 = {**_TENSORRT_10_16, **_operators(("FP32 FP16 BF16", "Swish"))}

_INT8 = frozenset({"INT8"})
_TO_INT4 = frozenset({"INT8", "FP8", "INT4"})
_TO_FP4 = frozenset({"INT8", "FP8", "INT4", "FP4"})
_NO_CUSTOM: frozenset[str] = frozenset()
_CUSTOM_10 = frozenset(
    {"TRT_FP8QuantizeLinear", "TRT_FP8DequantizeLinear", "TRT_INT4QuantizeLinear", "TRT_INT4DequantizeLinear"}
)
_CUSTOM_11 = _CUSTOM_10 | {"TRT_Attention", "TRT_KVCacheUpdate", "TRT_MoE"}

GENERATIONS = (
    Generation(
        since=(8, 2),
        opset=(7, 13),
        built_with_opset=13,
        quantized=_INT8,
        int64=False,
        operators=_TENSORRT_8_2,
        custom=_NO_CUSTOM,
        source="operators.md at f42daee (8.2 GA)",
    ),
    Generation(
        since=(8, 5),
        opset=(7, 17),
        built_with_opset=17,
        quantized=_INT8,
        int64=False,
        operators=_TENSORRT_8_5,
        custom=_NO_CUSTOM,
        source="operators.md at fd119fe (8.5.3)",
    ),
    Generation(
        since=(8, 6),
        opset=(7, 17),
        built_with_opset=17,
        quantized=_INT8,
        int64=False,
        operators=_TENSORRT_8_6,
        custom=_NO_CUSTOM,
        source="operators.md at 6ba67d3 (8.6.1)",
    ),
    Generation(
        since=(10, 0),
        opset=(9, 20),
        built_with_opset=21,
        quantized=_TO_INT4,
        int64=True,
        operators=_TENSORRT_10_3,
        custom=_CUSTOM_10,
        source="operators.md and README (ONNX 1.16.0) at 96e7811 (10.1 GA); 10.2 and 10.3 added no operator "
        "(Changelog)",
    ),
    Generation(
        since=(10, 12),
        opset=(9, 22),
        built_with_opset=22,
        quantized=_TO_FP4,
        int64=True,
        operators=_TENSORRT_10_13,
        custom=_CUSTOM_10,
        source="operators.md at c727277 (10.14 GA) without Attention, which 10.14 added (Changelog); opset "
        "22 as documented before 10.14",
    ),
    Generation(
        since=(10, 15),
        opset=(9, 24),
        built_with_opset=24,
        quantized=_TO_FP4,
        int64=True,
        operators=_TENSORRT_10_16,
        custom=_CUSTOM_10,
        source="operators.md at 6bde659 (10.16 GA)",
    ),
    Generation(
        since=(11, 0),
        opset=(9, 24),
        built_with_opset=24,
        quantized=_TO_FP4,
        int64=True,
        operators=_TENSORRT_11,
        custom=_CUSTOM_11,
        source="operators.md at 7c51a63 (11.1 GA)",
    ),
)
"""Oldest first. Between the releases that a Jetson has, a release counts as the older neighbour."""


def generation(release: str) -> Generation:
    """The generation of a release such as "8.5.2" or "10.3".

    Raises PlanError when the release is older than what is described here, or no version at all.
    """
    try:
        major, minor = (int(part) for part in f"{release}.0".split(".")[:2])
    except ValueError:
        raise PlanError(
            f"{release!r} is not a TensorRT release; expected a version such as 10.3 or 8.6.2."
        ) from None
    known = [one for one in GENERATIONS if one.since <= (major, minor)]
    if not known:
        raise PlanError(
            f"TensorRT {release} is older than {GENERATIONS[0].name}, the first release with rules."
        )
    return known[-1]
