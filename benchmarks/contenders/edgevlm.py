"""edgevlm's runner on ONNX Runtime. VARIANT is the recipe."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.workload import IMAGE_TOKENS, serve, tile


class EdgeVlm:
    """The runner's own calls, one by one: `generate` puts the same ones together."""

    def __init__(self, directory: Path, recipe: str, threads: int) -> None:
        from edgevlm_runner import runtimes
        from edgevlm_runner.contract import ModelSpec, from_json

        compiled = directory / recipe
        self._weight_bytes = int(
            json.loads((compiled / "compiled.json").read_text())["weight_bytes_per_token"]
        )
        path = compiled / "spec.json"
        self._spec = from_json(ModelSpec, json.loads(path.read_text()), str(path))
        self._runtime = runtimes.load(compiled, self._spec, threads)
        self._tile = tile(self._spec.image.tile_size)
        self._features: NDArray[np.float32] | None = None

    def look(self) -> NDArray[np.float32]:
        self._features = self._runtime.encode_image(self._tile)
        return self._features[0]

    def read(self, ids: list[int]) -> NDArray[np.float32]:
        from edgevlm_runner.generate import splice

        given = np.array([ids], np.int64)
        if self._features is not None:
            given[0, :IMAGE_TOKENS] = self._spec.image_token_id
        embeds = splice(self._runtime.embed(given), self._features, given, self._spec)
        self._runtime.reset()
        return self._runtime.step(embeds)

    def write(self, token: int) -> NDArray[np.float32]:
        return self._runtime.step(self._runtime.embed(np.array([[token]], np.int64)))

    def weight_bytes(self) -> int:
        return self._weight_bytes

    def versions(self) -> dict[str, str]:
        return self._runtime.versions()


if __name__ == "__main__":
    serve("edgevlm", EdgeVlm)
