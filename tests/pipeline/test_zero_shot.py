"""From a tiny CLIP and labelled pictures to a sealed bundle that classifies."""

from __future__ import annotations

import dataclasses
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_dual
from edgevlm_runner import abstain, features
from edgevlm_runner.bundle import open_bundle, unpack
from edgevlm_runner.contract import CLEAN, OOD, Answer, DualEncoderSpec, Kind, read_jsonl
from typer.testing import CliRunner

from edgevlm_deploy import bundle, device, pipeline, resources, validation, verdict
from edgevlm_deploy.cli import app
from edgevlm_deploy.errors import BundleError, ConfigError, DataError, PlanError
from edgevlm_deploy.metrics.dual.tables import DualMetrics
from edgevlm_deploy.metrics.dual.zero_shot import fit_logit_scale
from edgevlm_deploy.pipeline.certainty import HeldOut
from edgevlm_deploy.progress import Silent
from edgevlm_deploy.recipe import Gate, GateName
from edgevlm_deploy.verdict import Outcome

pytestmark = pytest.mark.slow

RECIPE = """
name: small
description: Few items, loose gates; what is tested is the line, not the model.
components:
  vision_encoder: {scheme: w8a8}
  text_encoder: {scheme: w8a8}
  projector: {scheme: w8a16}
  embedding: {scheme: w8a16}
zero_shot: {templates: ["a photo of a {}", "one {}"]}
calibration: {samples: 3}
evaluation:
  clean_items: 12
  corruptions: [gaussian_noise]
  severities: [2]
  items_per_condition: 4
  feature_items: 8
  bootstrap_resamples: 200
gates:
  - {metric: divergence_rate, max: 1.0}
  - {metric: ece_increase, max: 1.0}
  - {metric: mcm_auroc_drop, max: 3.0}
  - {metric: text_to_image_recall_at_1_drop, max: 3.0}
target_budgets: report
"""


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Labelled pictures with backgrounds, and two that show none of the classes."""
    folder = tiny_dual.labelled(tmp_path_factory.mktemp("pictures"))
    rows: list[dict[str, Any]] = []
    for name in tiny_dual.CLASSES:
        for number in range(8):
            split = "common" if number % 4 else "counter"
            row = {"image": f"{name}/{number}.png", "label": name, "background": "noise", "split": split}
            rows.append({**row, "caption": f"one {name}"} if number else row)
    for number in (90, 91):
        tiny_dual.picture("disc", number).rotate(45).save(folder / f"{number}.png")
        rows.append({"image": f"{number}.png", "ood": True})
    (folder / "items.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return folder / "items.jsonl"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import torch

    torch.set_num_threads(1)
    return tiny_dual.save("clip", tmp_path_factory.mktemp("checkpoint") / "tiny-clip")


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


def test_a_dual_encoder_is_sealed(validated: validation.Validation) -> None:
    opened = open_bundle(validated.bundle)
    assert validated.sealed and opened.seal is not None
    spec = opened.model
    assert isinstance(spec, DualEncoderSpec)
    assert spec.text.classes == tuple(sorted(tiny_dual.CLASSES)) and len(spec.text.templates) == 2
    verification = opened.manifest["verification"]
    assert verification["vision_difference"] < 1e-5 and verification["text_difference"] < 1e-5
    assert opened.manifest["quantization"]["modules"]["text_encoder"] == {"w8a8 rtn": 12}


def test_items_are_pictures_with_a_class(validated: validation.Validation) -> None:
    items = open_bundle(validated.bundle).items
    clean = [item for item in items if item.condition == CLEAN]
    assert len(clean) == 12 and {item.group for item in clean} == set(tiny_dual.CLASSES)
    assert all(item.prompt == "" and item.answers == (item.group,) for item in clean)
    assert {item.background for item in clean} == {"noise"} and "common" in {item.split for item in clean}
    assert [item.answers for item in items if item.condition == OOD] == [(), ()]
    assert validated.metrics.clean_items == 12 and validated.metrics.corrupted_items == 4
    assert not validated.metrics.failures, "the taxonomy's rules are about questions"


def test_answers_have_cosines_and_the_probability_of_the_class(validated: validation.Validation) -> None:
    opened = open_bundle(validated.bundle)
    reference = {one.item_id: one for one in read_jsonl(opened.path("reference.jsonl"), Answer)}
    answers = read_jsonl(validated.directory / "answers.jsonl", Answer)
    classes = opened.model.text.classes  # type: ignore[union-attr]
    assert len(answers) == len(opened.items) == len(reference)
    for one in answers:
        place = max(range(len(classes)), key=lambda n: one.scores[n])
        assert one.text == classes[place] and one.token_ids == (place,)
        assert len(one.token_logprobs) == 1 and one.token_logprobs[0] < 0
        theirs = reference[one.item_id].scores
        assert max(abs(a - b) for a, b in zip(one.scores, theirs, strict=True)) < 0.1


def test_scores_give_the_metrics_of_dual_encoders(validated: validation.Validation) -> None:
    found = DualMetrics.model_validate_json((validated.directory / "dual_metrics.json").read_text())
    assert found.answers.estimates["accuracy"].value == validated.metrics.estimates["accuracy"].value
    assert found.estimates["relative_spurious_gap"].n > 0
    areas = [name for name in found.estimates if "auroc" in name and not name.startswith("reference")]
    assert areas and found.estimates[areas[0]].value is not None, "two pictures show none of the classes"
    assert "Scores of all classes" in validated.report.read_text()


def test_embeddings_are_evidence(checkpoint: Path, validated: validation.Validation, tmp_path: Path) -> None:
    """The reference's are transformers', and the reported tables follow from both files."""
    from transformers import CLIPModel, PreTrainedTokenizerFast

    opened = open_bundle(validated.bundle)
    spec = opened.model
    assert isinstance(spec, DualEncoderSpec) and spec.feature_items == 8
    kept = features.watched(opened.items, spec)
    reference = features.read(opened.path("reference_features.npz"), opened.items, spec)
    artifact = features.read(validated.directory / "features.npz", opened.items, spec)
    assert reference.images.shape == artifact.images.shape == (8, 24)
    model = CLIPModel.from_pretrained(checkpoint).float().eval()
    rows = PreTrainedTokenizerFast.from_pretrained(checkpoint)(
        list(features.captions(kept)), padding=True, return_tensors="pt"
    )
    texts = model.get_text_features(input_ids=rows.input_ids).pooler_output.detach().numpy()
    np.testing.assert_allclose(reference.captions, texts, atol=1e-4)
    answers = {one.item_id: one for one in read_jsonl(validated.directory / "answers.jsonl", Answer)}
    unit = artifact.images / np.linalg.norm(artifact.images, axis=1, keepdims=True)
    told = [answers[item.id].scores for item in kept]
    np.testing.assert_allclose(unit @ artifact.classes.T, told, atol=1e-5)
    found = DualMetrics.model_validate_json((validated.directory / "dual_metrics.json").read_text())
    assert found.retrieval is not None and found.spectral is not None
    assert found.retrieval.image_to_text.estimates["recall_at_1"].n == sum(bool(i.caption) for i in kept)
    assert len(found.spectral.sqnr_db) == 8
    drop = {gate.metric: gate for gate in validated.verdict.gates}[GateName.TEXT_TO_IMAGE_RECALL_AT_1_DROP]
    assert drop.value == found.retrieval.text_to_image.estimates["recall_at_1_drop"].value
    assert "Directions of the embeddings" in validated.report.read_text()
    shutil.copytree(validated.directory, tmp_path / "evidence")
    other = dataclasses.replace(artifact, images=artifact.images + 1)
    features.write(tmp_path / "evidence" / "features.npz", other)
    with pytest.raises(BundleError, match=r"features\.npz is not what evidence\.json was written for"):
        validation.judge(opened, validated.bundle, tmp_path / "evidence")


def test_a_device_hands_its_embeddings_over(
    validated: validation.Validation, board: Path, tmp_path: Path
) -> None:
    """The same runner behind stand-ins for `ssh` and `sftp`."""
    copied = Path(shutil.copy(validated.bundle, tmp_path))
    there = validation.validate(copied, False, Silent(), device.named("ssh:board", sys.executable, 120.0))
    found, here = (
        DualMetrics.model_validate_json((one.directory / "dual_metrics.json").read_text())
        for one in (there, validated)
    )
    assert found.retrieval == here.retrieval is not None and found.spectral == here.spectral
    assert there.sealed and "features.npz" in (open_bundle(copied).seal or {})["evidence"]


def test_class_scores_are_gated_and_what_is_undefined_is_skipped(validated: validation.Validation) -> None:
    passed = {gate.metric: gate for gate in validated.verdict.gates}[GateName.MCM_AUROC_DROP]
    assert passed.outcome is Outcome.PASS and passed.n == 14
    gates = [
        Gate(metric=GateName.TOP_5_ACCURACY_DROP, max=1.0),
        Gate(metric=GateName.WORST_GROUP_ACCURACY_DROP, max=1.0),
    ]
    top, worst = verdict.judge(gates, validated.metrics).gates
    assert top.outcome is Outcome.SKIPPED and "there are no more than 5 classes" in top.explanation
    assert worst.outcome is Outcome.SKIPPED and "no class has 10 pictures" in worst.explanation


def test_the_page_speaks_of_classes(validated: validation.Validation) -> None:
    page = validated.report.read_text()
    assert "Clean items by class." in page and "probability of the chosen class" in page
    for nonsense in (
        "Kind of question",
        "kind of question",
        "token probabilities",
        "Each further token",
        "decoder",
    ):
        assert nonsense not in page, nonsense


def test_edgevlm_run_prints_classes(validated: validation.Validation, data: Path) -> None:
    picture = str(data.parent / "disc" / "1.png")
    run = CliRunner().invoke(app, ["run", str(validated.bundle), "--image", picture])
    assert run.exit_code == 0, run.output
    assert all(name in run.output for name in (*tiny_dual.CLASSES, "probability"))
    others = ["--prompt", "cat, dog", "--json"]
    run = CliRunner().invoke(app, ["run", str(validated.bundle), "--image", picture, *others])
    said = json.loads(run.output)
    assert {one["class"] for one in said["classes"]} == {"cat", "dog"}
    assert sum(one["probability"] for one in said["classes"]) == pytest.approx(1.0, abs=1e-4)
    assert said["answer"] == said["classes"][0]["class"]


def with_rule(compiled: Path, folder: Path, **changes: Any) -> Path:
    """The bundle with another rule in its certainty.json."""
    unpack(compiled, folder)
    rule = {**json.loads((folder / "certainty.json").read_text()), **changes}
    (folder / "certainty.json").write_text(json.dumps(rule))
    bundle.revise(folder, ["certainty.json"], {})
    return folder


ABSTAINING = RECIPE.replace(
    "gates:",
    """abstain: {by: maxprob, cost: 1.0, questions: 4, corruptions: []}
