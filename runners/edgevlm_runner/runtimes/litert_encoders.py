"""A dual encoder on LiteRT: one .tflite file with two signatures of static shape."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Dict, Optional, TypeVar

import numpy as np

from edgevlm_runner.contract import DualEncoderSpec
from edgevlm_runner.errors import ExecutionError
from edgevlm_runner.runtimes import graph_path
from edgevlm_runner.runtimes.litert import MODEL, packed_file
from edgevlm_runner.runtimes.litert_executors import Signature, open_executor

Self = TypeVar("Self", bound="LiteRtEncoders")

ENCODE_IMAGE, ENCODE_TEXT = "encode_image", "encode_text"


class LiteRtEncoders:
    """`edgevlm_runner.runtimes.Encoders` on LiteRT.

    Raises RuntimeUnavailable when the package is missing, ExecutionError when the file is missing, damaged
    or of another shape than `spec` says.
    """

    def __init__(
        self,
        root: Path,
        spec: DualEncoderSpec,
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

    def encode_image(self, pixel_values: np.ndarray) -> np.ndarray:
        """float32 [N, 3, S, S] → float32 [N, D], one picture after the other."""
        rows = np.ascontiguousarray(pixel_values, np.float32)
        return self._encode(ENCODE_IMAGE, "pixel_values", "image_embeds", rows)

    def encode_text(self, input_ids: np.ndarray) -> np.ndarray:
        """int64 [N, T] → float32 [N, D], one text after the other."""
        return self._encode(
            ENCODE_TEXT, "token_ids", "text_embeds", np.ascontiguousarray(input_ids, np.int32)
        )

    def versions(self) -> Dict[str, str]:
        return {**self._executor.versions, "numpy": np.__version__}

    def close(self) -> None:
        self._executor.close()

    def __enter__(self: Self) -> Self:
        return self

    def __exit__(self, *error: Any) -> None:
        self.close()

    def _encode(self, signature: str, given: str, made: str, rows: np.ndarray) -> np.ndarray:
        run = self._executor.run
        try:
            outputs = [run(signature, {given: rows[at : at + 1]}, None)[made] for at in range(len(rows))]
        except Exception as error:  # LiteRT raises ValueError, RuntimeError and KeyError alike
            raise ExecutionError(f"LiteRT failed in {signature} on {list(rows.shape)}: {error}") from error
        return np.concatenate(outputs) if outputs else np.zeros((0, self._spec.projection_size), np.float32)

    def _check_signatures(self, path: Path) -> None:
        side, width, tokens = self._spec.image.side, self._spec.projection_size, self._spec.text.length
        expected = {
            ENCODE_IMAGE: Signature({"pixel_values": (1, 3, side, side)}, {"image_embeds": (1, width)}),
            ENCODE_TEXT: Signature({"token_ids": (1, tokens)}, {"text_embeds": (1, width)}),
        }
        found = self._executor.signatures
        for name, wanted in expected.items():
            if found.get(name) != wanted:
                raise ExecutionError(
                    f"{path}: {name} is {found.get(name, 'missing')}, the manifest asks for {wanted}. Graph "
                    "and manifest are of different models; compile the bundle again."
                )
