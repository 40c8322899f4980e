"""From a recipe's components and overrides to a request per module."""

from __future__ import annotations

import pytest
from precision import wanted

from edgevlm_deploy.errors import PlanError
from edgevlm_deploy.quantize.request import check_columns, resolve
from edgevlm_deploy.recipe import Algorithm, Component, ModuleOverride, Precision, Quantizer, Scheme
from edgevlm_deploy.target import Backend

INC, TENSORRT = Quantizer.NEURAL_COMPRESSOR, Quantizer.TENSORRT
MODULES = {
    "vision_encoder": ["v.layers.0.q_proj", "v.layers.0.fc1"],
    "projector": ["c.proj"],
    "embedding": ["t.embed"],
    "decoder": [f"t.layers.{i}.{n}" for i in (0, 1) for n in ("q_proj", "down_proj")],
    "head": ["lm_head"],
}


def precision(scheme: Scheme, algorithm: Algorithm = Algorithm.RTN) -> Precision:
    return Precision(scheme=scheme, algorithm=algorithm)


def test_components_and_overrides() -> None:
    request = resolve(
        {
            Component.DECODER: precision(Scheme.W4A16_G32, Algorithm.GPTQ),
            Component.EMBEDDING: precision(Scheme.W8A16),
        },
        (
            ModuleOverride(pattern="t.layers.*.down_proj", scheme=Scheme.W8A16),
            ModuleOverride(pattern="t.layers.1.q_proj", scheme=Scheme.FP16),
            ModuleOverride(pattern="lm_head", scheme=Scheme.W4A16_CHANNEL),
        ),
        MODULES,
        INC,
    )
    assert request == {
        "t.embed": wanted(Component.EMBEDDING, Scheme.W8A16, Algorithm.RTN),
        "t.layers.0.q_proj": wanted(Component.DECODER, Scheme.W4A16_G32, Algorithm.GPTQ),
        "t.layers.0.down_proj": wanted(Component.DECODER, Scheme.W8A16, Algorithm.RTN),
        "t.layers.1.down_proj": wanted(Component.DECODER, Scheme.W8A16, Algorithm.RTN),
        "lm_head": wanted(Component.HEAD, Scheme.W4A16_CHANNEL, Algorithm.RTN),
    }


def test_later_overrides_win() -> None:
    overrides = (
        ModuleOverride(pattern="c.*", scheme=Scheme.W8A16),
        ModuleOverride(pattern="c.proj", scheme=Scheme.W4A16_G64),
    )
    assert resolve({}, overrides, MODULES, INC)["c.proj"].scheme is Scheme.W4A16_G64


@pytest.mark.parametrize(
    ("scheme", "component", "bits", "block", "static"),
    [
        (Scheme.W8A8, Component.VISION_ENCODER, 8, 96, True),
        (Scheme.W8A16, Component.HEAD, 8, 32, False),
        (Scheme.W8A16, Component.EMBEDDING, 8, 96, False),
        (Scheme.W4A16_G32, Component.DECODER, 4, 32, False),
        (Scheme.W4A16_G64, Component.DECODER, 4, 64, False),
        (Scheme.W4A16_G128, Component.DECODER, 4, 128, False),
        (Scheme.W4A16_CHANNEL, Component.DECODER, 4, 96, False),
        (Scheme.W3A16_CHANNEL, Component.DECODER, 3, 96, False),
    ],
)
def test_formats(scheme: Scheme, component: Component, bits: int, block: int, static: bool) -> None:
    form = wanted(component, scheme).format
    assert (form.bits, form.block(96), form.static_activation) == (bits, block, static)


def test_every_problem_is_reported_at_once() -> None:
    with pytest.raises(PlanError) as caught:
        resolve(
            {Component.DECODER: precision(Scheme.W8A16, Algorithm.GPTQ), Component.HEAD: Precision()},
            (ModuleOverride(pattern="nothing.*", scheme=Scheme.W8A16),),
            {"decoder": MODULES["decoder"]},
            INC,
        )
    message = str(caught.value)
    assert "no such component" in message and "`nothing.*` matches no module" in message
    assert "8-bit weights are rounded to nearest" in message


