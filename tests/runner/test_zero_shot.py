"""Classes, cosines and probabilities of a dual encoder, in NumPy alone."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
from edgevlm_runner import zero_shot
from edgevlm_runner.contract import (
    Answer,
    ModelSpec,
    from_json,
    model_from_json,
    to_json,
)
from edgevlm_runner.errors import BundleError, PromptError
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from small_bundle import MODEL
from small_dual import SPEC, TEXT, words


def test_rows_are_padded_to_the_length_or_to_the_longest() -> None:
    texts = [*zero_shot.sentences(["cat"], TEXT.templates), "a dog dog"]
    assert texts == ["a cat", "one cat", "a dog dog"]
    assert zero_shot.tokens(texts, TEXT, words()).tolist() == [[0, 2, 9, 9], [1, 2, 9, 9], [0, 3, 3, 9]]
    ragged = dataclasses.replace(TEXT, padded=False)
    assert zero_shot.tokens(texts, ragged, words()).shape == (3, 3)


def test_a_text_is_never_cut_silently() -> None:
    with pytest.raises(PromptError, match=r"'a cat cat cat cat' has 5 tokens, the text encoder reads 4"):
        zero_shot.tokens(["a cat cat cat cat"], TEXT, words())


def test_a_class_is_the_mean_of_its_sentences_on_the_sphere() -> None:
    """Two sentences at right angles: their class lies between them, whatever their lengths."""
    axes = {0: [5.0, 0.0, 0.0], 1: [0.0, 0.1, 0.0]}

    def encode(ids: np.ndarray) -> np.ndarray:
        return np.array([axes[row[0]] for row in ids], np.float32)

    found = zero_shot.embed_classes(encode, TEXT.classes, TEXT, words())
    np.testing.assert_allclose(found, [[math.sqrt(0.5), math.sqrt(0.5), 0.0]] * 2, atol=1e-7)


def test_the_nearest_class_is_chosen_with_its_probability() -> None:
    """Golden: cosines 0.6 and 0.8; with scale 5, softmax gives e^4 / (e^3 + e^4)."""
    classes = np.array([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]], np.float32)
    spec = dataclasses.replace(SPEC, logit_scale=5.0)
    choice = zero_shot.choose(np.array([3.0, 4.0, 0.0], np.float32), classes, spec)
    assert (choice.place, choice.scores) == (1, (0.6, 0.8))
    assert choice.log_probability == pytest.approx(math.log(math.e / (1 + math.e)))
    siglip = dataclasses.replace(spec, activation="sigmoid", logit_bias=-4.0)
    choice = zero_shot.choose(np.array([3.0, 4.0, 0.0], np.float32), classes, siglip)
    assert choice.log_probability == pytest.approx(math.log(0.5)), "5 · 0.8 − 4 = 0"


@given(arrays.arrays(np.float64, st.integers(2, 9), elements=st.floats(-1, 1)))
def test_probabilities_are_probabilities(cosines: np.ndarray) -> None:
    softmax = np.exp(zero_shot.log_probabilities(cosines, SPEC))
    assert softmax.sum() == pytest.approx(1.0)
    sigmoid = zero_shot.log_probabilities(cosines, dataclasses.replace(SPEC, activation="sigmoid"))
    assert (sigmoid <= 0).all() and np.isfinite(sigmoid).all()
    assert (np.diff(softmax[np.argsort(cosines)]) >= 0).all()


@given(arrays.arrays(np.float64, st.integers(2, 9), elements=st.floats(-1, 1)), st.floats(0.1, 10))
def test_a_temperature_divides_logits_and_keeps_the_order(cosines: np.ndarray, temperature: float) -> None:
    for spec in (SPEC, dataclasses.replace(SPEC, activation="sigmoid", logit_bias=-10.0)):
        cooled = zero_shot.tempered(spec, temperature)
        assert cooled.logit_scale * temperature == pytest.approx(spec.logit_scale)
        assert cooled.logit_bias * temperature == pytest.approx(spec.logit_bias)
        found = zero_shot.log_probabilities(cosines, cooled)
        best = cosines.argmax()
        assert found[best] == found.max()
        if spec.activation == "sigmoid":
            logit = (spec.logit_scale * cosines[best] + spec.logit_bias) / temperature
            assert found[best] == pytest.approx(-np.logaddexp(0.0, -logit), abs=1e-9)


def test_both_kinds_of_model_survive_json() -> None:
    for spec in (MODEL, SPEC):
        assert model_from_json(to_json(spec), "model.json") == spec
    old = to_json(MODEL)
    del old["kind"]
    assert isinstance(model_from_json(old, "model.json"), ModelSpec), "bundles from before there were kinds"
    with pytest.raises(BundleError, match="a model of kind 'oracle'"):
        model_from_json({**to_json(SPEC), "kind": "oracle"}, "model.json")
    with pytest.raises(BundleError, match=r"lacks \['text'\]"):
        model_from_json({key: value for key, value in to_json(SPEC).items() if key != "text"}, "model.json")


def test_scores_are_optional_in_answers() -> None:
    answer = Answer("a", "cat", (0,), (-0.1,), True, scores=(0.3, 0.2))
    assert from_json(Answer, to_json(answer), "answers") == answer
    plain = to_json(answer)
    del plain["scores"]
    assert from_json(Answer, plain, "answers").scores == ()
