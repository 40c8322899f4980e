"""From a tiny Qwen2.5-VL and pictures of many sizes to evidence: the answers are transformers' own."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import tiny_qwen
from edgevlm_runner.bundle import open_bundle
from edgevlm_runner.contract import Answer, ModelSpec, NativeSpec, read_jsonl
from PIL import Image

from edgevlm_deploy import pipeline, validation
from edgevlm_deploy.progress import Silent

pytestmark = pytest.mark.slow

RECIPE = """
name: small
description: Few items, loose gates; what is tested is the line, not the model.
components: {COMPONENTS}
calibration: {samples: 4}
image: {IMAGE}
generation: {max_new_tokens: 6, max_context: 128}
evaluation:
  clean_items: 8
  corruptions: [gaussian_noise]
  severities: [2]
  items_per_condition: 4
  bootstrap_resamples: 200
gates:
  - {metric: divergence_rate, max: 1.0}
target_budgets: report
"""
QUANTISED = (
    "{vision_encoder: {scheme: w8a8}, projector: {scheme: w8a8}, embedding: {scheme: w8a16}, "
    "decoder: {scheme: w4a16_g32}, head: {scheme: w8a16}}"
)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    noise = np.random.default_rng(0)
    rows = []
    for number in range(24):
        height, width = (int(side) for side in noise.integers(40, 160, 2))
        picture = Image.fromarray(noise.integers(0, 256, (height, width, 3), np.uint8))
        picture.save(folder / f"{number}.png")
        rows.append({"image": f"{number}.png", "question": f"Is it {number}?", "answers": ["yes"]})
    (folder / "items.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return folder / "items.jsonl"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import torch

    torch.set_num_threads(1)
    return tiny_qwen.make(tmp_path_factory.mktemp("checkpoint") / "tiny-qwen", "qwen2_5_vl")


def order(
    checkpoint: Path,
    data: Path,
    out: Path,
    target: str = "host-cpu",
    components: str = "{}",
    image: str = "{}",
) -> pipeline.Order:
    out.mkdir(parents=True, exist_ok=True)
    file = out / "small.yaml"
    file.write_text(RECIPE.replace("{COMPONENTS}", components).replace("{IMAGE}", image))
    return pipeline.Order(model=str(checkpoint), target=target, recipe=str(file), out=out, data=data)


def validated(bundle: Path) -> tuple[list[Answer], list[Answer]]:
    """Answers of the bundle and of the source model to the same items."""
    made = validation.validate(bundle, True, Silent())
    reference = {one.item_id: one for one in read_jsonl(open_bundle(bundle).path("reference.jsonl"), Answer)}
    ours = read_jsonl(made.directory / "answers.jsonl", Answer)
    return ours, [reference[one.item_id] for one in ours]


def test_answers_are_those_of_transformers(checkpoint: Path, data: Path, tmp_path: Path) -> None:
    bundle = pipeline.compile(order(checkpoint, data, tmp_path), Silent())
    spec = open_bundle(bundle).model
    assert isinstance(spec, ModelSpec)
    assert isinstance(spec.image, NativeSpec)
    assert spec.image.size is None
    ours, theirs = validated(bundle)
    assert [one.token_ids for one in ours] == [one.token_ids for one in theirs]
    assert len({one.token_ids for one in ours}) > 6


def test_quantised(checkpoint: Path, data: Path, tmp_path: Path) -> None:
    bundle = pipeline.compile(order(checkpoint, data, tmp_path, components=QUANTISED), Silent())
    verified = open_bundle(bundle).manifest["verification"]
    assert verified["vision_difference"] <= 1e-5
    assert verified["logits_difference"] <= 1e-5
    assert verified["tokens"] > 0
    ours, theirs = validated(bundle)
    assert len(ours) == len(theirs) >= 12
