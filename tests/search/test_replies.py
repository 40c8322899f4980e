"""One forward pass tells what generating would have said."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import pytest
import tiny_dual
from edgevlm_runner.contract import CLEAN, DUAL_ENCODER, DualEncoderSpec, Item
from edgevlm_runner.inputs import from_item, load_tokenizer

from edgevlm_deploy import backends, quiet, reduction, reference, source
from edgevlm_deploy.quantize import QuantizedModel, QuantizedTable, fakequant
from edgevlm_deploy.quantize.rounding import round_to_nearest, weight_of
from edgevlm_deploy.recipe import Algorithm, Recipe, Reduction, ReductionMethod, Scheme
from edgevlm_deploy.search import pruned
from edgevlm_deploy.search.replies import Examination
from edgevlm_deploy.search.space import Space
from edgevlm_deploy.source import SourceModel
from edgevlm_deploy.target import Backend

QUESTIONS = ("What color is the cube?", "Is there a ball?", "How many objects are there?", "What is left?")


@pytest.fixture(scope="module")
def loaded(demo: SourceModel) -> Any:
    import torch

    torch.set_num_threads(1)
    with quiet.libraries():
        return source.load(demo)


@pytest.fixture(scope="module")
def examined(
    demo: SourceModel, base: Recipe, loaded: Any, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Examination, list[reference.Question], Any]:
    from edgevlm_deploy.demo.scenes import Split, scene

    root = tmp_path_factory.mktemp("pictures")
    for n in range(6):
        scene(Split.TUNING, n).image.save(root / f"{n}.png")
    spec = source.model_spec(demo, base, "onnxruntime", backends.graph_names(Backend.ONNXRUNTIME))
    tokenizer = load_tokenizer(demo.tokenizer)
    items = [
        Item(f"{n}-{q}", f"{n}-{q}", "", condition, f"{n}.png", str(n), text, ("red",))
        for n in range(6)
        for q, text in enumerate(QUESTIONS)
        for condition in [CLEAN if n < 3 else "gaussian_noise/5"]
    ]
    questions = [reference.Question(one, from_item(one, root, 0, spec, tokenizer)) for one in items]
    answers = reference.generate(loaded, questions, spec, tokenizer)
    made = Examination(items, answers, root, 0, demo.tokenizer)
    made.observe_reference(loaded, spec, lambda _: None)
    return made, questions, (spec, tokenizer)


def three_bits(loaded: Any, choices: Space) -> QuantizedModel:
    """Harsh, so that some answers change."""
    table = {}
    for block in choices.blocks:
        request = block.requests.get((Scheme.W3A16_CHANNEL, Algorithm.RTN))
        for name in block.modules if request else ():
            table[name] = round_to_nearest(weight_of(loaded, name), request)
    return QuantizedModel(QuantizedTable(table))


def test_replies_are_what_the_candidate_generates(examined: Any, loaded: Any, choices: Space) -> None:
    examination, questions, (spec, tokenizer) = examined
    quantized = three_bits(loaded, choices)
    with fakequant.applied(loaded, quantized) as candidate:
        replies = examination.replies(candidate, spec)
        generated = reference.generate(candidate, questions, spec, tokenizer)
    for reply, said in zip(replies, generated, strict=True):
        assert (reply.answer.item_id, reply.answer.token_ids) == (said.item_id, said.token_ids)
        assert reply.answer.token_logprobs == pytest.approx(said.token_logprobs, abs=1e-4)
        assert reply.kl > 0
    changed = [r for r in replies if r.answer.token_ids != examination.answers[r.answer.item_id].token_ids]
    assert 0 < len(changed) < len(replies)


def test_the_reference_repeats_itself(examined: Any, loaded: Any) -> None:
    examination, _, (spec, _) = examined
    some = examination.items[5:9]
    for reply, item in zip(examination.replies(loaded, spec, some), some, strict=True):
        assert reply.answer.text == examination.answers[item.id].text
        assert reply.kl == pytest.approx(0.0, abs=1e-6)


def test_an_applied_candidate_leaves_no_trace(examined: Any, loaded: Any, choices: Space) -> None:
    import torch

    before = copy.deepcopy(loaded.state_dict())
    quantized = three_bits(loaded, choices)
    with fakequant.applied(loaded, quantized, lambda _: lambda value: value * math.nan) as candidate:
        name = next(iter(quantized.table))
        assert not torch.equal(candidate.get_parameter(f"{name}.weight"), before[f"{name}.weight"])
    assert all(torch.equal(value, before[name]) for name, value in loaded.state_dict().items())
    assert not any(module._forward_pre_hooks for module in loaded.modules())


def test_pictures_are_prepared_again_when_memory_is_short(
    examined: Any, loaded: Any, demo: SourceModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    examination, _, (spec, _) = examined
    monkeypatch.setattr("edgevlm_deploy.search.replies.KEPT_BYTES", 0)
    some = examination.items[:2]
    answers = [examination.answers[one.id] for one in some]
    forgetful = Examination(some, answers, examination._root, 0, demo.tokenizer)
    forgetful.observe_reference(loaded, spec, lambda _: None)
    assert [one.answer for one in forgetful.replies(loaded, spec)] == [
        one.answer for one in examination.replies(loaded, spec, some)
    ]
    assert not forgetful._kept


@pytest.mark.parametrize("method", [ReductionMethod.VISIONZIP, ReductionMethod.TOME])
def test_fewer_image_tokens_are_judged_against_all_of_them(
    examined: Any, loaded: Any, method: ReductionMethod
) -> None:
    examination, _, (spec, tokenizer) = examined
    wanted = Reduction(method=method, keep=0.5)
    fewer = reduction.reduced(spec, wanted)
    questions = [asked(item, examination, fewer, tokenizer) for item in examination.items]
    with reduction.applied(loaded, wanted, spec.prompt.tokens_per_tile) as model:
        generated = reference.generate(model, questions, fewer, tokenizer)
        replies = examination.replies(model, fewer)
    for reply, said in zip(replies, generated, strict=True):
        assert reply.answer.token_ids == said.token_ids and reply.kl > 0
    assert not loaded.model.connector._forward_hooks, "undone"


def test_a_pruned_decoder_is_judged_in_one_pass(examined: Any, loaded: Any) -> None:
    """What is generated token by token, each from the beginning."""
    examination, _, (spec, tokenizer) = examined
    fewer = reduction.reduced(spec, Reduction(method=ReductionMethod.FASTV, keep=0.2))
    replies = examination.replies(loaded, fewer)
    questions = (asked(item, examination, fewer, tokenizer) for item in examination.items)
    generated = {
        one.item_id: one
        for batch in pruned.batches(questions, 4)
        for one in pruned.generate(loaded, batch, fewer, tokenizer)
    }
    for item, reply in zip(examination.items, replies, strict=True):
        said = generated[item.id]
        assert reply.answer.token_ids == said.token_ids
        assert reply.answer.token_logprobs == pytest.approx(said.token_logprobs, abs=1e-4)
    assert max(reply.kl for reply in replies) > 1e-4


def test_batches_hold_questions_of_one_shape(examined: Any) -> None:
    _, questions, _ = examined
    made = list(pruned.batches(iter(questions), 4))
    assert sorted(one.item.id for batch in made for one in batch) == sorted(one.item.id for one in questions)
    for batch in made:
        assert len(batch) <= 4 and len({one.inputs.input_ids.shape for one in batch}) == 1


def asked(item: Item, examination: Examination, spec: Any, tokenizer: Any) -> reference.Question:
    return reference.Question(item, from_item(item, examination._root, 0, spec, tokenizer))


def test_a_dual_encoder_answers_in_one_pass(base: Recipe, tmp_path: Path) -> None:
    """The reference repeats itself; other weights of its text encoder move its classes."""
    import torch

    torch.set_num_threads(1)
    clip = source.inspect(tiny_dual.save("clip", tmp_path / "clip"))
    names = backends.graph_names(Backend.ONNXRUNTIME, DUAL_ENCODER)
    spec = source.model_spec(clip, base, "onnxruntime", names, tiny_dual.CLASSES)
    assert isinstance(spec, DualEncoderSpec)
    tokenizer, root = load_tokenizer(clip.tokenizer), tiny_dual.labelled(tmp_path / "pictures", 2)
    items = [
        Item(f"{name}-{n}", f"{name}-{n}", name, CLEAN, f"{name}/{n}.png", f"{name}-{n}", "", (name,))
        for name in tiny_dual.CLASSES
        for n in range(2)
    ]
    questions = [reference.Question(one, from_item(one, root, 0, spec, tokenizer)) for one in items]
    with quiet.libraries():
        model = source.load(clip)
    classes = reference.class_embeddings(model, spec, tokenizer)
    said = reference.classify(model, questions, spec, classes)
    examination = Examination(items, said, root, 0, clip.tokenizer)
    examination.observe_reference(model, spec, lambda _: None)
    again = examination.replies(model, spec)
    assert [one.answer.text for one in again] == [one.text for one in said]
    assert max(one.kl for one in again) < 1e-6 and max(one.shift for one in again) < 1e-3
    with torch.no_grad():
        model.text_model.encoder.layers[0].mlp.fc2.weight.mul_(-1)
    moved = examination.replies(model, spec)
    assert min(one.shift for one in moved) > 1e-3 and [one.answer.item_id for one in moved] == [
        item.id for item in items
    ]
