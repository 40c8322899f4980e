"""A dual encoder on TensorRT: two engines, one picture or one text at a time.

Not run on hardware, as `tensorrt` says.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Dict, TypeVar

import numpy as np

from edgevlm_runner.contract import DualEncoderSpec
from edgevlm_runner.runtimes import graph_path
from edgevlm_runner.runtimes import profiles as optimisation
from edgevlm_runner.runtimes.cuda import Cuda
from edgevlm_runner.runtimes.tensorrt import open_engines
from edgevlm_runner.runtimes.tensorrt_build import import_tensorrt
from edgevlm_runner.runtimes.tensorrt_engines import typings
from edgevlm_runner.runtimes.tensorrt_execution import Component

Self = TypeVar("Self", bound="TensorRtEncoders")

COMPONENTS = ("vision_encoder", "text_encoder")


class TensorRtEncoders:
    """`edgevlm_runner.runtimes.Encoders` on TensorRT. Raises what `tensorrt.TensorRt` raises."""

    def __init__(self, root: Path, spec: DualEncoderSpec, cache: Path) -> None:
        """Build the engines of the graphs that `spec.graphs` names below `root`, or find them in `cache`."""
        trt = import_tensorrt()
        graphs = {component: graph_path(root, spec, component) for component in COMPONENTS}
        for component in COMPONENTS:
            optimisation.check(component, spec.profiles.get(component, ()))
        self._spec = spec
        self._cuda = Cuda()
        try:
            self._open(trt, graphs, cache)
        except BaseException:
            self.close()
            raise

    def _open(self, trt: Any, graphs: Dict[str, Path], cache: Path) -> None:
        spec, cuda = self._spec, self._cuda
        self._board, self._plans, self._runtime, engines = open_engines(trt, cuda, spec, graphs, cache)
        side, tokens, width = spec.image.side, spec.text.length, spec.projection_size
        vision, text = (engines[component] for component in COMPONENTS)
        vision.check({"pixel_values": (-1, 3, side, side), "image_embeds": (-1, width)})
        text.check({"input_ids": (-1, tokens), "text_embeds": (-1, width)})
        scratch_bytes = max(vision.scratch_bytes, text.scratch_bytes)
        scratch = (cuda.allocate(scratch_bytes), scratch_bytes)
        self._vision = Component(vision, "pixel_values", "image_embeds", scratch)
        self._text = Component(text, "input_ids", "text_embeds", scratch)

    def encode_image(self, pixel_values: np.ndarray) -> np.ndarray:
        """float32 [N, 3, S, S] → float32 [N, D], one picture after the other."""
        return self._encode(self._vision, pixel_values)

    def encode_text(self, input_ids: np.ndarray) -> np.ndarray:
        """int64 [N, T] → float32 [N, D], one text after the other."""
        return self._encode(self._text, input_ids)

    def versions(self) -> Dict[str, str]:
        return {
            "tensorrt": self._board.tensorrt,
            "cuda": self._board.cuda,
            "cuda_driver": self._board.driver,
            "gpu": self._board.gpu,
            "typing": typings(self._plans),
            "numpy": np.__version__,
        }

    def device_bytes(self) -> int:
        """What was allocated here, and the engines' files: the least that they take."""
        return self._cuda.allocated + sum(plan.path.stat().st_size for plan in self._plans.values())

    def build_seconds(self) -> float:
        """What building engines took in this process; 0 when the cache had them all."""
        return sum(plan.build_seconds for plan in self._plans.values())

    def close(self) -> None:
        """Free the engines before the memory that they are bound to."""
        self._vision = self._text = self._runtime = None  # type: ignore[assignment]
        self._cuda.close()

    def __enter__(self: Self) -> Self:
        return self

    def __exit__(self, *error: Any) -> None:
        self.close()

    def _encode(self, component: Component, rows: np.ndarray) -> np.ndarray:
        outputs = [component.run(rows[at : at + 1]) for at in range(len(rows))]
        return np.concatenate(outputs) if outputs else np.zeros((0, self._spec.projection_size), np.float32)
