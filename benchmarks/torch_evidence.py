"""A bundle's items answered by PyTorch: the quantised truth, without any runtime's own effects.

`python -m benchmarks.torch_evidence BUNDLE TABLE OUT THREADS` writes what `python -m edgevlm_runner` writes.
TABLE is the folder of the quantised model. Products are computed in fp32 with rounded weights, and rounded
inputs where the table has their ranges, so the speed is that of fp32.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]


class Torch:
    """`edgevlm_runner.runtimes.Runtime` on transformers' own modules, eager, with a dynamic cache."""

    def __init__(self, model: Any, threads: int) -> None:
        import torch

        torch.set_num_threads(threads)
        torch.set_grad_enabled(False)
        self._torch, self._model = torch, model
        self._cache: Any = None

    def encode_image(self, pixel_values: Floats) -> Floats:
        features = self._model.model.get_image_features(self._torch.from_numpy(pixel_values)[None])
        made: Floats = self._torch.stack(list(features.pooler_output)).numpy()
        return made

    def embed(self, input_ids: NDArray[np.int64]) -> Floats:
        made: Floats = self._model.model.text_model.embed_tokens(self._torch.from_numpy(input_ids)).numpy()
        return made

    def start(self, max_context: int) -> None:
        self.reset()

    def reset(self) -> None:
        self._cache = None

    def step(self, embeds: Floats) -> Floats:
        made = self._model.model.text_model(
            inputs_embeds=self._torch.from_numpy(embeds), past_key_values=self._cache, use_cache=True
        )
        self._cache = made.past_key_values
        logits: Floats = self._model.lm_head(made.last_hidden_state[:, -1])[0].numpy()
        return logits

    def versions(self) -> dict[str, str]:
        import transformers

        return {"torch": self._torch.__version__, "transformers": transformers.__version__}

    def close(self) -> None:
        self._model = None


def main() -> None:
    from edgevlm_runner import runtimes
    from edgevlm_runner.bundle import open_bundle
    from edgevlm_runner.measure import gather

    from edgevlm_deploy import quiet, resources, source
    from edgevlm_deploy.backends.half import half_precision, in_half
    from edgevlm_deploy.quantize import fakequant
    from edgevlm_deploy.quantize.quantized_model import QuantizedModel

    path, table, out, threads = (*map(Path, sys.argv[1:4]), int(sys.argv[4]))
    with quiet.libraries():
        loaded = half_precision(source.load(source.inspect(str(resources.DEMO_CHECKPOINT))))
        model = fakequant.apply(loaded, in_half(QuantizedModel.load(table)))
        with mock.patch.object(runtimes, "load", lambda *given: Torch(model, threads)):
            gather(open_bundle(path), out, lambda done, items: None, threads)


if __name__ == "__main__":
    main()
