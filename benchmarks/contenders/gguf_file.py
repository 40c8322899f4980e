"""The checkpoint as two GGUF files: llama.cpp's `llama` architecture, and its vision tower (`mmproj`)."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

PREFIXES = {
    "model.text_model.": "model.",
    "model.vision_model.": "model.vision_model.",
    "model.connector.": "model.connector.",
    "lm_head.": "lm_head.",
}
"""transformers' names → the names that GGUF's own table of tensors knows."""
VISION = ("model.vision_model.", "model.connector.")
WORDS_IN_USE = ("<fake_token_around_image>", "<global-img>", "<image>", "\n", "\n\n", "ab")


def write_text(checkpoint: Path, shape: Mapping[str, Any], layers: str, path: Path) -> None:
    """`layers` is the type of the layers' matrices; head and embedding are Q8_0, norms float32.

    checkpoint is one safetensors file of fp16 tensors. The file appears when it is complete.
    """
    import gguf  # type: ignore[import-not-found]

    with _writer(path, "llama") as writer:
        _add_text_shape(writer, shape)
        writer.add_vocab_size(shape["vocab_size"])
        writer.add_tokenizer_model("no_vocab")
        names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, shape["layers"])
        for name, values in tensors(checkpoint):
            if name.startswith(VISION):
                continue
            place = target(name, names)
            if name.endswith(("q_proj.weight", "k_proj.weight")):
                values = interleaved(values, values.shape[0] // shape["head_dim"])
            kind = layers if place.startswith("blk.") else "Q8_0"
            _add(writer, place, values, "F32" if values.ndim == 1 else kind)


def write_words(shape: Mapping[str, Any], path: Path) -> None:
    """The text tower without weights, with a vocabulary: llama.cpp's vision tower looks its marks up there.

    No other word is ever looked up, because prompts come as ids.
    """
    words = [*WORDS_IN_USE, *(chr(0x21 + i) for i in range(94))]
    with _writer(path, "llama") as writer:
        _add_text_shape(writer, shape)
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre("default")
        writer.add_token_list(words)
        writer.add_token_types([4 if len(word) > 2 else 1 for word in words])  # 4: defined by the user
        writer.add_token_merges(["a b"])


def write_vision(checkpoint: Path, shape: Mapping[str, Any], kind: str, path: Path) -> None:
    """Vision encoder and projector, as llama.cpp's converter writes them; `kind` is the type of matrices.

    The preprocessor's longest edge is one tile, so that a picture of that size is not enlarged.
    """
    import gguf

    vision = shape["vision"]
    with _writer(path, "clip") as writer:
        writer.add_type(gguf.GGUFType.MMPROJ)
        writer.add_clip_has_vision_encoder(True)
        writer.add_clip_projector_type(gguf.VisionProjectorType.IDEFICS3)
        writer.add_vision_projection_dim(shape["hidden_size"])
        writer.add_vision_image_size(vision["image_size"])
        writer.add_vision_preproc_image_size(vision["image_size"])
        writer.add_vision_patch_size(vision["patch_size"])
        writer.add_vision_embedding_length(vision["hidden_size"])
        writer.add_vision_feed_forward_length(vision["intermediate_size"])
        writer.add_vision_block_count(vision["layers"])
        writer.add_vision_head_count(vision["heads"])
        writer.add_vision_attention_layernorm_eps(vision["layer_norm_eps"])
        writer.add_vision_projector_scale_factor(vision["scale_factor"])
        writer.add_vision_use_gelu(True)
        writer.add_vision_image_mean([0.5] * 3)
        writer.add_vision_image_std([0.5] * 3)
        names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.MMPROJ, vision["layers"])
        for name, values in tensors(checkpoint):
            if name.startswith(VISION):
                is_matrix = values.ndim == 2 and ".embeddings." not in name
                _add(writer, target(name, names), values, kind if is_matrix else "F32")


def weight_bytes(path: Path) -> int:
    """What one decoded token reads: every tensor but the embedding, of which it reads a row."""
    import gguf

    return sum(int(one.n_bytes) for one in gguf.GGUFReader(path).tensors if one.name != "token_embd.weight")


@contextmanager
def _writer(path: Path, architecture: str) -> Iterator[Any]:
    import gguf

    partial = path.with_name(path.name + ".partial")
    writer = gguf.GGUFWriter(partial, architecture)
    yield writer
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    partial.replace(path)


def _add(writer: Any, name: str, values: NDArray[np.float32], kind: str) -> None:
    import gguf

    stored = gguf.GGMLQuantizationType[kind]
    writer.add_tensor(name, gguf.quantize(values, stored), raw_dtype=stored)


def _add_text_shape(writer: Any, shape: Mapping[str, Any]) -> None:
    writer.add_block_count(shape["layers"])
    writer.add_context_length(shape["max_context"])
    writer.add_embedding_length(shape["hidden_size"])
    writer.add_feed_forward_length(shape["intermediate_size"])
    writer.add_head_count(shape["heads"])
    writer.add_head_count_kv(shape["kv_heads"])
    writer.add_rope_dimension_count(shape["head_dim"])
    writer.add_rope_freq_base(shape["rope_theta"])
    writer.add_layer_norm_rms_eps(shape["rms_norm_eps"])


def tensors(checkpoint: Path) -> Iterator[tuple[str, NDArray[np.float32]]]:
    """Name and float32 values of each tensor: 8 bytes of header length, JSON, data."""
    with checkpoint.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        header = json.loads(stream.read(length))
        for name, entry in header.items():
            if name == "__metadata__":
                continue
            stream.seek(8 + length + entry["data_offsets"][0])
            values = np.fromfile(stream, np.float16, math.prod(entry["shape"]))
            yield name, values.reshape(entry["shape"]).astype(np.float32)


def target(name: str, names: Any) -> str:
    """The tensor's name in a GGUF file; `names` is GGUF's table. Raises KeyError for one it does not know."""
    ours = next(prefix for prefix in PREFIXES if name.startswith(prefix))
    found = names.get_name(PREFIXES[ours] + name.removeprefix(ours), try_suffixes=(".weight", ".bias"))
    if found is None:
        raise KeyError(f"GGUF has no name for {name}")
    return str(found)


def interleaved(weight: NDArray[np.float32], heads: int) -> NDArray[np.float32]:
    """llama.cpp rotates neighbours, transformers halves of a head: rows are reordered to match."""
    rows, columns = weight.shape
    halves = weight.reshape(heads, 2, rows // heads // 2, columns)
    return np.ascontiguousarray(halves.swapaxes(1, 2).reshape(rows, columns))
