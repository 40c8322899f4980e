"""The reduced model: what the device is told, what is refused, how many tokens the torch model gives."""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_litert import tiny_vlm

from edgevlm_deploy import plan, reduction, resources, source
from edgevlm_deploy.errors import ConfigError, PlanError
from edgevlm_deploy.recipe import Image, Recipe, Reduction, ReductionMethod
from edgevlm_deploy.reduction import encoder, tome, visionzip
from edgevlm_deploy.source.model import DualArchitecture

TOKENS = 4


def asks_for(method: str, keep: float) -> Reduction:
    return Reduction(method=ReductionMethod(method), keep=keep)


def recipe(wanted: Reduction) -> Recipe:
    return resources.recipe("fp16").model_copy(update={"image": Image(reduction=wanted)})


def test_kept_tokens_are_rounded_and_never_none() -> None:
    kept = [reduction.kept_tokens(16, asks_for("tome", keep)) for keep in (0.75, 0.5, 0.33, 0.22, 0.11, 0.01)]
    assert kept == [12, 8, 5, 4, 2, 1]


def test_the_device_is_told_the_smaller_number() -> None:
    spec = tiny_vlm().spec.__wrapped__()
    assert reduction.reduced(spec, None) == spec
    fewer = reduction.reduced(spec, asks_for("visionzip", 0.5))
    assert fewer.prompt.tokens_per_tile == 2 and spec.prompt.tokens_per_tile == 4


def test_a_layer_without_fastv_is_refused() -> None:
    with pytest.raises(ValueError, match="`layer` belongs to fastv; tome has none"):
        Reduction(method=ReductionMethod.TOME, keep=0.5, layer=3)


def test_what_cannot_be_had_is_refused_when_planned() -> None:
    demo = source.inspect(resources.DEMO_CHECKPOINT)
    host = resources.target("host-cpu")
    wanted = recipe(asks_for("visionzip", 0.5))
    planned = plan.resolve(wanted, host, demo.modules, demo.architecture)
    assert planned.summary()["reduction"] == {"method": "visionzip", "keep": 0.5}
    with pytest.raises(PlanError, match=r"keep 0\.99 of 16 image tokens a tile takes none away"):
        plan.resolve(recipe(asks_for("tome", 0.99)), host, demo.modules, demo.architecture)


def test_families_without_a_method_are_refused_it() -> None:
    host, demo = resources.target("host-cpu"), source.inspect(resources.DEMO_CHECKPOINT)
    assert isinstance(demo.architecture, source.Architecture)
    square = dataclasses.replace(demo.architecture, shuffle=1)
    whole = dataclasses.replace(square, prefix=True)
    plan.resolve(recipe(asks_for("fastv", 0.5)), host, demo.modules, square)
    for method, model, sentence in (
        ("tome", square, "tome works behind a pixel shuffle"),
        ("fastv", whole, "every token of the prompt sees every other"),
    ):
        with pytest.raises(PlanError, match=sentence):
            plan.resolve(recipe(asks_for(method, 0.5)), host, demo.modules, model)


