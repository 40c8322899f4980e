"""An encoder–decoder on ONNX Runtime: three graphs on the CPU.

    vision_encoder  pixel_values [1, 3, S, S] → image_states [1, image tokens, D]
    text_encoder    input_ids [1, T], image_states → question_states [1, T, D], and per decoder layer the
                    keys and values that it attends to, cross_key.N and cross_value.N [1, heads, T, head dim]
    decoder         input_ids [1, 1], position [1], cross_*, and per layer past_key.N and past_value.N
                    [1, heads, C, head dim] → logits [1, V], present_* with the token written at its position

An answer is short: its cache of C tokens is a few hundred kilobytes, and copied at each step.
"""

from __future__ import annotations

from pathlib import Path
from typing import Dict, List, Mapping, Optional

import numpy as np

from edgevlm_runner.contract import EncoderDecoderSpec
from edgevlm_runner.errors import ExecutionError
from edgevlm_runner.runtimes.onnx_graphs import OnnxGraphs, Shape

COMPONENTS = ("vision_encoder", "text_encoder", "decoder")


def layer_names(prefix: str, layers: int) -> List[str]:
    """E.g. past_key.0, past_value.0, past_key.1 …"""
    return [f"{prefix}_{part}.{layer}" for layer in range(layers) for part in ("key", "value")]


class OnnxEncoderDecoder(OnnxGraphs):
    """`edgevlm_runner.runtimes.EncoderDecoder` on ONNX Runtime's CPU provider.

    Raises what `OnnxGraphs` does, and ExecutionError when a graph is of another shape than `spec` says.
    """

    def __init__(
        self,
        root: Path,
        spec: EncoderDecoderSpec,
        threads: int = 1,
        optimize: bool = True,
        settings: Optional[Mapping[str, str]] = None,
    ) -> None:
        super().__init__(root, spec, COMPONENTS, threads, optimize, settings)
        self._spec = spec
        self._cross: Dict[str, np.ndarray] = {}
        self._past: Dict[str, np.ndarray] = {}
        self._tokens = 0
        self._check_signatures()

    def encode_image(self, pixel_values: np.ndarray) -> np.ndarray:
        """float32 [1, 3, S, S] → float32 [1, image tokens, D]."""
        states = self._run("vision_encoder", {"pixel_values": pixel_values})["image_states"]
        return states.astype(np.float32)

    def read_question(self, image_states: np.ndarray, input_ids: np.ndarray) -> np.ndarray:
        """Keeps keys and values of the question for the decoder. int64 [1, T] → float32 [1, T, D]."""
        spec = self._spec
        made = self._run("text_encoder", {"input_ids": input_ids, "image_states": image_states})
        self._cross = {name: made[name] for name in layer_names("cross", spec.layers)}
        empty = np.zeros((1, spec.heads, spec.max_new_tokens, spec.head_dim), np.float32)
        self._past = dict.fromkeys(layer_names("past", spec.layers), empty)
        self._tokens = 0
        return made["question_states"].astype(np.float32)

    def step(self, token: int) -> np.ndarray:
        """Append one token to the answer → logits float32 [V] of the next."""
        spec = self._spec
        if not self._cross or self._tokens >= spec.max_new_tokens:
            raise ExecutionError(
                f"An answer of {spec.max_new_tokens} tokens is full, or no question was read; "
                "call read_question() first."
            )
        inputs = {"input_ids": np.array([[token]]), "position": np.array([self._tokens])}
        made = self._run("decoder", {**inputs, **self._cross, **self._past})
        present = layer_names("present", spec.layers)
        self._past = {old: made[new] for old, new in zip(self._past, present)}
        self._tokens += 1
        logits: np.ndarray = made["logits"][0].astype(np.float32)
        return logits

    def _check_signatures(self) -> None:
        spec = self._spec
        side, width = spec.image.side, spec.hidden_size
        states: Shape = [1, spec.image_tokens, width]
        cross: Shape = [1, spec.heads, "tokens", spec.head_dim]
        cache: Shape = [1, spec.heads, spec.max_new_tokens, spec.head_dim]
        seen = dict.fromkeys(layer_names("cross", spec.layers), cross)
        past, present = (dict.fromkeys(layer_names(one, spec.layers), cache) for one in ("past", "present"))
        self._check_signature(
            "vision_encoder", {"pixel_values": [1, 3, side, side]}, {"image_states": states}
        )
        self._check_signature(
            "text_encoder",
            {"input_ids": [1, "tokens"], "image_states": states},
            {"question_states": [1, "tokens", width], **seen},
        )
        self._check_signature(
            "decoder",
            {"input_ids": [1, 1], "position": [1], **seen, **past},
            {"logits": [1, spec.vocab_size], **present},
        )
