"""Recipe × target × model: everything that does not fit is said at once."""

from __future__ import annotations

import pytest

from edgevlm_deploy import plan, resources
from edgevlm_deploy.errors import PlanError
from edgevlm_deploy.recipe import (
    Algorithm,
    Calibration,
    Component,
    Composition,
    Image,
    ModuleOverride,
    ObserverName,
    Precision,
    Recipe,
    Reduction,
    ReductionMethod,
    Scheme,
)
from edgevlm_deploy.source import Architecture
from edgevlm_deploy.target import Target

MODULES = {
    "vision_encoder": ["model.vision_model.encoder.layers.0.mlp.fc1"],
    "projector": ["model.connector.modality_projection.proj"],
    "embedding": ["model.text_model.embed_tokens"],
    "decoder": [f"model.text_model.layers.0.mlp.{name}_proj" for name in ("gate", "up", "down")],
    "head": ["lm_head"],
}


@pytest.mark.parametrize("recipe", resources.names("recipes"))
@pytest.mark.parametrize("target", resources.names("targets"))
def test_every_recipe_meets_every_target(recipe: str, target: str) -> None:
    """Either there is a plan, or a sentence that names the target and what it takes."""
    wanted, device = resources.recipe(recipe), resources.target(target)
    try:
        made = plan.resolve(wanted, device, MODULES)
    except PlanError as error:
        assert f"Recipe {recipe} does not fit target {target}" in str(error)
    else:
        assert set(made.request) <= {name for names in MODULES.values() for name in names}


@pytest.mark.parametrize("target", resources.names("targets"))
def test_every_target_names_a_recipe_that_fits(target: str) -> None:
    device = resources.target(target)
    plan.resolve(resources.recipe(device.recipe), device, MODULES)


def test_overrides_change_single_modules() -> None:
    override = ModuleOverride(pattern="*.down_proj", scheme=Scheme.W8A16)
    recipe = resources.recipe("default").model_copy(update={"modules": (override,)})
    made = plan.resolve(recipe, resources.target("host-cpu"), MODULES)
    schemes = {name.rsplit(".", 1)[-1]: wanted.scheme for name, wanted in made.request.items()}
    assert schemes["down_proj"] is Scheme.W8A16
    assert schemes["up_proj"] is Scheme.W4A16_G64


def test_all_problems_are_named_at_once() -> None:
    overrides = (
        ModuleOverride(pattern="*.nowhere", scheme=Scheme.W8A16),
        ModuleOverride(pattern="lm_head", scheme=Scheme.W4A16_CHANNEL),
    )
    recipe = resources.recipe("default").model_copy(update={"modules": overrides})
    with pytest.raises(PlanError) as raised:
        plan.resolve(recipe, resources.target("orin"), MODULES)
    message = str(raised.value)
    assert "*.nowhere" in message
    assert "head w4a16_channel: tensorrt on its gpu refuses it; it accepts w8a8, w8a16, w4a16_g64" in message


def test_formats_that_a_device_lacks_are_refused() -> None:
    host = resources.target("host-cpu").model_copy(update={"formats": ("fp32",)})
    with pytest.raises(PlanError, match="needs int8; host-cpu"):
        plan.resolve(resources.recipe("int8"), host, MODULES)


def test_the_digest_changes_with_what_is_planned_only() -> None:
    host = resources.target("host-cpu")
    first = plan.resolve(resources.recipe("default"), host, MODULES)
    again = plan.resolve(resources.recipe("default"), host, MODULES)
    other = plan.resolve(resources.recipe("int8"), host, MODULES)
    assert first.digest == again.digest != other.digest


def test_an_observer_that_would_do_nothing_is_refused() -> None:
    recipe = resources.recipe("default")
    entropy = recipe.calibration.model_copy(update={"observer": ObserverName.ENTROPY})
    recipe = recipe.model_copy(update={"calibration": entropy})
    plan.resolve(recipe, resources.target("host-cpu"), MODULES)
    with pytest.raises(PlanError, match="observer entropy: no module has calibrated int8 inputs"):
        plan.resolve(recipe, resources.target("snapdragon-8-gen3"), MODULES)
    other = resources.recipe("smoothquant").model_copy(update={"calibration": entropy})
    with pytest.raises(PlanError, match=r"observer entropy is offered by `quantizer: neural-compressor`"):
        plan.resolve(other, resources.target("orin"), MODULES)


def test_parts_that_calibration_would_not_see_are_refused() -> None:
    recipe = resources.recipe("default")

    def with_composition(composition: Composition, algorithm: Algorithm) -> Recipe:
        calibration = Calibration(composition=composition)
        decoder = Precision(scheme=Scheme.W4A16_G64, algorithm=algorithm)
        components = {**recipe.components, Component.DECODER: decoder}
        return recipe.model_copy(update={"calibration": calibration, "components": components})

    host = resources.target("host-cpu")
    plan.resolve(with_composition(Composition.IMAGE_ONLY, Algorithm.GPTQ), host, MODULES)
    with pytest.raises(
        PlanError, match="text_only shows no pictures, and vision_encoder is calibrated on them"
    ):
        plan.resolve(with_composition(Composition.TEXT_ONLY, Algorithm.GPTQ), host, MODULES)
    encoders = {Component.TEXT_ENCODER: Precision(scheme=Scheme.W4A16_G64, algorithm=Algorithm.AWQ)}
    pictures = with_composition(Composition.IMAGE_ONLY, Algorithm.GPTQ)
    dual = pictures.model_copy(update={"components": encoders})
    with pytest.raises(PlanError, match="image_only shows no texts, and text_encoder is calibrated on them"):
        plan.resolve(dual, host, {"text_encoder": ["text_model.encoder.layers.0.mlp.fc1"]})
    with pytest.raises(PlanError, match="mbq weighs pictures against answers"):
        plan.resolve(with_composition(Composition.IMAGE_ONLY, Algorithm.MBQ), host, MODULES)


def test_pictures_at_their_own_resolution() -> None:
    numbers = {"layers": 2, "kv_heads": 2, "head_dim": 16, "hidden_size": 64, "vocab_size": 304}
    numbers |= {"max_context": 512, "image_token_id": 6, "patch_size": 14}
    tiled = Architecture(**numbers, rope_theta=1e4, image_size=56, tokens_per_tile=4)
    native = Architecture(**numbers, rope_theta=1e4, image_size=0, tokens_per_tile=0, merge_size=2)
    host, recipe = resources.target("host-cpu"), resources.recipe("fp16")

    def problems(model: Architecture, target: Target = host, **image: object) -> str:
        wanted = recipe.model_copy(update={"image": Image(**image)})
        with pytest.raises(PlanError) as error:
            plan.resolve(wanted, target, MODULES, model)
        return str(error.value)

    plan.resolve(recipe, host, MODULES, native)
    assert "cuts pictures into squares of 56 pixels" in problems(tiled, max_pixels=10_000)
    assert "cuts no tiles" in problems(native, max_tiles=2)
    assert "Give multiples of 28" in problems(native, resolution=(56, 90))
    assert "an image token covers 784" in problems(native, max_pixels=100)
    assert "graphs for tensorrt have one size" in problems(native, resources.target("orin"))
    learnt = {Component.VISION_ENCODER: Precision(scheme=Scheme.W4A16_G32, algorithm=Algorithm.AUTOROUND)}
    with pytest.raises(PlanError, match="each at its own resolution"):
        plan.resolve(recipe.model_copy(update={"components": learnt}), host, MODULES, native)
    reduction = Reduction(method=ReductionMethod.TOME, keep=0.5)
    assert "own resolution" in problems(native, reduction=reduction)
