"""The measured model: SmolVLM-256M's shape with random weights. Speed does not depend on their values."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from benchmarks.workload import MAX_CONTEXT

# The published configuration of SmolVLM-256M-Instruct, without what equals the defaults.
SMOLVLM_256M: dict[str, Any] = {
    "model_type": "idefics3",
    "image_token_id": 49190,
    "scale_factor": 4,
    "tie_word_embeddings": False,
    "text_config": {
        "model_type": "llama",
        "vocab_size": 49280,
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "head_dim": 64,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-5,
        "rope_theta": 100000,
        "max_position_embeddings": 8192,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 2,
        "tie_word_embeddings": False,
    },
    "vision_config": {
        "hidden_size": 768,
        "intermediate_size": 3072,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "image_size": 512,
        "patch_size": 16,
        "hidden_act": "gelu_pytorch_tanh",
    },
}
CHECKPOINT = "checkpoint"


def configuration(folder: Path | None) -> dict[str, Any]:
    """`config.json` in `folder`, or the built-in numbers."""
    if folder is None:
        return SMOLVLM_256M
    config: dict[str, Any] = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    return config


def write_checkpoint(config: dict[str, Any], directory: Path) -> Path:
    """Random weights of that shape as fp16 below `directory`, in `save_pretrained` layout.

    `shape.json` beside it holds what contenders without transformers need to know.
    """
    import torch
    from transformers import AutoConfig, AutoModelForImageTextToText

    torch.manual_seed(0)
    options = {key: value for key, value in config.items() if key not in ("model_type", "architectures")}
    made = AutoConfig.for_model(config["model_type"], **options)
    model = AutoModelForImageTextToText.from_config(made, dtype=torch.float32)
    checkpoint = directory / CHECKPOINT
    model.to(torch.float16).save_pretrained(checkpoint)
    text, vision = made.text_config, made.vision_config
    shape = {
        "vocab_size": text.vocab_size,
        "hidden_size": text.hidden_size,
        "intermediate_size": text.intermediate_size,
        "layers": text.num_hidden_layers,
        "heads": text.num_attention_heads,
        "kv_heads": text.num_key_value_heads,
        "head_dim": text.head_dim,
        "rms_norm_eps": text.rms_norm_eps,
        "rope_theta": text.rope_parameters["rope_theta"],
        "image_token_id": made.image_token_id,
        "max_context": MAX_CONTEXT,
        "vision": {
            "image_size": vision.image_size,
            "patch_size": vision.patch_size,
            "hidden_size": vision.hidden_size,
            "intermediate_size": vision.intermediate_size,
            "layers": vision.num_hidden_layers,
            "heads": vision.num_attention_heads,
            "layer_norm_eps": vision.layer_norm_eps,
            "scale_factor": made.scale_factor,
        },
    }
    (directory / "shape.json").write_text(json.dumps(shape, indent=1) + "\n")
    return checkpoint


def main(directory: str, config: str | None = None) -> None:
    write_checkpoint(configuration(Path(config) if config else None), Path(directory))
