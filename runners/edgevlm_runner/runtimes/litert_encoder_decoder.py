"""An encoder–decoder on LiteRT: one .tflite file whose signatures have static shapes.

    encode_image         pixel_values [1, 3, S, S] → image_states [1, image tokens, D]
    encode_question_N    token_ids int32 [1, N], image_states, mask [1, 1, 1, N] → question_states [1, N, D],
                         and per decoder layer cross_key_0, cross_value_0 … [1, heads, N, head dim]
    decode_N             token_ids int32 [1, 1], position int32 [1], mask, cross_* and past_key_0 …
                         [1, heads, C, head dim] → logits [1, V] and present_key_0 …

N is a length of questions: a shorter one is padded, and the mask, 0 where there is a token and −1e4 where
not, hides the padding from text encoder and decoder. C is the longest answer.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Dict, Iterator, List, Mapping, Optional, Tuple, TypeVar

import numpy as np

from edgevlm_runner.contract import EncoderDecoderSpec
from edgevlm_runner.errors import ExecutionError
from edgevlm_runner.runtimes import graph_path
from edgevlm_runner.runtimes.litert import HIDDEN, MODEL, packed_file
from edgevlm_runner.runtimes.litert_executors import Shapes, Signature, open_executor

Self = TypeVar("Self", bound="LiteRtEncoderDecoder")

ENCODE_IMAGE = "encode_image"


def question_signature(tokens: int) -> str:
    return f"encode_question_{tokens}"


def decode_signature(tokens: int) -> str:
    return f"decode_{tokens}"


def layer_names(prefix: str, layers: int) -> List[str]:
    """E.g. past_key_0, past_value_0, past_key_1 …"""
    return [f"{prefix}_{part}_{layer}" for layer in range(layers) for part in ("key", "value")]


class LiteRtEncoderDecoder:
    """`edgevlm_runner.runtimes.EncoderDecoder` on LiteRT.

    Raises RuntimeUnavailable when the package is missing, ExecutionError when the file is missing, damaged
    or of another shape than `spec` says.
    """

    def __init__(
        self,
        root: Path,
        spec: EncoderDecoderSpec,
        threads: int = 1,
        accelerator: str = "cpu",
        packed_weights: Optional[Path] = None,
    ) -> None:
        """Load the file that `spec.graphs` names below `root`; the rest as for `litert.LiteRt`."""
        self._spec = spec
        path = graph_path(root, spec, MODEL)
        kept = packed_file(packed_weights, path)
        self._executor = open_executor(path, threads, accelerator, kept, in_place=True)
        self._check_signatures(path)
        self._length = self._tokens = 0
        self._question: Dict[str, np.ndarray] = {}
        self._past: Dict[str, np.ndarray] = {}

    def encode_image(self, pixel_values: np.ndarray) -> np.ndarray:
        """float32 [1, 3, S, S] → float32 [1, image tokens, D]."""
        pixels = np.ascontiguousarray(pixel_values, np.float32)
        return self._run(ENCODE_IMAGE, {"pixel_values": pixels})["image_states"]

    def read_question(self, image_states: np.ndarray, input_ids: np.ndarray) -> np.ndarray:
        """Keeps keys and values of the question for the decoder. int64 [1, T] → float32 [1, T, D]."""
        spec, tokens = self._spec, input_ids.shape[1]
        fitting = [length for length in spec.question_lengths if length >= tokens]
        if not fitting:
            raise ExecutionError(f"{tokens} tokens; the graphs read {spec.question_lengths[-1]} at most.")
        self._length = fitting[0]
        ids = np.full((1, self._length), spec.pad_token_id, np.int32)
        ids[:, :tokens] = input_ids
        mask = np.zeros((1, 1, 1, self._length), np.float32)
        mask[..., tokens:] = HIDDEN
        inputs = {"token_ids": ids, "image_states": image_states, "mask": mask}
        made = self._run(question_signature(self._length), inputs)
        cross = {name: made[name] for name in layer_names("cross", spec.layers)}
        self._question = {"mask": mask, **cross}
        empty = np.zeros((1, spec.heads, spec.max_new_tokens, spec.head_dim), np.float32)
        self._past = dict.fromkeys(layer_names("past", spec.layers), empty)
        self._tokens = 0
        return made["question_states"][:, :tokens]

    def step(self, token: int) -> np.ndarray:
        """Append one token to the answer → logits float32 [V] of the next."""
        spec = self._spec
        if not self._question or self._tokens >= spec.max_new_tokens:
            raise ExecutionError(
                f"An answer of {spec.max_new_tokens} tokens is full, or no question was read; "
                "call read_question() first."
            )
        inputs = {
            "token_ids": np.array([[token]], np.int32),
            "position": np.array([self._tokens], np.int32),
        }
        made = self._run(decode_signature(self._length), {**inputs, **self._question, **self._past})
        present = layer_names("present", spec.layers)
        self._past = {old: made[new] for old, new in zip(self._past, present)}
        self._tokens += 1
        logits: np.ndarray = made["logits"][0]
        return logits

    def versions(self) -> Dict[str, str]:
        return {**self._executor.versions, "numpy": np.__version__}

    def close(self) -> None:
        self._executor.close()

    def __enter__(self: Self) -> Self:
        return self

    def __exit__(self, *error: Any) -> None:
        self.close()

    def _run(self, signature: str, inputs: Mapping[str, np.ndarray]) -> Dict[str, np.ndarray]:
        try:
            made: Dict[str, np.ndarray] = self._executor.run(signature, dict(inputs), None)
        except Exception as error:  # LiteRT raises ValueError, RuntimeError and KeyError alike
            shapes = ", ".join(f"{name} {list(array.shape)}" for name, array in inputs.items())
            raise ExecutionError(f"LiteRT failed in {signature} on {shapes}: {error}") from error
        return made

    def _check_signatures(self, path: Path) -> None:
        found = self._executor.signatures
        for name, wanted in self._expected():
            if found.get(name) != wanted:
                raise ExecutionError(
                    f"{path}: {name} is {found.get(name, 'missing')}, the manifest asks for {wanted}. Graph "
                    "and manifest are of different models; compile the bundle again."
                )

    def _expected(self) -> Iterator[Tuple[str, Signature]]:
        spec = self._spec
        side, layers = spec.image.side, spec.layers
        states: Shapes = {"image_states": (1, spec.image_tokens, spec.hidden_size)}
        yield ENCODE_IMAGE, Signature({"pixel_values": (1, 3, side, side)}, states)
        cache = (1, spec.heads, spec.max_new_tokens, spec.head_dim)
        past, present = (dict.fromkeys(layer_names(one, layers), cache) for one in ("past", "present"))
        for tokens in spec.question_lengths:
            cross: Shapes = dict.fromkeys(
                layer_names("cross", layers), (1, spec.heads, tokens, spec.head_dim)
            )
            mask: Shapes = {"mask": (1, 1, 1, tokens)}
            yield (
                question_signature(tokens),
                Signature(
                    {"token_ids": (1, tokens), **states, **mask},
                    {"question_states": (1, tokens, spec.hidden_size), **cross},
                ),
            )
            yield (
                decode_signature(tokens),
                Signature(
                    {"token_ids": (1, 1), "position": (1,), **mask, **cross, **past},
                    {"logits": (1, spec.vocab_size), **present},
                ),
            )
