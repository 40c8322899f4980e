"""Whether to answer: the confidence is scaled, and a score decides if the answer is given at all.

The score is MaxProb, the product of the token probabilities, or that of the bundle's Selector: two layers
that were trained on the host to tell how right an answer of this very artifact is. The Selector is a graph in
the runtime's own format; for TensorRT it is a table of weights that NumPy multiplies, because an engine for
two products of a few hundred numbers would take longer to launch.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, Optional, Protocol, Sequence

import numpy as np

from edgevlm_runner.contract import Certainty
from edgevlm_runner.errors import BundleError, ExecutionError

SELECTOR, MAX_PROB = "selector", "maxprob"
FEATURES, SCORE = "features", "score"
"""Names of the Selector's one input, float32 [1, F], and one output, float32 [1, 1]."""
SIGNATURE = "select"
"""Name of its signature in a .tflite file."""
LAYERS = ("weight_1", "bias_1", "weight_2", "bias_2")
"""Arrays of its .npz file: [F, W], [W], [W, 1], [1]."""
LOWEST_PROBABILITY = 1e-10


class Selector(Protocol):
    """A loaded Selector."""

    def __call__(self, features: np.ndarray) -> float:
        """float32 [F] → how right the answer is expected to be, in [0, 1]."""

    def close(self) -> None:
        """Free what was loaded."""


def max_prob(token_logprobs: Sequence[float]) -> float:
    """Product of the token probabilities; 0 without tokens."""
    return min(1.0, math.exp(math.fsum(token_logprobs))) if token_logprobs else 0.0


def features(pooled: np.ndarray, token_logprobs: Sequence[float]) -> np.ndarray:
    """float32 [3 D + 1]: what `generate.pool` made, then the log-odds of MaxProb.

    Log-odds, because probabilities of 0.99 and 0.9999 are the same number to two layers.
    """
    return np.append(pooled, np.float32(log_odds(max_prob(token_logprobs)))).astype(np.float32)


def scaled(confidence: float, temperature: float) -> float:
    """sigmoid(logit(confidence) / temperature)."""
    return 1.0 / (1.0 + math.exp(-log_odds(confidence) / temperature))


def log_odds(probability: float) -> float:
    """Of 0 and 1 they are infinite; probabilities keep a distance of 1e-10."""
    kept = min(max(probability, LOWEST_PROBABILITY), 1 - LOWEST_PROBABILITY)
    return math.log(kept) - math.log1p(-kept)


def abstains(certainty: Certainty, token_logprobs: Sequence[float], selector: Optional[float]) -> bool:
    """Whether the answer is withheld."""
    if not certainty.abstain:
        return False
    score = selector if certainty.abstain == SELECTOR else max_prob(token_logprobs)
    return certainty.threshold is None or score is None or score < certainty.threshold


def load(path: Path, runtime: str) -> Selector:
    """The Selector at `path`, in the format that bundles of this runtime have.

    Raises RuntimeUnavailable without the runtime, ExecutionError when it refuses the file, BundleError when
    the file is damaged.
    """
    if runtime == "onnxruntime":
        return _OnnxSelector(path)
    if runtime == "litert":
        return _LiteRtSelector(path)
    return _NumpySelector(path)


class _OnnxSelector:
    def __init__(self, path: Path) -> None:
        from edgevlm_runner.runtimes.onnxruntime import import_onnxruntime, open_session

        self._session = open_session(import_onnxruntime(), path, 1, True, {})

    def __call__(self, features: np.ndarray) -> float:
        try:
            return float(self._session.run([SCORE], {FEATURES: features[None]})[0][0, 0])
        except Exception as error:  # onnxruntime raises a dozen unrelated classes
            raise ExecutionError(f"ONNX Runtime failed in the selector: {error}") from error

    def close(self) -> None:
        self._session = None


class _LiteRtSelector:
    def __init__(self, path: Path) -> None:
        from edgevlm_runner.runtimes.litert_executors import open_executor

        self._executor: Any = open_executor(path, 1, "cpu", None, in_place=True)

    def __call__(self, features: np.ndarray) -> float:
        try:
            return float(self._executor.run(SIGNATURE, {FEATURES: features[None]}, None)[SCORE][0, 0])
        except Exception as error:  # LiteRT raises ValueError, RuntimeError and KeyError alike
            raise ExecutionError(f"LiteRT failed in the selector: {error}") from error

    def close(self) -> None:
        self._executor.close()


class _NumpySelector:
    def __init__(self, path: Path) -> None:
        try:
            with open(path, "rb") as stream, np.load(stream, allow_pickle=False) as stored:
                self._layers = [np.asarray(stored[name], np.float32) for name in LAYERS]
        except Exception as error:  # a damaged zip raises as many classes as there are ways to damage it
            raise BundleError(f"{path}: not a table of a selector's weights ({error}).") from error

    def __call__(self, features: np.ndarray) -> float:
        first, bias, second, end = self._layers
        if features.shape != first.shape[:1]:
            raise ExecutionError(
                f"The selector takes {first.shape[0]} features, got {list(features.shape)}. Selector and "
                "graphs are of different models."
            )
        inside = np.maximum(features @ first + bias, 0.0)
        odds = float((inside @ second + end)[0])
        return 1.0 / (1.0 + math.exp(-min(max(odds, -80.0), 80.0)))

    def close(self) -> None:
        self._layers = []
