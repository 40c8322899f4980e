"""A tiny SmolVLM with random weights, and picture–text batches for it."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from edgevlm_deploy.recipe import Component

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

IMAGE_TOKEN = 300


def _build(seed: int, tie: bool = False) -> Any:
    from transformers import SmolVLMConfig, SmolVLMForConditionalGeneration

    torch.manual_seed(seed)
    text = {
        "model_type": "llama",
        "vocab_size": 320,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "max_position_embeddings": 512,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "tie_word_embeddings": tie,
    }
    vision = {
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "image_size": 32,
        "patch_size": 8,
    }
    config = SmolVLMConfig(
        text_config=text,
        vision_config=vision,
        scale_factor=2,
        image_token_id=IMAGE_TOKEN,
        pad_token_id=0,
        tie_word_embeddings=tie,
    )
    model = SmolVLMForConditionalGeneration(config).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            # Norms of ones, small weights and biases of zero would hide scaling mistakes.
            if "norm" in name and name.endswith("weight"):
                parameter.copy_(torch.rand(parameter.shape, generator=generator) + 0.5)
            elif name.endswith("bias"):
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
            elif parameter.ndim == 2:
                parameter.mul_(4.0)
    return model


@pytest.fixture(scope="package", autouse=True)
def one_thread() -> Iterator[None]:
    """Layers this small only lose time in waiting for a second thread."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def float_model() -> Any:
    """The source model; read only. Copy it before changing anything."""
    return _build(seed=0)


@pytest.fixture(scope="session")
def tied_model() -> Any:
    """The same shape with embedding and head tied; read only."""
    return _build(seed=1, tie=True)


@pytest.fixture(scope="session")
def load_model(float_model: Any) -> Callable[[], Any]:
    return lambda: copy.deepcopy(float_model)


def make_batch(seed: int, text_tokens: int = 8, pictures: int = 1) -> dict[str, Any]:
    """One sample: four image tokens per picture between text tokens."""
    generator = torch.Generator().manual_seed(seed)
    text = torch.randint(3, 290, (1, text_tokens), generator=generator)
    image = torch.full((1, 4 * pictures), IMAGE_TOKEN)
    ids = torch.cat([text[:, :2], image, text[:, 2:]], dim=1)
    return {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "pixel_values": torch.randn(1, pictures, 3, 32, 32, generator=generator),
        "pixel_attention_mask": torch.ones(1, pictures, 32, 32, dtype=torch.bool),
    }


@pytest.fixture(scope="session")
def batch_of() -> Callable[..., dict[str, Any]]:
    return make_batch


@pytest.fixture(scope="session")
def batches() -> list[dict[str, Any]]:
    return [make_batch(seed, text_tokens=6 + seed % 4) for seed in range(12)]


@pytest.fixture(scope="session")
def modules(float_model: Any) -> dict[str, list[str]]:
    """Component → names of its weight matrices."""
    prefixes = {
        Component.VISION_ENCODER.value: "model.vision_model.encoder.",
        Component.PROJECTOR.value: "model.connector.",
        Component.DECODER.value: "model.text_model.layers.",
        Component.HEAD.value: "lm_head",
    }
    linear = [name for name, module in float_model.named_modules() if isinstance(module, torch.nn.Linear)]
    found = {
        component: [name for name in linear if name.startswith(prefix)]
        for component, prefix in prefixes.items()
    }
    return {**found, Component.EMBEDDING.value: ["model.text_model.embed_tokens"]}


@pytest.fixture(scope="session")
def correlated_model(float_model: Any) -> Any:
    """Embeddings of rank 8 plus a little noise, and a few loud channels: what GPTQ and AWQ are for."""
    model = copy.deepcopy(float_model)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for weight in (model.model.text_model.embed_tokens.weight,):
            low_rank = torch.randn(weight.shape[0], 8, generator=generator) @ torch.randn(
                8, weight.shape[1], generator=generator
            )
            weight.copy_(low_rank + 0.05 * torch.randn(weight.shape, generator=generator))
        for layer in model.model.text_model.layers:
            layer.input_layernorm.weight[:4] *= 15
            layer.post_attention_layernorm.weight[:4] *= 15
    return model
