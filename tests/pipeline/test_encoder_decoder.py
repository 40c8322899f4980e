"""From a tiny BLIP and questions about pictures to a sealed bundle that answers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import tiny_blip
from edgevlm_runner.bundle import open_bundle
from edgevlm_runner.contract import Answer, EncoderDecoderSpec, read_jsonl
from typer.testing import CliRunner

from edgevlm_deploy import pipeline, validation
from edgevlm_deploy.cli import app
from edgevlm_deploy.errors import DataError, PlanError
from edgevlm_deploy.progress import Silent

pytestmark = pytest.mark.slow

RECIPE = """
name: small
description: Few items, loose gates; what is tested is the line, not the model.
components:
  vision_encoder: {scheme: w8a8}
  text_encoder: {scheme: w8a8}
  embedding: {scheme: w8a16}
  decoder: {scheme: w4a16_g32, algorithm: hqq}
  head: {scheme: w8a16}
calibration: {samples: 8}
generation: {max_new_tokens: 6}
evaluation:
  clean_items: 20
  corruptions: [gaussian_noise]
  severities: [2]
  items_per_condition: 8
  grey_items: 4
  bootstrap_resamples: 200
abstain: {by: maxprob, risk: 0.2}
gates:
  - {metric: divergence_rate, max: 0.5}
  - {metric: ece_increase, max: 1.0}
target_budgets: report
"""


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import torch

    torch.set_num_threads(1)
    return tiny_blip.save(tmp_path_factory.mktemp("checkpoint") / "tiny-blip", steps=100)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_blip.questions(tmp_path_factory.mktemp("questions"))


def order(checkpoint: Path, data: Path | None, out: Path, recipe: str = RECIPE) -> pipeline.Order:
    file = out / "small.yaml"
    out.mkdir(parents=True, exist_ok=True)
    file.write_text(recipe)
    return pipeline.Order(model=str(checkpoint), target="host-cpu", recipe=str(file), out=out, data=data)


@pytest.fixture(scope="module")
def validated(
    checkpoint: Path, data: Path, tmp_path_factory: pytest.TempPathFactory
) -> validation.Validation:
    wanted = order(checkpoint, data, tmp_path_factory.mktemp("build") / "out")
    return validation.validate(pipeline.compile(wanted, Silent()), False, Silent())


def test_an_encoder_decoder_is_sealed(validated: validation.Validation) -> None:
    bundle = open_bundle(validated.bundle)
    assert validated.sealed and isinstance(bundle.model, EncoderDecoderSpec)
    verification = bundle.manifest["verification"]
    for part in ("vision", "question", "logits"):
        assert verification[f"{part}_difference"] < 1e-5
    modules = bundle.manifest["quantization"]["modules"]
    assert modules["text_encoder"] == {"w8a8 rtn": 20} and modules["decoder"] == {"w4a16_g32 hqq": 20}


def test_it_answers_as_taught(validated: validation.Validation) -> None:
    """What the metrics say is about a model that sees: it is right far more often than by chance."""
    found = {name: one.value for name, one in validated.metrics.estimates.items()}
    assert found["reference_accuracy"] > 0.6 and found["accuracy"] > 0.6
    assert found["divergence_rate"] < 0.2 and found["corrupted_accuracy"] is not None
    assert found["grey_prior_bias"] is not None and found["answered_share"] is not None
    bundle = open_bundle(validated.bundle)
    reference = {one.item_id: one for one in read_jsonl(bundle.path("reference.jsonl"), Answer)}
    for one in read_jsonl(validated.directory / "answers.jsonl", Answer):
        assert len(one.token_ids) == len(one.token_logprobs) <= 6
        theirs = reference[one.item_id]
        if one.token_ids == theirs.token_ids:
            assert one.token_logprobs == pytest.approx(theirs.token_logprobs, abs=0.5)


def test_edgevlm_run_and_report(validated: validation.Validation, data: Path) -> None:
    picture = str(next(data.parent.glob("blue-*.png")))
    asked = ["run", str(validated.bundle), "--image", picture, "--prompt", tiny_blip.QUESTIONS[1]]
    run = CliRunner().invoke(app, [*asked, "--json"])
    assert run.exit_code == 0, run.output
    assert json.loads(run.output)["answer"] in ("yes", "no")
    blind = CliRunner().invoke(app, ["run", str(validated.bundle), "--prompt", "What is it?"])
    assert "answers questions about a picture" in str(blind.exception)
    page = validated.report.read_text()
    assert "Kind of question" in page and "text_encoder" in page and "projector" not in page
    shown = CliRunner().invoke(app, ["inspect", str(validated.bundle)])
    assert shown.exit_code == 0 and "text_encoder" in shown.output


def test_mistakes_are_sentences(checkpoint: Path, data: Path, tmp_path: Path) -> None:
    blind = tmp_path / "blind.jsonl"
    rows = [json.loads(line) for line in data.read_text().splitlines()]
    rows = [{**one, "image": str(data.parent / one["image"])} for one in rows]
    blind.write_text("\n".join(map(json.dumps, [*rows, {"question": "Is it?", "answers": ["yes"]}])))
    with pytest.raises(DataError, match="this model answers questions about a picture, and this one has no"):
        pipeline.compile(order(checkpoint, blind, tmp_path), Silent())
    for old, new, message in (
        ("grey_items", "blind_items", "evaluation.blind_items: an encoder–decoder always reads a picture"),
        ("hqq", "awq", "awq is not offered for encoder–decoders; take"),
        ("by: maxprob", "by: selector", "abstain.by: selector is offered for decoders that read"),
        ("samples: 8", "samples: 8, composition: text_only", "composition: text_only: an encoder–decoder"),
        ("name: small", "name: small\nquantizer: tensorrt", "quantizer: tensorrt is offered for decoders"),
        ("generation: {", "image: {reduction: {method: tome, keep: 0.5}}\ngeneration: {", "no image tokens"),
        ("text_encoder: {", "projector: {", r"components\.projector: this model has no such component"),
    ):
        with pytest.raises(PlanError, match=message):
            pipeline.compile(order(checkpoint, data, tmp_path, RECIPE.replace(old, new)), Silent())