gates:
  - {metric: answered_share, min: 0.0}
""".rstrip(),
)


def test_a_classifier_abstains_by_the_probability_of_its_class(
    checkpoint: Path, data: Path, tmp_path: Path
) -> None:
    compiled = pipeline.compile(order(checkpoint, data, tmp_path, ABSTAINING), Silent())
    done = validation.validate(compiled, False, Silent())
    opened = open_bundle(compiled)
    told = opened.manifest["certainty"]["threshold"]
    assert opened.certainty.abstain == told["by"] == "maxprob" and opened.certainty.graph == ""
    answers = read_jsonl(done.directory / "answers.jsonl", Answer)
    judged = {item.id for item in opened.items if item.kind in (Kind.CLEAN, Kind.CORRUPTED)}
    given = [
        not abstain.abstains(opened.certainty, one.token_logprobs, None)
        for one in answers
        if one.item_id in judged
    ]
    assert done.metrics.estimates["answered_share"].value == pytest.approx(sum(given) / len(given))
    picture = str(data.parent / "disc" / "1.png")
    for threshold, withheld in ((0.0, False), (1.0, True), (None, True)):
        folder = with_rule(compiled, tmp_path / f"at {threshold}", threshold=threshold)
        command = ["run", str(folder), "--unsealed", "--image", picture]
        said = json.loads(CliRunner().invoke(app, [*command, "--json"]).stdout)
        first = CliRunner().invoke(app, command).stdout.splitlines()[0]
        assert said["abstained"] is withheld and said["answer"] in tiny_dual.CLASSES
        assert first == said["answer"] or (withheld and first.startswith("(abstained: "))
    assert first == "(abstained: at no score was the model right often enough)"


def test_the_logit_scale_that_ships_acts(
    validated: validation.Validation, data: Path, tmp_path: Path
) -> None:
    warmer = with_rule(validated.bundle, tmp_path / "warmer", temperature=4.0, fitted_on=5)
    spec, picture = open_bundle(warmer).model, str(data.parent / "disc" / "1.png")
    assert isinstance(spec, DualEncoderSpec)
    run = CliRunner().invoke(app, ["run", str(warmer), "--unsealed", "--image", picture, "--json"])
    said = json.loads(run.stdout)
    odds = np.exp(np.array([one["cosine"] for one in said["classes"]]) * spec.logit_scale / 4.0)
    expected = (odds / odds.sum()).tolist()
    assert [one["probability"] for one in said["classes"]] == pytest.approx(expected, abs=1e-4)
    assert said["confidence"] == said["classes"][0]["probability"] < said["max_prob"]


def test_the_temperature_of_a_softmax_is_the_scale_of_its_logits(validated: validation.Validation) -> None:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 4, 300)
    scores = rng.normal(0, 0.1, (300, 4))
    scores[np.arange(300), labels] += 0.15
    right = (scores.argmax(axis=1) == labels).astype(np.float64)
    held_out = HeldOut(("p",) * 300, right, right, right, np.zeros((300, 0), np.float32), scores, labels)
    model = open_bundle(validated.bundle).model
    assert isinstance(model, DualEncoderSpec)
    spec = dataclasses.replace(model, logit_scale=30.0)
    fitted = held_out.temperature(spec)
    assert fitted is not None
    assert fitted == pytest.approx(30.0 / fit_logit_scale(scores, labels))  # type: ignore[operator]
    assert held_out.temperature(dataclasses.replace(spec, logit_scale=60.0)) == pytest.approx(2 * fitted)


def test_mistakes_are_sentences(checkpoint: Path, data: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="A dual encoder is judged on pictures with a class"):
        pipeline.compile(order(checkpoint, None, tmp_path), Silent())
    named = RECIPE.replace("zero_shot: {", "zero_shot: {classes: [disc, square], ")
    with pytest.raises(DataError, match=r"1 labels in the data are none .* e\.g\. 'stripes'"):
        pipeline.compile(order(checkpoint, data, tmp_path, named), Silent())
    alike = RECIPE.replace("zero_shot: {", 'zero_shot: {classes: [disc, square, stripes, "The disc!"], ')
    with pytest.raises(DataError, match="the same words"):
        pipeline.compile(order(checkpoint, data, tmp_path, alike), Silent())
    reworded = RECIPE.replace("corruptions: [gaussian_noise]", "perturbations: [paraphrase]")
    with pytest.raises(PlanError, match="perturbations: paraphrase: a dual encoder is asked no question"):
        pipeline.compile(order(checkpoint, data, tmp_path, reworded), Silent())
    int8 = (resources.folder("recipes") / "int8.yaml").read_text()
    scores = int8 + "  - {metric: top_5_accuracy, min: 0.5}\n"
    with pytest.raises(PlanError, match="gate on top_5_accuracy: only a dual encoder has scores"):
        pipeline.compile(
            dataclasses.replace(order(checkpoint, None, tmp_path, scores), model="demo"), Silent()
        )
    kept = int8.replace("evaluation:", "evaluation:\n  feature_items: 9")
    with pytest.raises(PlanError, match=r"evaluation\.feature_items: only a dual encoder"):
        pipeline.compile(dataclasses.replace(order(checkpoint, None, tmp_path, kept), model="demo"), Silent())
    unkept = RECIPE.replace("  feature_items: 8\n", "")
    with pytest.raises(
        ConfigError, match=r"text_to_image_recall_at_1_drop needs items: set evaluation\.feat"
    ):
        pipeline.compile(order(checkpoint, data, tmp_path, unkept), Silent())
    decoder = RECIPE.replace("text_encoder:", "decoder:")
    with pytest.raises(PlanError, match=r"components\.decoder: this model has no such component"):
        pipeline.compile(order(checkpoint, data, tmp_path, decoder), Silent())
