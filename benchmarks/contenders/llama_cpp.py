"""llama.cpp through llama-cpp-python's C bindings: the text tower alone. Runs in the peers' interpreter.

VARIANT is the type of the layers' weights, Q4_0 or Q8_0; head and embedding are Q8_0, as
edgevlm's are int8. The GGUF file is written from the checkpoint on first use.
"""

from __future__ import annotations

import ctypes
import json
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.contenders.gguf_file import weight_bytes, write_gguf
from benchmarks.shape import CHECKPOINT
from benchmarks.workload import serve


class LlamaCpp:
    def __init__(self, directory: Path, layers: str, threads: int) -> None:
        import llama_cpp  # type: ignore[import-not-found]

        self._api = llama_cpp
        self._shape = json.loads((directory / "shape.json").read_text())
        path = directory / f"text-{layers}.gguf"
        if not path.is_file():
            write_gguf(directory / CHECKPOINT / "model.safetensors", self._shape, layers, path)
        self._weight_bytes = weight_bytes(path)
        self._silence = llama_cpp.llama_log_callback(lambda level, text, data: None)
        llama_cpp.llama_log_set(self._silence, ctypes.c_void_p(0))
        llama_cpp.llama_backend_init()
        model = llama_cpp.llama_model_load_from_file(
            str(path).encode(), llama_cpp.llama_model_default_params()
        )
        options = llama_cpp.llama_context_default_params()
        options.n_ctx = options.n_batch = options.n_ubatch = self._shape["max_context"]
        options.n_threads = options.n_threads_batch = threads
        self._context = llama_cpp.llama_init_from_model(model, options)
        if not self._context:
            raise RuntimeError(f"llama.cpp does not load {path}")

    def look(self) -> bool:
        return False

    def read(self, ids: list[int]) -> NDArray[np.float32]:
        """Text tokens in place of the tile's: for the decoder they cost the same."""
        self._api.llama_memory_clear(self._api.llama_get_memory(self._context), False)
        return self._decode(ids)

    def write(self, token: int) -> NDArray[np.float32]:
        return self._decode([token])

    def weight_bytes(self) -> int:
        return self._weight_bytes

    def versions(self) -> dict[str, str]:
        info = self._api.llama_print_system_info().decode()
        used = " ".join(
            part.split("=")[0].strip() for part in info.split("|") if part.strip().endswith("= 1")
        )
        return {"llama-cpp-python": self._api.__version__, "llama.cpp built with": used}

    def _decode(self, ids: list[int]) -> NDArray[np.float32]:
        tokens = (self._api.llama_token * len(ids))(*ids)
        status = self._api.llama_decode(self._context, self._api.llama_batch_get_one(tokens, len(ids)))
        if status != 0:
            raise RuntimeError(f"llama_decode returned {status}")
        logits = self._api.llama_get_logits_ith(self._context, -1)
        return np.ctypeslib.as_array(logits, shape=(self._shape["vocab_size"],))


if __name__ == "__main__":
    serve("llama_cpp", LlamaCpp)
