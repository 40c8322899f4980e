"""The checkpoint's text tower as a GGUF file of llama.cpp's `llama` architecture."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

LAYER_TENSORS = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
OTHER_TENSORS = {
    "model.text_model.embed_tokens.weight": "token_embd.weight",
    "model.text_model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
}


def write_gguf(checkpoint: Path, shape: Mapping[str, Any], layers: str, path: Path) -> None:
    """`layers` is the type of the layers' matrices; head and embedding are Q8_0, norms float32.

    checkpoint is one safetensors file of fp16 tensors. The file appears when it is complete.
    """
    import gguf  # type: ignore[import-not-found]

    partial = path.with_name(path.name + ".partial")
    writer = gguf.GGUFWriter(partial, "llama")
    writer.add_block_count(shape["layers"])
    writer.add_context_length(shape["max_context"])
    writer.add_embedding_length(shape["hidden_size"])
    writer.add_feed_forward_length(shape["intermediate_size"])
    writer.add_head_count(shape["heads"])
    writer.add_head_count_kv(shape["kv_heads"])
    writer.add_rope_dimension_count(shape["head_dim"])
    writer.add_rope_freq_base(shape["rope_theta"])
    writer.add_layer_norm_rms_eps(shape["rms_norm_eps"])
    writer.add_vocab_size(shape["vocab_size"])
    writer.add_tokenizer_model("no_vocab")
    for name, values in tensors(checkpoint):
        place = target(name)
        if place is None:
            continue
        if values.ndim == 1:
            writer.add_tensor(place, values)
            continue
        if name.endswith(("q_proj.weight", "k_proj.weight")):
            values = interleaved(values, values.shape[0] // shape["head_dim"])
        kind = gguf.GGMLQuantizationType[layers if place.startswith("blk.") else "Q8_0"]
        writer.add_tensor(place, gguf.quantize(values, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    partial.replace(path)


def weight_bytes(path: Path) -> int:
    """What one decoded token reads: every tensor but the embedding, of which it reads a row."""
    import gguf

    return sum(int(one.n_bytes) for one in gguf.GGUFReader(path).tensors if one.name != "token_embd.weight")


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


def target(name: str) -> str | None:
    """The tensor's name in a GGUF file; None for what belongs to the vision tower."""
    prefix = "model.text_model.layers."
    if not name.startswith(prefix):
        return OTHER_TENSORS.get(name)
    layer, _, module = name.removeprefix(prefix).removesuffix(".weight").partition(".")
    return f"blk.{layer}.{LAYER_TENSORS[module]}.weight"


def interleaved(weight: NDArray[np.float32], heads: int) -> NDArray[np.float32]:
    """llama.cpp rotates neighbours, transformers halves of a head: rows are reordered to match."""
    rows, columns = weight.shape
    halves = weight.reshape(heads, 2, rows // heads // 2, columns)
    return np.ascontiguousarray(halves.swapaxes(1, 2).reshape(rows, columns))