@pytest.mark.parametrize("method", ["visionzip", "tome"])
def test_the_torch_model_gives_fewer_tokens(method: str) -> None:
    """Equal to the method applied to the attention that transformers itself reports."""
    model = tiny_vlm().random_smolvlm()
    vision = model.model.vision_model
    pixels = torch.randn(1, 2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    vision.set_attn_implementation("eager")
    with torch.no_grad():
        whole = torch.stack(list(model.model.get_image_features(pixels).pooler_output)).reshape(2, TOKENS, -1)
        weights, keys = attention_of(vision, pixels[0])
        reduced = reduction.apply(copy.deepcopy(model), asks_for(method, 0.5), TOKENS)
        fewer = reduced.model.get_image_features(pixels).pooler_output
        fewer = torch.stack(list(fewer)).reshape(2, 2, -1)
    keys = encoder.cells(keys, 2)
    received = encoder.cells(weights.mean((1, 2))[..., None], 2)[..., 0]
    matrix = tome.merging(keys, 2) if method == "tome" else visionzip.merging(received, keys, 2)
    assert torch.allclose(fewer, matrix @ whole, atol=1e-5)


def attention_of(vision: Any, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Weights [tiles, heads, T, T] and keys [tiles, T, head dim] of the last layer, averaged over heads."""
    layer = vision.encoder.layers[-1].self_attn
    seen: dict[str, torch.Tensor] = {}
    handles = [
        layer.register_forward_hook(lambda _, args, output: seen.update(weights=output[1])),
        layer.k_proj.register_forward_hook(lambda _, args, output: seen.update(keys=output)),
    ]
    vision(pixel_values=pixels)
    for handle in handles:
        handle.remove()
    tiles, tokens, _ = seen["keys"].shape
    return seen["weights"], seen["keys"].reshape(tiles, tokens, layer.num_heads, -1).mean(2)


def test_a_cell_is_the_patches_that_the_pixel_shuffle_folds() -> None:
    connector = tiny_vlm().random_smolvlm().model.connector
    patches = torch.arange(36.0)[None, :, None]
    folded = connector.pixel_shuffle(patches, 2)  # [1, 9, 4]
    assert torch.equal(encoder.cells(patches, 2)[..., 0], folded.mean(-1))


@pytest.mark.parametrize("method", ["visionzip", "tome"])
def test_generation_takes_the_shorter_prompt(method: str) -> None:
    vlm = tiny_vlm()
    model = reduction.apply(vlm.random_smolvlm(), asks_for(method, 0.5), TOKENS)
    ids = torch.tensor([[5, vlm.IMAGE_TOKEN, vlm.IMAGE_TOKEN, 7, 9]])
    pixels = torch.randn(1, 1, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        said = model.generate(input_ids=ids, pixel_values=pixels, max_new_tokens=3, do_sample=False)
    assert said.shape[1] > ids.shape[1]


def test_module_names_stay() -> None:
    plain = [name for name, _ in tiny_vlm().random_smolvlm().named_modules()]
    reduced = reduction.apply(tiny_vlm().random_smolvlm(), asks_for("tome", 0.5), TOKENS)
    assert [name for name, _ in reduced.named_modules()] == plain


def test_a_recipe_file_with_an_unknown_method_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "other.yaml"
    text = (resources.folder("recipes") / "fp16.yaml").read_text()
    path.write_text(text + "image: {reduction: {method: prumerge, keep: 0.5}}\n")
    with pytest.raises(ConfigError, match=r"image\.reduction\.method"):
        resources.recipe(str(path))


def test_fastv_is_refused_where_layers_share_a_cache_length() -> None:
    demo = source.inspect(resources.DEMO_CHECKPOINT)
    fastv = Reduction(method=ReductionMethod.FASTV, keep=0.5)
    for target in ("orin", "snapdragon-8-gen3"):
        wanted = recipe(fastv)
        with pytest.raises(PlanError, match=r"fastv is not exported for .* Take visionzip or tome"):
            plan.resolve(wanted, resources.target(target), demo.modules, demo.architecture)
    deep = recipe(Reduction(method=ReductionMethod.FASTV, keep=0.5, layer=5))
    with pytest.raises(PlanError, match="in front of layer 5, the decoder has layers 0 to 4"):
        plan.resolve(deep, resources.target("host-cpu"), demo.modules, demo.architecture)


def test_a_model_without_image_tokens_is_refused() -> None:
    clip = DualArchitecture(
        image_size=32,
        patch_size=8,
        vision_layers=2,
        text_layers=2,
        max_text=16,
        vocab_size=64,
        projection_size=32,
    )
    found = reduction.problems(asks_for("tome", 0.5), resources.target("host-cpu"), clip)
    assert found == [
        "image.reduction: this model gives no image tokens to a decoder; leave the reduction out."
    ]


def test_fastv_is_told_to_the_runner_and_leaves_the_torch_model_alone() -> None:
    spec = tiny_vlm().spec.__wrapped__()
    pruned = reduction.reduced(spec, Reduction(method=ReductionMethod.FASTV, keep=0.33))
    assert pruned.pruning is not None and (pruned.pruning.layer, pruned.pruning.keep) == (2, 0.33)
    assert pruned.prompt == spec.prompt
    model = tiny_vlm().random_smolvlm()
    wanted = Reduction(method=ReductionMethod.FASTV, keep=0.33)
    assert reduction.apply(model, wanted, TOKENS) is model
    assert not model.model.connector._forward_hooks


def test_the_reference_keeps_all_tokens(tmp_path: Path) -> None:
    from edgevlm_deploy.pipeline.job import Order, prepare
    from edgevlm_deploy.progress import Silent

    path = tmp_path / "half.yaml"
    text = (resources.folder("recipes") / "fp16.yaml").read_text()
    path.write_text(text + "image: {reduction: {method: visionzip, keep: 0.5}}\n")
    job = prepare(Order("demo", "host-cpu", str(path), tmp_path), Silent())
    assert job.source_spec.prompt.tokens_per_tile == 16 and job.spec.prompt.tokens_per_tile == 8
    assert job.load_model().model.connector._forward_hooks


def test_the_reference_keeps_its_tiles(tmp_path: Path) -> None:
    from edgevlm_deploy.pipeline.job import Order, prepare
    from edgevlm_deploy.progress import Silent

    path = tmp_path / "tiles.yaml"
    text = """
name: tiles
description: Few items.
calibration: {samples: 2}
evaluation: {clean_items: 2, items_per_condition: 1}
gates: [{metric: accuracy_drop, max: 0.5}]
"""
    path.write_text(text + "image: {max_tiles: 2, reference_tiles: 5}\n")
    job = prepare(Order("demo", "host-cpu", str(path), tmp_path), Silent())
    assert (job.spec.image.max_tiles, job.source_spec.image.max_tiles) == (2, 5)
    for given in ("{reference_tiles: 5}", "{max_tiles: 6, reference_tiles: 5}"):
        path.write_text(text + f"image: {given}\n")
        with pytest.raises(ConfigError, match="the reference has at least as many"):
            resources.recipe(str(path))
