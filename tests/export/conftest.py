"""A SmolVLM with random weights, small enough to export in seconds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from edgevlm_runner.contract import ImageSpec, ModelSpec, PromptSpec
from edgevlm_runner.inputs import Inputs

from edgevlm_deploy.backends import CompiledGraphs, onnxruntime
from edgevlm_deploy.quantize import hqq, uniform
from edgevlm_deploy.quantize.quantized_model import QuantizedModel
from edgevlm_deploy.quantize.table import QuantizedLinear, QuantizedTable, StaticActivation

IMAGE_TOKEN = 300
TILE, PATCH, SHUFFLE = 32, 8, 2


def random_smolvlm(seed: int = 0) -> Any:
    """fp32, two layers, 2 of 4 heads for key and value, 104 columns in the MLP: the last block is short."""
    import torch
    from transformers import SmolVLMConfig, SmolVLMForConditionalGeneration

    text = {
        "model_type": "llama",
        "vocab_size": 320,
        "hidden_size": 64,
        "intermediate_size": 104,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "max_position_embeddings": 256,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "tie_word_embeddings": False,
    }
    vision = {
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "image_size": TILE,
        "patch_size": PATCH,
    }
    torch.manual_seed(seed)
    model = SmolVLMForConditionalGeneration(
        SmolVLMConfig(
            text_config=text,
            vision_config=vision,
            scale_factor=SHUFFLE,
            image_token_id=IMAGE_TOKEN,
            pad_token_id=0,
            tie_word_embeddings=False,
        )
    )
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:  # biases and norms of an untrained model are zeros and ones
                parameter.add_(0.1 * torch.randn(parameter.shape))
    return model.eval()


@pytest.fixture(scope="session")
def load_source() -> Callable[[], Any]:
    return random_smolvlm


@pytest.fixture(scope="session")
def spec() -> ModelSpec:
    return ModelSpec(
        family="smolvlm",
        runtime="onnxruntime",
        graphs={
            "vision_encoder": "graphs/vision_encoder.onnx",
            "embedding": "graphs/embedding.onnx",
            "decoder": "graphs/decoder.onnx",
        },
        image=ImageSpec(TILE, TILE, False, None, 1, 1 / 255, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
        prompt=PromptSpec("{image}{question}", "{question}", "<image>", "<fake>", "<global>", 4),
        image_token_id=IMAGE_TOKEN,
        eos_token_ids=(2,),
        max_new_tokens=8,
        max_context=64,
        layers=2,
        kv_heads=2,
        head_dim=16,
        hidden_size=64,
        vocab_size=320,
    )


@pytest.fixture(scope="session")
def samples() -> list[Inputs]:
    """A picture of two tiles, a picture of one, a question without one."""
    rng = np.random.default_rng(1)

    def one(tiles: int) -> Inputs:
        words = rng.integers(3, 290, 9)
        ids = np.concatenate([words[:2], np.full(4 * tiles, IMAGE_TOKEN), words[2:]])[None]
        pixels = rng.uniform(-1, 1, (tiles, 3, TILE, TILE)).astype(np.float32) if tiles else None
        return Inputs(pixels, ids.astype(np.int64))

    return [one(2), one(1), one(0)]


def round_to_nearest(
    weight: np.ndarray, bits: int, block: int | None, activation: StaticActivation | None = None
) -> QuantizedLinear:
    columns = block or weight.shape[1]
    q, scale = uniform.quantize_symmetric(weight, bits, columns)
    return QuantizedLinear(q, scale, None, bits, columns, activation)


def asymmetric(weight: np.ndarray, bits: int, block: int) -> QuantizedLinear:
    q, scale, zero_point = uniform.quantize_asymmetric(weight, bits, block)
    return QuantizedLinear(q, scale, zero_point, bits, block)


def half_quadratic(weight: np.ndarray, bits: int, block: int) -> QuantizedLinear:
    q, scale, zero_point = hqq.quantize(weight, bits, block)
    return QuantizedLinear(q, scale, zero_point, bits, block)


@pytest.fixture(scope="session")
def table(load_source: Callable[[], Any]) -> QuantizedTable:
    """Every form that a table can take: w8a8 vision, int8 embedding and head, 8, 4 and 3 bits between."""
    modules = {}
    for name, module in load_source().named_modules():
        if not hasattr(module, "weight") or module.weight.ndim != 2 or "position_embedding" in name:
            continue
        weight = module.weight.detach().numpy()
        if "vision_model" in name or "connector" in name:
            # Deliberately narrow, so that some inputs are clipped.
            modules[name] = round_to_nearest(weight, 8, None, StaticActivation(2.0**-6, 0))
        elif "embed_tokens" in name:
            modules[name] = round_to_nearest(weight, 8, None)
        elif "lm_head" in name:
            modules[name] = round_to_nearest(weight, 8, 32)
        elif "q_proj" in name:
            modules[name] = asymmetric(weight, 4, 32)
        elif "k_proj" in name:
            modules[name] = half_quadratic(weight, 4, 32)
        elif "v_proj" in name:
            modules[name] = half_quadratic(weight, 3, 64)
        elif "gate_proj" in name:
            modules[name] = round_to_nearest(weight, 3, None)
        elif "up_proj" in name:
            modules[name] = asymmetric(weight, 8, 16)
        elif "down_proj" in name:
            modules[name] = half_quadratic(weight, 4, 32)
        else:
            modules[name] = round_to_nearest(weight, 4, 64)
    return QuantizedTable(modules)


@dataclass(frozen=True)
class Compiled:
    root: Path
    graphs: CompiledGraphs


@pytest.fixture(scope="session")
def compiled(
    load_source: Callable[[], Any],
    table: QuantizedTable,
    spec: ModelSpec,
    samples: list[Inputs],
    tmp_path_factory: pytest.TempPathFactory,
) -> Compiled:
    """The table's model, exported and verified."""
    root = tmp_path_factory.mktemp("compiled")
    return Compiled(root, onnxruntime.compile(load_source, QuantizedModel(table), spec, samples, root))