@pytest.mark.parametrize(
    ("quantizer", "component", "scheme", "algorithm"),
    [
        (INC, Component.EMBEDDING, Scheme.W4A16_G32, Algorithm.RTN),
        (INC, Component.DECODER, Scheme.W8A8, Algorithm.RTN),
        (INC, Component.HEAD, Scheme.W4A16_G32, Algorithm.GPTQ),
        (INC, Component.PROJECTOR, Scheme.W4A16_G32, Algorithm.AWQ),
        (INC, Component.VISION_ENCODER, Scheme.W4A16_G32, Algorithm.MBQ),
        (INC, Component.DECODER, Scheme.W8A16, Algorithm.AWQ),
        (INC, Component.HEAD, Scheme.W4A16_G32, Algorithm.MBQ),
        (TENSORRT, Component.DECODER, Scheme.W4A16_G128, Algorithm.MBQ),
        (INC, Component.VISION_ENCODER, Scheme.W8A16, Algorithm.SMOOTHQUANT),
        (INC, Component.PROJECTOR, Scheme.W8A8, Algorithm.SMOOTHQUANT),
        (TENSORRT, Component.DECODER, Scheme.W4A16_G128, Algorithm.GPTQ),
        (TENSORRT, Component.DECODER, Scheme.W4A16_G128, Algorithm.SMOOTHQUANT),
        (TENSORRT, Component.DECODER, Scheme.W4A16_CHANNEL, Algorithm.AWQ),
    ],
)
def test_what_a_quantizer_does_not_offer(
    quantizer: Quantizer, component: Component, scheme: Scheme, algorithm: Algorithm
) -> None:
    with pytest.raises(PlanError, match=f"{component.value} {scheme.value}/{algorithm.value}: "):
        resolve({component: precision(scheme, algorithm)}, (), MODULES, quantizer)


def test_awq_and_mbq_are_not_mixed_in_one_decoder() -> None:
    override = ModuleOverride(pattern="t.layers.0.*", scheme=Scheme.W4A16_G32, algorithm=Algorithm.AWQ)
    with pytest.raises(PlanError, match="awq and mbq cannot be mixed"):
        resolve({Component.DECODER: precision(Scheme.W4A16_G32, Algorithm.MBQ)}, (override,), MODULES, INC)


def test_awq_needs_groups_that_divide_the_columns() -> None:
    request = {
        "gptq": wanted(Component.DECODER, Scheme.W4A16_G32, Algorithm.GPTQ),
        "awq": wanted(Component.DECODER, Scheme.W4A16_G32, Algorithm.AWQ),
    }
    check_columns(request, {"gptq": 40, "awq": 64})
    with pytest.raises(PlanError, match="awq: awq with groups of 32"):
        check_columns(request, {"gptq": 40, "awq": 40})


@pytest.mark.parametrize("accelerator", ["cpu", "gpu"])
@pytest.mark.parametrize(
    ("scheme", "bits", "block"),
    [
        (Scheme.W8A8, 8, 128),
        (Scheme.W8A16, 8, 128),
        (Scheme.W4A16_G32, 4, 32),
        (Scheme.W4A16_G128, 4, 128),
        (Scheme.W4A16_CHANNEL, 4, 128),
        (Scheme.W3A16_CHANNEL, 3, 128),
    ],
)
def test_formats_of_litert(accelerator: str, scheme: Scheme, bits: int, block: int) -> None:
    """Eight bits are per channel, and no input range is in the table: LiteRT finds it while running."""
    request = resolve(
        {Component.DECODER: precision(scheme), Component.EMBEDDING: precision(Scheme.W8A16)},
        (),
        MODULES,
        INC,
        Backend.LITERT,
        accelerator,
    )
    form = request["t.layers.0.q_proj"].format
    assert (form.bits, form.block(128), form.static_activation) == (bits, block, False)
    assert request["t.embed"].format.block(128) == 128


def test_what_the_npu_refuses_is_named_with_what_it_accepts() -> None:
    wishes = {
        Component.DECODER: precision(Scheme.W4A16_G32, Algorithm.GPTQ),
        Component.HEAD: precision(Scheme.W8A8),
    }
    with pytest.raises(
        PlanError, match=r"decoder w4a16_g32: litert on its npu refuses it; it accepts w8a8, w8a16"
    ):
        resolve(wishes, (), MODULES, INC, Backend.LITERT, "npu")
    request = resolve({Component.HEAD: precision(Scheme.W8A16)}, (), MODULES, INC, Backend.LITERT, "npu")
    assert request["lm_head"].format.graph_activation_bits == 16


def test_an_accelerator_that_litert_does_not_have() -> None:
    with pytest.raises(PlanError, match="no accelerator 'dla'; it has cpu, gpu, npu"):
        resolve({}, (), MODULES, INC, Backend.LITERT, "dla")


def test_litert_stores_whole_groups_only() -> None:
    request = {"up": wanted(Component.DECODER, Scheme.W4A16_G64, backend=Backend.LITERT)}
    check_columns(request, {"up": 128})
    with pytest.raises(PlanError, match="up: on this target groups of 64 need a multiple"):
        check_columns(request, {"up": 104})
