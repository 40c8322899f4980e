"""A dual encoder on ONNX Runtime: two graphs on the CPU."""

from __future__ import annotations

from pathlib import Path
from typing import Mapping, Optional, Union

import numpy as np

from edgevlm_runner.contract import DualEncoderSpec
from edgevlm_runner.runtimes.onnx_graphs import OnnxGraphs

COMPONENTS = ("vision_encoder", "text_encoder")


class OnnxEncoders(OnnxGraphs):
    """`edgevlm_runner.runtimes.Encoders` on ONNX Runtime's CPU provider.

    Raises what `OnnxGraphs` does, and ExecutionError when a graph is of another shape than `spec` says.
    """

    def __init__(
        self,
        root: Path,
        spec: DualEncoderSpec,
        threads: int = 1,
        optimize: bool = True,
        settings: Optional[Mapping[str, str]] = None,
    ) -> None:
        super().__init__(root, spec, COMPONENTS, threads, optimize, settings)
        self._width = spec.projection_size
        side = spec.image.side
        tokens: Union[str, int] = spec.text.length if spec.text.padded else "tokens"
        self._check_signature(
            "vision_encoder",
            {"pixel_values": ["pictures", 3, side, side]},
            {"image_embeds": ["pictures", self._width]},
        )
        self._check_signature(
            "text_encoder", {"input_ids": ["texts", tokens]}, {"text_embeds": ["texts", self._width]}
        )

    def encode_image(self, pixel_values: np.ndarray) -> np.ndarray:
        """float32 [N, 3, S, S] → float32 [N, D], one picture after the other: a CPU gains nothing from
        batches."""
        return self._encode("vision_encoder", "pixel_values", "image_embeds", pixel_values)

    def encode_text(self, input_ids: np.ndarray) -> np.ndarray:
        """int64 [N, T] → float32 [N, D]."""
        return self._encode("text_encoder", "input_ids", "text_embeds", input_ids)

    def _encode(self, component: str, given: str, result: str, rows: np.ndarray) -> np.ndarray:
        outputs = [self._run(component, {given: rows[at : at + 1]})[result] for at in range(len(rows))]
        if not outputs:
            return np.zeros((0, self._width), np.float32)
        return np.concatenate(outputs).astype(np.float32)
