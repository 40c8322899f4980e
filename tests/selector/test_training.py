"""The Selector learns what the probability does not tell, and its file says what its layers say."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from edgevlm_runner import abstain
from edgevlm_runner.errors import BundleError, ExecutionError
from numpy.typing import NDArray

from edgevlm_deploy import selector
from edgevlm_deploy.metrics import selective
from edgevlm_deploy.recipe import Abstention
from edgevlm_deploy.target import Backend

N, F = 600, 7


def answers() -> tuple[NDArray[np.float32], NDArray[np.float64]]:
    """Right where two features agree in sign; the last one, MaxProb's place, is noise. One is constant."""
    features = np.random.default_rng(0).normal(3.0, 2.0, (N, F)).astype(np.float32)
    features[:, 4] = 5.0
    right = (features[:, 0] - 3) * (features[:, 1] - 3) > 0
    return features, right.astype(np.float64)


@pytest.fixture(scope="module")
def trained() -> selector.Trained:
    features, accuracy = answers()
    training = np.arange(N) < 400
    made = selector.train(features, accuracy, training, (np.arange(N) >= 400) & (np.arange(N) < 500), seed=0)
    assert made is not None
    return made


def test_it_ranks_answers_that_it_never_saw(trained: selector.Trained) -> None:
    features, accuracy = answers()
    unseen = np.arange(N) >= 500
    learnt = selective.risk_coverage_auc(trained.layers.scores(features)[unseen], accuracy[unseen])
    by_noise = selective.risk_coverage_auc(features[unseen, -1].astype(np.float64), accuracy[unseen])
    assert learnt is not None and by_noise is not None
    assert learnt < 0.5 * by_noise


def test_the_choice_is_the_best_trial(trained: selector.Trained) -> None:
    assert trained.chosen.validation_auc == min(one.validation_auc for one in trained.trials)
    assert len({(one.width, one.learning_rate) for one in trained.trials}) == len(trained.trials) == 6
    assert trained.layers.weight_1.shape == (F, trained.chosen.width)


def test_a_feature_that_never_changed_in_training_says_nothing(trained: selector.Trained) -> None:
    features, _ = answers()
    off = features.copy()
    off[:, 4] = 1000.0
    np.testing.assert_array_equal(trained.layers.scores(off), trained.layers.scores(features))


def test_the_same_seed_gives_the_same_layers(trained: selector.Trained) -> None:
    features, accuracy = answers()
    parts = np.arange(N) < 400, (np.arange(N) >= 400) & (np.arange(N) < 500)
    again = selector.train(features, accuracy, *parts, seed=0)
    assert again is not None
    np.testing.assert_array_equal(again.layers.weight_1, trained.layers.weight_1)


@pytest.mark.parametrize("accuracy", [np.ones(N), np.zeros(N), (np.arange(N) < 400).astype(np.float64)])
def test_answers_of_one_kind_teach_nothing(accuracy: NDArray[np.float64]) -> None:
    training = np.arange(N) < 400
    assert selector.train(answers()[0], accuracy, training, ~training, seed=0) is None


@pytest.mark.parametrize("backend", Backend)
def test_every_runtime_computes_what_torch_does(
    trained: selector.Trained, backend: Backend, tmp_path: Path
) -> None:
    features, _ = answers()
    path = tmp_path / Path(selector.NAMES[backend]).name
    assert selector.write(trained.layers, backend, features, path) <= 1e-5
    loaded = abstain.load(path, backend.value)
    expected = trained.layers.scores(features[:20])
    np.testing.assert_allclose([loaded(one) for one in features[:20]], expected, atol=2e-5)
    with pytest.raises(ExecutionError):
        loaded(features[0, :-1])


@pytest.mark.parametrize("backend", [Backend.ONNXRUNTIME, Backend.TENSORRT])
def test_the_same_layers_give_the_same_bytes(
    trained: selector.Trained, backend: Backend, tmp_path: Path
) -> None:
    features, _ = answers()
    for name in ("one", "two"):
        selector.write(trained.layers, backend, features, tmp_path / name)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


def test_a_table_of_weights_that_is_damaged_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "selector.npz").write_bytes(b"PK\x03\x04 broken")
    with pytest.raises(BundleError, match="not a table of a selector's weights"):
        abstain.load(tmp_path / "selector.npz", "tensorrt")


CONFIDENCE, ACCURACY = np.array([0.9, 0.8, 0.7, 0.6, 0.5]), np.array([1.0, 1.0, 0.0, 1.0, 0.0])


@pytest.mark.parametrize(
    ("wanted", "value", "coverage", "risk"),
    [
        (Abstention(risk=0.25), 0.6, 0.8, 0.25),
        (Abstention(risk=0.01), 0.8, 0.4, 0.0),
        (Abstention(cost=1), 0.6, 0.8, 0.25),
        (Abstention(cost=10), 0.8, 0.4, 0.0),
    ],
)
def test_golden_thresholds(wanted: Abstention, value: float, coverage: float, risk: float) -> None:
    found = selector.choose(CONFIDENCE, ACCURACY, wanted)
    assert (found.value, found.coverage, found.risk) == pytest.approx((value, coverage, risk))


@pytest.mark.parametrize("wanted", [Abstention(risk=0.25), Abstention(cost=1)])
def test_a_model_that_is_always_wrong_abstains_on_all(wanted: Abstention) -> None:
    found = selector.choose(CONFIDENCE, np.zeros(5), wanted)
    assert dataclasses.astuple(found) == (None, 5, 0.0, None)
