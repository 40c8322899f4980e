"""transformers' own model, eager, in the number format that VARIANT names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.shape import CHECKPOINT
from benchmarks.workload import IMAGE_TOKENS, serve, tile


class PyTorch:
    """Decoder calls with a cache, without `generate` around them, whose Python would be counted too."""

    def __init__(self, directory: Path, dtype: str, threads: int) -> None:
        import torch
        from transformers import AutoModelForImageTextToText

        torch.set_num_threads(threads)
        torch.set_grad_enabled(False)
        self._torch, self._dtype = torch, getattr(torch, dtype)
        model = AutoModelForImageTextToText.from_pretrained(
            directory / CHECKPOINT, dtype=self._dtype, attn_implementation="sdpa", local_files_only=True
        )
        self._model = model.eval()
        pixels = tile(model.config.vision_config.image_size)
        self._pixels = torch.from_numpy(pixels)[None].to(self._dtype)
        self._features: Any = None
        self._cache: Any = None

    def look(self) -> NDArray[np.float32]:
        features = self._model.model.get_image_features(self._pixels).pooler_output
        self._features = self._torch.cat(list(features)).reshape(IMAGE_TOKENS, -1)
        seen: NDArray[np.float32] = self._features.float().numpy()
        return seen

    def read(self, ids: list[int]) -> NDArray[np.float32]:
        embeds = self._model.model.text_model.embed_tokens(self._torch.tensor([ids]))
        if self._features is not None:
            embeds[0, :IMAGE_TOKENS] = self._features
        self._cache = None
        return self._step(inputs_embeds=embeds)

    def write(self, token: int) -> NDArray[np.float32]:
        return self._step(input_ids=self._torch.tensor([[token]]))

    def weight_bytes(self) -> int:
        text = self._model.model.text_model
        used = [*text.layers.parameters(), *text.norm.parameters(), *self._model.lm_head.parameters()]
        return sum(one.nbytes for one in used)

    def versions(self) -> dict[str, str]:
        import transformers

        return {"torch": self._torch.__version__, "transformers": transformers.__version__}

    def _step(self, **inputs: Any) -> NDArray[np.float32]:
        made = self._model.model.text_model(**inputs, past_key_values=self._cache, use_cache=True)
        self._cache = made.past_key_values
        logits: NDArray[np.float32] = self._model.lm_head(made.last_hidden_state[:, -1])[0].float().numpy()
        return logits


if __name__ == "__main__":
    serve("pytorch", PyTorch)
