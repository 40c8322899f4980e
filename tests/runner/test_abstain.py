"""Whether an answer is given: the scores, the scaling and the rule."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
from edgevlm_runner import abstain
from edgevlm_runner.contract import Answer, Certainty, ModelSpec, from_json, to_json
from edgevlm_runner.generate import generate, pool
from hypothesis import given
from hypothesis import strategies as st

from edgevlm_deploy.metrics import temperature

LOGPROBS = (math.log(0.5), math.log(0.8))


def test_features_are_the_largest_of_each_and_the_odds_of_the_answer() -> None:
    features = np.array([[[1.0, 5.0], [3.0, 2.0]], [[0.0, 0.0], [-1.0, 9.0]]], np.float32)
    words = np.array([[7.0, 1.0], [2.0, 8.0]], np.float32)
    pooled = pool(features, words, np.array([0.5, 0.25], np.float32))
    assert pooled.tolist() == [3.0, 9.0, 7.0, 8.0, 0.5, 0.25]
    found = abstain.features(pooled, LOGPROBS)
    assert found.dtype == np.float32 and found[:6].tolist() == pooled.tolist()
    assert found[6] == pytest.approx(math.log(0.4 / 0.6))


def test_a_question_without_a_picture_has_zeros_for_it() -> None:
    assert pool(None, np.ones((3, 2), np.float32), np.ones(2, np.float32)).tolist() == [0, 0, 1, 1, 1, 1]


@given(st.floats(0, 1), st.floats(0.05, 20))
def test_the_device_scales_as_the_host_fits(confidence: float, by: float) -> None:
    expected = temperature.scaled(np.array([confidence]), by)[0]
    assert abstain.scaled(confidence, by) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize(
    ("certainty", "selector", "withheld"),
    [
        (Certainty(), None, False),
        (Certainty(abstain="maxprob", threshold=0.3), None, False),
        (Certainty(abstain="maxprob", threshold=0.5), 0.9, True),
        (Certainty(abstain="selector", threshold=0.5), 0.5, False),
        (Certainty(abstain="selector", threshold=0.5), 0.49, True),
        (Certainty(abstain="selector", threshold=None), 1.0, True),
    ],
)
def test_the_rule(certainty: Certainty, selector: float | None, withheld: bool) -> None:
    assert abstain.abstains(certainty, LOGPROBS, selector) is withheld


def test_answers_from_before_there_were_selectors_are_read() -> None:
    answer = Answer("q", "blue", (1,), (-0.1,), True, 0.25)
    assert from_json(Answer, to_json(answer), "answers.jsonl") == answer
    older = {key: value for key, value in to_json(answer).items() if key != "selector"}
    assert from_json(Answer, older, "answers.jsonl").selector is None


class Knowing:
    """One step says token 7, the end; its hidden state is the last embedding."""

    def encode_image(self, pixel_values: np.ndarray) -> np.ndarray:
        return np.full((len(pixel_values), 1, 2), 3.0, np.float32)

    def embed(self, input_ids: np.ndarray) -> np.ndarray:
        return np.stack([input_ids, -input_ids], axis=-1).astype(np.float32)

    def reset(self) -> None: ...

    def step(self, embeds: np.ndarray) -> np.ndarray:
        self.last = embeds[0, -1]
        return np.eye(10, dtype=np.float32)[7]

    def hidden(self) -> np.ndarray:
        return self.last


def test_image_tokens_are_no_words_of_the_question() -> None:
    from small_bundle import MODEL

    prompt = dataclasses.replace(MODEL.prompt, tokens_per_tile=1)
    spec: ModelSpec = dataclasses.replace(
        MODEL, prompt=prompt, image_token_id=9, eos_token_ids=(7,), hidden=True
    )
    pixels, ids = np.zeros((1, 3, 8, 8), np.float32), np.array([[1, 9, 4]])
    made = generate(Knowing(), spec, pixels, ids)  # type: ignore[arg-type]
    assert made.pooled is not None and made.pooled.tolist() == [3, 3, 4, -1, 4, -4]
    plain = dataclasses.replace(spec, hidden=False)
    assert generate(Knowing(), plain, pixels, ids).pooled is None  # type: ignore[arg-type]
