"""Qwen-VL on every backend: graphs compute what torch does, greedy tokens are those of transformers."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_qwen
from edgevlm_runner import runtimes
from edgevlm_runner.contract import ModelSpec
from edgevlm_runner.generate import generate
from edgevlm_runner.inputs import from_picture, load_tokenizer
from PIL import Image

from edgevlm_deploy import backends, plan, quiet, reference, resources, source
from edgevlm_deploy.backends.half import half_precision
from edgevlm_deploy.recipe import Generation
from edgevlm_deploy.recipe import Image as ImageSettings

TOKENS = 12


def fixed(family: str, rows: int, cols: int) -> ImageSettings:
    cell = 2 * tiny_qwen.PATCHES[family]
    return ImageSettings(resolution=(rows * cell, cols * cell))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "target", "image"),
    [
        ("qwen2_vl", "host-cpu", ImageSettings()),
        ("qwen3_vl", "host-cpu", ImageSettings()),
        ("qwen2_5_vl", "orin", fixed("qwen2_5_vl", 2, 4)),  # whole windows
        ("qwen3_vl", "orin-jetpack7", fixed("qwen3_vl", 2, 3)),
        ("qwen2_5_vl", "snapdragon-8-gen3", fixed("qwen2_5_vl", 3, 5)),
    ],
)
def test_answers_are_those_of_transformers(
    family: str, target: str, image: ImageSettings, tmp_path: Path
) -> None:
    import torch

    torch.set_num_threads(1)
    with quiet.libraries():
        checkpoint = source.inspect(tiny_qwen.make(tmp_path / family, family))
    generation = Generation(max_new_tokens=TOKENS, max_context=128, prefill_lengths=(32,))
    recipe = resources.recipe("fp16").model_copy(update={"image": image, "generation": generation})
    device = resources.target(target)
    made = plan.resolve(recipe, device, checkpoint.modules, checkpoint.architecture)
    graphs = backends.graph_names(device.backend)
    spec = source.model_spec(checkpoint, recipe, device.backend.value, graphs)
    spec = backends.with_profiles(spec, recipe, device)
    assert isinstance(spec, ModelSpec)
    tokenizer, noise = load_tokenizer(checkpoint.tokenizer), np.random.default_rng(0)
    sizes = [(61, 95), (150, 80)]
    pictures = [Image.fromarray(noise.integers(0, 256, (*size, 3), np.uint8)) for size in sizes]
    samples = [from_picture(one, "what is this?", spec, tokenizer) for one in (*pictures, None)]
    out = tmp_path / "graphs"
    out.mkdir()
    compiled = backends.compiler(made, lambda: samples)(
        lambda: source.load(checkpoint), None, spec, samples, out
    )
    assert compiled.verification["vision_difference"] <= 1e-5
    assert compiled.verification["logits_difference"] <= 1e-5
    endless = dataclasses.replace(spec, eos_token_ids=(), max_new_tokens=TOKENS)
    model: Any = half_precision(source.load(checkpoint))
    with runtimes.load(out, endless, 1, emulate=True) as runtime, torch.inference_mode():
        for one in samples:
            ours = generate(runtime, endless, one.pixel_values, one.input_ids).token_ids
            theirs = model.generate(
                **reference.collate([one], spec),
                max_new_tokens=TOKENS,
                min_new_tokens=TOKENS,
                do_sample=False,
                eos_token_id=None,
                pad_token_id=0,
            )
            assert list(ours) == theirs[0, one.input_ids.shape[1] :].tolist()
            assert len(set(ours)) > 2
