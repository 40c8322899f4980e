"""llama.cpp through llama-cpp-python's C bindings. Runs in the peers' interpreter.

VARIANT is the type of the layers' weights, Q4_0 or Q8_0; head and embedding are Q8_0, as edgevlm's are int8,
and so are the matrices of the vision tower. The GGUF files are written from the checkpoint on first use.
"""

from __future__ import annotations

import ctypes
import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.contenders.gguf_file import weight_bytes, write_text, write_vision, write_words
from benchmarks.shape import CHECKPOINT
from benchmarks.workload import IMAGE_TOKENS, picture, serve

VISION_TYPE = "Q8_0"


class LlamaCpp:
    def __init__(self, directory: Path, layers: str, threads: int) -> None:
        import llama_cpp  # type: ignore[import-not-found]

        self._api = llama_cpp
        self._shape = json.loads((directory / "shape.json").read_text())
        checkpoint = directory / CHECKPOINT / "model.safetensors"
        text, vision = directory / f"text-{layers}.gguf", directory / f"vision-{VISION_TYPE}.gguf"
        if not text.is_file():
            write_text(checkpoint, self._shape, layers, text)
        if not vision.is_file():
            write_vision(checkpoint, self._shape, VISION_TYPE, vision)
        words = directory / "words.gguf"
        if not words.is_file():
            write_words(self._shape, words)
        self._weight_bytes = weight_bytes(text)
        self._silence = llama_cpp.llama_log_callback(lambda level, text, data: None)
        llama_cpp.llama_log_set(self._silence, ctypes.c_void_p(0))
        llama_cpp.llama_backend_init()
        model = llama_cpp.llama_model_load_from_file(
            str(text).encode(), llama_cpp.llama_model_default_params()
        )
        options = llama_cpp.llama_context_default_params()
        options.n_ctx = options.n_batch = options.n_ubatch = self._shape["max_context"]
        options.n_threads = options.n_threads_batch = threads
        self._context = llama_cpp.llama_init_from_model(model, options)
        if not self._context:
            raise RuntimeError(f"llama.cpp does not load {text}")
        options = llama_cpp.llama_model_default_params()
        options.vocab_only = True
        named = llama_cpp.llama_model_load_from_file(str(words).encode(), options)
        if not named:
            raise RuntimeError(f"llama.cpp does not load {words}")
        self._eye = _Eye(named, vision, self._shape, threads, self._silence)
        self._features: NDArray[np.float32] | None = None

    def look(self) -> NDArray[np.float32]:
        self._features = self._eye.encode()
        return self._features

    def read(self, ids: list[int]) -> NDArray[np.float32]:
        """Picture and text are two batches: llama.cpp takes either embeddings or tokens."""
        self._api.llama_memory_clear(self._api.llama_get_memory(self._context), False)
        if self._features is None:
            return self._decode(ids)
        self._decode_embeddings(self._features)
        return self._decode(ids[IMAGE_TOKENS:])

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

    def _decode_embeddings(self, features: NDArray[np.float32]) -> None:
        count, width = features.shape
        batch = self._api.llama_batch_init(count, width, 1)
        ctypes.memmove(batch.embd, features.ctypes.data, features.nbytes)
        batch.n_tokens = count
        for i in range(count):
            batch.pos[i], batch.n_seq_id[i], batch.logits[i] = i, 1, 0
            batch.seq_id[i][0] = 0
        status = self._api.llama_decode(self._context, batch)
        self._api.llama_batch_free(batch)
        if status != 0:
            raise RuntimeError(f"llama_decode returned {status} for image features")


class _Eye:
    """llama.cpp's vision tower (mtmd) with one tile, cut and normalised once."""

    def __init__(self, model: Any, path: Path, shape: dict[str, Any], threads: int, silence: Any) -> None:
        from llama_cpp import mtmd_cpp

        self._api = mtmd_cpp
        mtmd_cpp.mtmd_log_set(silence, ctypes.c_void_p(0))
        options = mtmd_cpp.mtmd_context_params_default()
        options.n_threads, options.use_gpu, options.print_timings = threads, False, False
        self._context = mtmd_cpp.mtmd_init_from_file(str(path).encode(), model, options)
        if not self._context:
            raise RuntimeError(f"llama.cpp does not load {path}")
        self._width = shape["hidden_size"]
        self._tile = self._first_tile(shape["vision"]["image_size"])

    def encode(self) -> NDArray[np.float32]:
        """float32 [IMAGE_TOKENS, D]."""
        status = self._api.mtmd_encode_chunk(self._context, self._tile)
        if status != 0:
            raise RuntimeError(f"mtmd_encode_chunk returned {status}")
        features = self._api.mtmd_get_output_embd(self._context)
        return np.ctypeslib.as_array(features, shape=(IMAGE_TOKENS, self._width)).copy()

    def _first_tile(self, side: int) -> Any:
        """The picture as one chunk. It comes twice, as a global view and as its only tile; one is timed."""
        pixels = picture(side)
        data = pixels.ctypes.data_as(ctypes.POINTER(ctypes.c_uint8))
        bitmap = self._api.mtmd_bitmap_init(side, side, data)
        marker = self._api.mtmd_default_marker()
        text = self._api.mtmd_input_text(marker, len(marker), False, True)
        chunks = self._api.mtmd_input_chunks_init()
        bitmaps = (self._api.mtmd_bitmap_p_ctypes * 1)(bitmap)
        status = self._api.mtmd_tokenize(self._context, chunks, ctypes.byref(text), bitmaps, 1)
        if status != 0:
            raise RuntimeError(f"mtmd_tokenize returned {status}")
        for number in range(self._api.mtmd_input_chunks_size(chunks)):
            chunk = self._api.mtmd_input_chunks_get(chunks, number)
            if self._api.mtmd_input_chunk_get_type(chunk) == self._api.MTMD_INPUT_CHUNK_TYPE_IMAGE:
                tokens = self._api.mtmd_input_chunk_get_n_tokens(chunk)
                if tokens != IMAGE_TOKENS:
                    raise RuntimeError(f"one tile is {tokens} tokens in llama.cpp, expected {IMAGE_TOKENS}")
                return chunk
        raise RuntimeError("llama.cpp found no picture in the prompt")


if __name__ == "__main__":
    serve("llama_cpp", LlamaCpp)
