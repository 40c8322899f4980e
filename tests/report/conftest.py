"""A whole, small bundle with pictures and questions of the demo, and made-up answers to judge."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from edgevlm_runner.bundle import Bundle, open_bundle
from edgevlm_runner.contract import Answer, Certainty, ImageSpec, Item, ModelSpec, PromptSpec

from edgevlm_deploy import bundle as bundles
from edgevlm_deploy import metrics as measures
from edgevlm_deploy import resources, suites
from edgevlm_deploy.datasets import Sample
from edgevlm_deploy.demo import dataset
from edgevlm_deploy.demo.scenes import Split
from edgevlm_deploy.metrics import Estimate, Metrics
from edgevlm_deploy.recipe import Corruption, Evaluation, Gate, GateName, Negation, Perturbation
from edgevlm_deploy.verdict import Verdict, judge

WRONG = ("blue", "yes", "no", "2", "left", "<b>ring</b>", "small")


NASTY = '</script><img src=x onerror="document.title=1">'
"""Said by the artifact about the item without a picture."""


NOISE_FLOOR = Estimate(value=0.004, low=0.001, high=0.014, n=256, clusters=64, method="wilson")


PROBES: dict[str, Any] = {
    "negation": Negation(items=20),
    "blind_items": 20,
    "grey_items": 10,
    "background_items": 40,
}


@dataclass(frozen=True)
class Case:
    """Everything that a report is made of."""

    bundle: Bundle
    evidence: dict[str, Any]
    answers: tuple[Answer, ...]
    metrics: Metrics
    verdict: Verdict


@pytest.fixture(scope="session")
def make_case(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Case]:
    def make(
        pictures: int = 30,
        severities: tuple[int, ...] = (1, 3),
        per_condition: int = 12,
        corruptions: tuple[Corruption, ...] = tuple(Corruption),
        perturbations: tuple[Perturbation, ...] = (),
        probes: bool = False,
    ) -> Case:
        folder = tmp_path_factory.mktemp("case")
        return case(folder, pictures, severities, per_condition, corruptions, perturbations, probes)

    return make


@pytest.fixture(scope="session")
def small_case(make_case: Callable[..., Case]) -> Case:
    return make_case(perturbations=tuple(Perturbation), probes=True)


def case(
    folder: Path,
    pictures: int,
    severities: tuple[int, ...],
    per_condition: int,
    corruptions: tuple[Corruption, ...] = tuple(Corruption),
    perturbations: tuple[Perturbation, ...] = (),
    probes: bool = False,
) -> Case:
    """Write, open and judge a bundle; the artifact thinks again about one item in ten."""
    recipe = resources.recipe("default")
    evaluation = Evaluation(
        clean_items=4 * pictures + 1,
        corruptions=corruptions,
        perturbations=perturbations,
        severities=severities,
        items_per_condition=per_condition,
        bootstrap_resamples=500,
        **(PROBES if probes else {}),
    )
    samples = dataset.samples(Split.EVALUATION, pictures, 4, folder / "data", 15 if probes else 0)
    files = {_picture(sample): sample.image for sample in samples if sample.image}
    found = [
        Item(
            id=sample.id,
            base_id=sample.counterfactual_of or sample.id,
            group=sample.group,
            condition="clean",
            image=_picture(sample),
            image_id=sample.image_id,
            prompt=sample.prompt,
            answers=sample.answers,
            background=sample.background,
        )
        for sample in samples
    ]
    clean = [item for item in found if item.base_id == item.id]
    clean.append(Item("text-only", "text-only", "", "clean", "", "", "Which number follows one?", ("2",)))
    foreign = [replace(item, id=f"far-{item.id}") for item in clean[:20]] if probes else []
    pairs = [item for item in found if item.base_id != item.id]
    items = suites.build(clean, evaluation, counterfactuals=pairs, ood=foreign)
    rng = np.random.default_rng(0)
    reference = [_answer(item, rng) for item in items]
    artifact = [_again(before, item, rng) for before, item in zip(reference, items, strict=True)]
    place = [item.id for item in items].index("text-only")
    artifact[place] = replace(artifact[place], text=NASTY)
    artifact = [replace(one, selector=float(rng.random())) for one in artifact]
    gates = (
        *recipe.gates,
        Gate(metric=GateName.LATENCY_MS_P95, max=500),
        Gate(metric=GateName.PEAK_RSS_BYTES, max=2e9),
    )
    parts = bundles.Parts(
        name="demo-host-cpu",
        model=_model(),
        graphs=_graphs(folder / "graphs", rng),
        tokenizer=_file(folder / "tokenizer.json", b"{}"),
        items=items,
        pictures={item.image: files[item.image] for item in items if item.image},
        reference=reference,
        gates=gates,
        recipe=recipe,
        target=resources.target("host-cpu"),
        quantization={"modules": {}},
        provenance=_provenance(),
    )
    bundle = open_bundle(bundles.write(parts, folder / "demo-host-cpu"))
    abstaining = Certainty(temperature=1.4, fitted_on=500, abstain="selector", threshold=0.2)
    metrics = measures.compute(items, reference, artifact, evaluation, abstaining)
    evidence = _evidence(bundle, rng)
    device = {**evidence["latency"], "peak_rss_bytes": evidence["peak_rss_bytes"]}
    return Case(
        bundle, evidence, tuple(artifact), metrics, judge(gates, metrics, device, noise_floor=NOISE_FLOOR)
    )


def _picture(sample: Sample) -> str:
    assert sample.image is not None
    return bundles.picture_name(sample.image, sample.image_id)


def _answer(item: Item, rng: np.random.Generator) -> Answer:
    severity = item.corruption[1] if item.corruption else 0
    right = rng.random() < 0.93 - 0.06 * severity
    text = item.answers[0] if right else str(rng.choice(WRONG))
    probability = float(rng.beta(12, 1.2) if right else rng.beta(3, 2))
    return Answer(item.id, text, (5, 6, 2), (math.log(probability),) * 3, True)


def _again(before: Answer, item: Item, rng: np.random.Generator) -> Answer:
    if rng.random() > 0.1:
        return before
    return replace(
        _answer(replace(item, condition="fog/4"), rng), token_ids=(7, 2), token_logprobs=(-0.4, -0.1)
    )


def _file(path: Path, data: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def _graphs(folder: Path, rng: np.random.Generator) -> Path:
    """No graphs are run here, so bytes of different lengths do."""
    for name, size in (("vision_encoder.onnx", 90_000), ("embedding.onnx", 20_000), ("decoder.onnx", 4_000)):
        _file(folder / name, rng.bytes(size))
    _file(folder / "decoder.onnx.data", rng.bytes(300_000))
    return folder


def _model() -> ModelSpec:
    return ModelSpec(
        family="smolvlm",
        runtime="onnxruntime",
        graphs={name: f"graphs/{name}.onnx" for name in ("vision_encoder", "embedding", "decoder")},
        image=ImageSpec(96, 96, False, 1, 1, 1 / 255, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
        prompt=PromptSpec("{image}{question}", "{question}", "<image>", "<fake>", "<global>", 16),
        image_token_id=1,
        eos_token_ids=(2,),
        max_new_tokens=8,
        max_context=256,
        layers=2,
        kv_heads=2,
        head_dim=16,
        hidden_size=64,
        vocab_size=100,
    )


def _provenance() -> bundles.Provenance:
    return bundles.Provenance(
        edgevlm_version="0.1.0",
        packages={"torch": "2.13.0", "neural-compressor-pt": "3.10"},
        source={"id": "demo", "architecture": "Idefics3", "parameters": 1_234_567, "dtype": "float16"},
        seeds={"evaluation": 0, "calibration": 0},
        calibration={"samples": 128, "mixture": {"clean": 0.8, "dark": 0.1, "noise": 0.1}},
        quantization={"table_sha256": "ab" * 32, "modules": 28},
        verification={
            "vision_encoder": {"max_abs_difference": 0.0021, "samples": 8},
            "decoder": {"max_abs_difference": 0.0137, "samples": 8},
            "tolerance": 0.05,
        },
        reference={"dtype": "float16", "noise_floor": NOISE_FLOOR.model_dump(mode="json")},
    )


def _evidence(bundle: Bundle, rng: np.random.Generator) -> dict[str, Any]:
    n = len(bundle.items)
    vision = rng.gamma(30, 0.3, n)
    first = vision + rng.gamma(20, 0.4, n)
    return {
        "format_version": 1,
        "bundle": bundle.digest,
        "runtime": {"name": "onnxruntime", "versions": {"onnxruntime": "1.31.0", "numpy": "2.3.0"}},
        "machine": {
            "platform": "Linux",
            "cpu": "test CPU",
            "cores": 2,
            "memory_bytes": 8 << 30,
            "python": "3.11.2",
        },
        "threads": 2,
        "items": n,
        "answers_sha256": "cd" * 32,
        "load_ms": 210.0,
        "seconds": 33.0,
        "latency": {
            "preprocess_ms": rng.gamma(9, 0.2, n).tolist(),
            "vision_ms": vision.tolist(),
            "time_to_first_token_ms": first.tolist(),
            "per_token_ms": rng.gamma(16, 0.15, n).tolist(),
            "latency_ms": (first + rng.gamma(10, 1.1, n)).tolist(),
        },
        "peak_rss_bytes": 312_000_000,
    }
