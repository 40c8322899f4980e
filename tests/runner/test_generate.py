"""The generation loop on a runtime whose logits are known."""

from __future__ import annotations

import dataclasses
import math
import time
from typing import Any

import numpy as np
import pytest
from edgevlm_runner.contract import ImageSpec, ModelSpec, PromptSpec, Pruning, kept_tokens
from edgevlm_runner.errors import ExecutionError, PromptError
from edgevlm_runner.generate import check_prompt, generate, greedy, splice, stream
from edgevlm_runner.runtimes.onnxruntime import pruned_inputs

SPEC = ModelSpec(
    family="smolvlm",
    runtime="onnxruntime",
    graphs={},
    image=ImageSpec(8, 8, False, None, 1, 1 / 255, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    prompt=PromptSpec("{image}{question}", "{question}", "<image>", "<fake>", "<global>", 2),
    image_token_id=9,
    eos_token_ids=(7,),
    max_new_tokens=5,
    max_context=16,
    layers=1,
    kv_heads=1,
    head_dim=1,
    hidden_size=2,
    vocab_size=10,
)
PICTURE = np.zeros((1, 3, 8, 8), np.float32)


class Counting:
    """After token t comes t + 1. An embedding is (token, 1), an image feature (−1, its row)."""

    def __init__(self) -> None:
        self.context: list[np.ndarray] = []

    def encode_image(self, pixel_values: np.ndarray) -> np.ndarray:
        return np.stack([[(-1.0, row) for row in range(2)] for _ in pixel_values]).astype(np.float32)

    def embed(self, input_ids: np.ndarray) -> np.ndarray:
        return np.stack([input_ids, np.ones_like(input_ids)], axis=-1).astype(np.float32)

    def start(self, max_context: int) -> None:
        self.reset()

    def reset(self) -> None:
        self.context = []

    def step(self, embeds: np.ndarray) -> np.ndarray:
        self.context.append(embeds)
        logits = np.zeros(10, np.float32)
        logits[int(embeds[0, -1, 0]) + 1] = math.log(9)
        return logits

    def versions(self) -> dict[str, str]:
        return {}

    def close(self) -> None: ...

    def __enter__(self) -> Counting:
        return self

    def __exit__(self, *error: Any) -> None: ...


def ids(*tokens: int) -> np.ndarray:
    return np.array([tokens], np.int64)


def test_stops_at_end_of_sequence_and_keeps_it() -> None:
    made = generate(Counting(), SPEC, None, ids(1, 4))
    assert made.token_ids == (5, 6, 7)
    assert made.finished
    assert made.prompt_tokens == 2


def test_stops_at_the_limit() -> None:
    made = generate(Counting(), dataclasses.replace(SPEC, eos_token_ids=()), None, ids(1))
    assert made.token_ids == (2, 3, 4, 5, 6)
    assert not made.finished


def test_log_probability_is_that_of_the_softmax() -> None:
    made = generate(Counting(), SPEC, None, ids(1, 4))
    assert made.token_logprobs == pytest.approx([math.log(9 / 18)] * 3)


def test_prefill_is_one_step_and_each_token_another() -> None:
    runtime = Counting()
    generate(runtime, SPEC, None, ids(1, 2, 4))
    assert [embeds.shape for embeds in runtime.context] == [(1, 3, 2), (1, 1, 2), (1, 1, 2)]


def test_a_decoder_that_drops_image_tokens_is_told_where_they_are() -> None:
    class Dropping(Counting):
        def read_prompt(self, embeds: np.ndarray, places: np.ndarray) -> np.ndarray:
            self.places = places.tolist()
            return self.step(embeds)

    pruned = dataclasses.replace(SPEC, pruning=Pruning(layer=2, keep=0.5))
    runtime = Dropping()
    assert generate(runtime, pruned, PICTURE, ids(1, 9, 9, 4)).token_ids == (5, 6, 7)
    assert runtime.places == [[False, True, True, False]]
    with pytest.raises(ExecutionError, match="no decoder that drops image tokens"):
        generate(Counting(), pruned, PICTURE, ids(1, 9, 9, 4))


def test_as_many_tokens_stay_as_the_share_says() -> None:
    assert [kept_tokens(n, 0.33) for n in (0, 1, 2, 16, 64)] == [0, 1, 1, 5, 21]
    places = np.array([[False, True, True, True, True, False]])
    made = pruned_inputs(Pruning(layer=2, keep=0.5), places, kept=3)
    assert made["image_tokens"].tolist() == [[0, 1, 1, 1, 1, 0]]
    assert made["kept_tokens"].shape == (1, 4) and made["kept_mask"].shape == (1, 7)


def test_a_second_question_starts_empty() -> None:
    runtime = Counting()
    first = generate(runtime, SPEC, None, ids(1, 4))
    second = generate(runtime, SPEC, None, ids(1, 4))
    assert first.token_ids == second.token_ids
    assert len(runtime.context) == 3


def test_image_features_replace_image_tokens_in_order() -> None:
    runtime = Counting()
    generate(runtime, SPEC, PICTURE, ids(1, 9, 9, 4))
    assert runtime.context[0][0].tolist() == [[1, 1], [-1, 0], [-1, 1], [4, 1]]


def test_streams_each_token_before_the_next_is_computed() -> None:
    runtime = Counting()
    tokens = stream(runtime, SPEC, None, ids(1, 4))
    assert next(tokens).id == 5
    assert len(runtime.context) == 1


def test_time_spent_by_the_reader_is_not_counted() -> None:
    tokens = stream(Counting(), SPEC, None, ids(1, 4))
    seconds = []
    with pytest.raises(StopIteration) as end:
        while True:
            seconds.append(next(tokens).seconds)
            time.sleep(0.05)
    timings = end.value.value.timings
    assert timings.token_seconds == tuple(seconds[1:])
    assert timings.time_to_first_token_seconds == pytest.approx(seconds[0])
    assert max(timings.token_seconds) < 0.05
    assert timings.total_seconds == pytest.approx(sum(seconds))


@pytest.mark.parametrize(
    ("picture", "tokens"), [(PICTURE, (1, 9, 4)), (PICTURE, (1, 4)), (None, (1, 9, 4))], ids=str
)
def test_image_tokens_must_match_the_picture(picture: np.ndarray | None, tokens: tuple[int, ...]) -> None:
    with pytest.raises(PromptError, match="image tokens"):
        check_prompt(SPEC, picture, ids(*tokens))


def test_prompt_and_answer_must_fit_the_context() -> None:
    check_prompt(SPEC, None, ids(*[1] * 11))
    runtime = Counting()
    with pytest.raises(PromptError, match=r"12 tokens .* context of 16"):
        generate(runtime, SPEC, None, ids(*[1] * 12))
    assert runtime.context == []


def test_an_empty_prompt_is_an_error() -> None:
    with pytest.raises(PromptError, match="empty"):
        check_prompt(SPEC, None, np.zeros((1, 0), np.int64))


def test_features_of_another_number_are_an_error() -> None:
    with pytest.raises(ExecutionError, match="3 image features for 2 image tokens"):
        splice(np.zeros((1, 4, 2), np.float32), np.zeros((1, 3, 2), np.float32), ids(1, 9, 9, 4), SPEC)


def test_logits_that_are_not_finite_are_an_error() -> None:
    with pytest.raises(ExecutionError, match="not finite"):
        greedy(np.array([0, np.nan], np.float32))


def test_large_logits_do_not_overflow() -> None:
    assert greedy(np.array([1000, 0], np.float32)) == (0, 0.0)
