"""The emulation rounds inputs as ONNX Runtime's own kernel does."""

from __future__ import annotations

import numpy as np
import pytest

from edgevlm_deploy import resources
from edgevlm_deploy.export import dynamic_inputs, packing
from edgevlm_deploy.quantize import QuantizedLinear
from edgevlm_deploy.quantize.uniform import quantize_symmetric
from edgevlm_deploy.target import Target

ROWS, COLUMNS = 32, 192


def quantized(bits: int, block: int) -> QuantizedLinear:
    weight = np.random.default_rng(1).normal(size=(ROWS, COLUMNS)).astype(np.float32)
    q, scale = quantize_symmetric(weight, bits, block)
    return QuantizedLinear(q, scale, None, bits, block)


def kernel(linear: QuantizedLinear, value: np.ndarray, accuracy_level: int) -> np.ndarray:
    """`MatMulNBits` itself on float32 [T, K]."""
    import onnxruntime
    from onnx import TensorProto, helper, numpy_helper

    packed = packing.pack(linear, "module")
    node = helper.make_node(
        "MatMulNBits",
        ["x", "w", "s"],
        ["y"],
        domain="com.microsoft",
        K=COLUMNS,
        N=ROWS,
        bits=packed.container,
        block_size=packed.block,
        accuracy_level=accuracy_level,
    )
    shapes = {"x": ["T", COLUMNS], "y": ["T", ROWS]}
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in shapes.items())
    constants = [numpy_helper.from_array(packed.weight, "w"), numpy_helper.from_array(packed.scale, "s")]
    graph = helper.make_graph([node], "g", [x], [y], constants)
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    found: np.ndarray = session.run(None, {"x": value})[0]
    return found


@pytest.mark.parametrize(("bits", "block"), [(4, 32), (4, 64), (4, 128)])
@pytest.mark.parametrize("tokens", [1, 8])
def test_blocks_are_rounded_as_the_kernel_rounds_them(bits: int, block: int, tokens: int) -> None:
    import torch

    linear = quantized(bits, block)
    value = np.random.default_rng(2).normal(size=(tokens, COLUMNS)).astype(np.float32)
    rounding = dynamic_inputs.of(resources.target("host-cpu"), linear)
    assert rounding is not None
    rounded = rounding(torch.from_numpy(value)).numpy()
    exact, fast = kernel(linear, value, 1), kernel(linear, value, 4)
    ours = rounded @ linear.dequantize().T
    moved = np.abs(fast - exact).max()
    assert moved > 1e-3, "the kernel does round"
    assert np.abs(ours - fast).max() < 0.05 * moved


def test_rows_keep_zero_and_their_range() -> None:
    import torch

    rounding = dynamic_inputs.of(resources.target("snapdragon-8-gen3"), quantized(4, 32))
    assert rounding is not None
    value = torch.tensor([[0.0, -1.0, 3.0, 0.5], [2.0, 2.0, 1.0, 0.0], [0.0, 0.0, 0.0, 0.0]])
    rounded = rounding(value)
    assert bool((rounded[value == 0] == 0).all())
    steps = (value.amax(-1) - value.amin(-1).clamp(max=0)) / 255
    assert bool(((rounded - value).abs() <= steps[:, None] * 0.51 + 1e-7).all())
    assert rounding(torch.tensor([3, 4])).tolist() == [3, 4], "token ids pass"


@pytest.mark.parametrize("target", ["orin"])
def test_engines_compute_as_the_graph_says(target: str) -> None:
    known: Target = resources.target(target)
    assert dynamic_inputs.of(known, quantized(4, 64)) is None
