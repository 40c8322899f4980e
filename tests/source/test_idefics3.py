"""Idefics3 and SmolVLM: described from headers, loaded by transformers, equal to what is stored."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from edgevlm_deploy import source
from edgevlm_deploy.errors import CheckpointError

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")


@pytest.mark.parametrize("family", ["idefics3", "smolvlm"])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_load(make: Callable[..., Path], family: str, dtype: str) -> None:
    folder = make(family, dtype)
    model = source.load(source.inspect(folder))
    assert type(model).__name__.lower() == f"{family}forconditionalgeneration"
    assert not model.training
    stored = load_file(folder / "model.safetensors")
    state = model.state_dict()
    assert set(state) == set(stored)
    for name, tensor in stored.items():
        assert state[name].dtype == torch.float32 and torch.equal(state[name], tensor.float())


def test_description(saved: Path) -> None:
    described = source.inspect(saved)
    assert described.architecture == source.Architecture(
        layers=2,
        kv_heads=2,
        head_dim=8,
        hidden_size=32,
        vocab_size=304,
        max_context=256,
        rope_theta=5000.0,
        image_token_id=4,
        image_size=32,
        patch_size=8,
        tokens_per_tile=4,
        shuffle=2,
    )
    model = source.load(described)
    assert described.parameters == sum(parameter.numel() for parameter in model.parameters())
    assert_modules(described, model)


def assert_modules(described: source.SourceModel, model: Any) -> None:
    """Every linear layer of the torch model is in exactly one component, and the embedding in its own."""
    linear = {name: module for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)}
    embedding = "model.text_model.embed_tokens"
    assert described.modules["embedding"] == (embedding,)
    listed = [name for names in described.modules.values() for name in names]
    assert len(listed) == len(set(listed))
    assert set(listed) == {*linear, embedding}
    for name, prefix in described.prefixes.items():
        assert all(one == prefix or one.startswith(prefix + ".") for one in described.modules[name])
        model.get_submodule(prefix)
    for name, shape in described.shapes.items():
        assert tuple(model.get_submodule(name).weight.shape) == shape
    assert set(described.shapes) == set(listed)


def test_modules_are_in_model_order(make: Callable[..., Path]) -> None:
    layers = [name.split(".")[3] for name in source.inspect(make()).modules["decoder"]]
    assert layers == sorted(layers, key=int)


def test_valid_padding_becomes_zero(saved: Path) -> None:
    model = source.load(source.inspect(saved))
    convolutions = [module for module in model.modules() if isinstance(module, torch.nn.Conv2d)]
    assert convolutions and all(module.padding == (0, 0) for module in convolutions)


def test_answers_equal_transformers(saved: Path) -> None:
    """Logits of a picture and a question, against transformers' own loading."""
    reference = transformers.AutoModelForImageTextToText.from_pretrained(saved, dtype=torch.float32).eval()
    ids = torch.tensor([[1, 20, 4, 4, 4, 4, 30]])
    generator = torch.Generator().manual_seed(0)
    inputs = {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "pixel_values": torch.randn(1, 1, 3, 32, 32, generator=generator),
        "pixel_attention_mask": torch.ones(1, 1, 32, 32, dtype=torch.bool),
    }
    with torch.no_grad():
        ours, theirs = source.load(source.inspect(saved))(**inputs).logits, reference(**inputs).logits
    assert torch.allclose(ours, theirs, atol=1e-5)


@pytest.mark.parametrize("family", ["idefics3", "smolvlm"])
def test_tied_head(make: Callable[..., Path], family: str) -> None:
    described = source.inspect(make(family, tied=True))
    assert described.tied_head
    assert described.shapes["lm_head"] == described.shapes["model.text_model.embed_tokens"]
    model = source.load(described)
    assert model.lm_head.weight is model.model.text_model.embed_tokens.weight
    assert_modules(described, model)


def test_shards_load(make: Callable[..., Path]) -> None:
    sharded = source.load(source.inspect(make(max_shard_size="40KB"))).state_dict()
    whole = source.load(source.inspect(make())).state_dict()
    assert all(torch.equal(sharded[name], whole[name]) for name in whole)


def rewrite(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


def test_missing_and_unexpected_weights(folder: Path) -> None:
    name = "model.text_model.layers.1.mlp.up_proj.weight"
    rewrite(folder, lambda tensors: tensors.pop(name))
    with pytest.raises(CheckpointError, match=r"missing_keys.*up_proj"):
        source.load(source.inspect(folder))
    shape = (48, 32)
    rewrite(
        folder, lambda tensors: tensors.update({name: torch.zeros(shape), "extra.weight": torch.zeros(3)})
    )
    with pytest.raises(CheckpointError, match=r"unexpected_keys.*extra\.weight"):
        source.load(source.inspect(folder))


def test_head_that_is_missing_without_being_tied(folder: Path) -> None:
    rewrite(folder, lambda tensors: tensors.pop("lm_head.weight"))
    with pytest.raises(CheckpointError, match="does not tie"):
        source.inspect(folder)


def test_weights_that_are_not_finite(folder: Path) -> None:
    def poison(tensors: dict[str, Any]) -> None:
        tensors["model.text_model.norm.weight"][3] = float("nan")

    rewrite(folder, poison)
    with pytest.raises(CheckpointError, match="not finite"):
        source.load(source.inspect(folder))


def test_weights_of_another_model(folder: Path) -> None:
    rewrite(folder, lambda tensors: tensors.pop("model.connector.modality_projection.proj.weight"))
    with pytest.raises(CheckpointError, match="not the weights of a smolvlm model"):
        source.inspect(folder)


@pytest.mark.parametrize(
    ("section", "key", "value", "message"),
    [
        ("vision_config", "image_size", 40, "disagree"),
        ("vision_config", "image_size", "32", "whole number"),
        ("text_config", "head_dim", 9, "disagree"),
        ("text_config", "num_hidden_layers", 3, "missing_keys"),
        ("text_config", "num_key_value_heads", 4, "do not fit|cannot load"),
        ("text_config", "model_type", "qwen2", "supported is llama"),
        ("text_config", "rope_theta", "big", "rope_theta"),
        (None, "scale_factor", 4, "do not fit|cannot load"),
    ],
)
def test_config_of_another_model(
    folder: Path, section: str | None, key: str, value: object, message: str
) -> None:
    file = folder / "config.json"
    config = json.loads(file.read_text())
    (config[section] if section else config)[key] = value
    file.write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=message):
        source.load(source.inspect(folder))


def test_old_spelling_of_rope_theta(folder: Path) -> None:
    file = folder / "config.json"
    config = json.loads(file.read_text())
    del config["text_config"]["rope_parameters"]
    config["text_config"]["rope_theta"] = 123000
    file.write_text(json.dumps(config))
    described = source.inspect(folder)
    assert described.architecture.rope_theta == 123000
    assert source.load(described).config.text_config.rope_parameters["rope_theta"] == 123000


def test_inspection_loads_no_torch(saved: Path) -> None:
    code = (
        "import sys\nfrom edgevlm_deploy import source\n"
        f"source.inspect({str(saved)!r})\n"
        "assert not {'torch', 'transformers'} & set(sys.modules), 'heavy imports'\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, env=dict(os.environ))


PUBLISHED = ["SmolVLM-256M-Instruct", "SmolVLM2-500M-Video-Instruct"]


def published(real_data: Path, name: str, to: Path) -> tuple[Path, dict[str, Any]]:
    """The published configuration and tokenizer, writable; the weights are left to the test."""
    shutil.copytree(real_data / "configs" / name, to, copy_function=shutil.copyfile)
    to.chmod(0o755)
    return to, json.loads((to / "config.json").read_text())


def class_of(config: dict[str, Any]) -> Any:
    return getattr(transformers, config["architectures"][0])


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_configurations_with_fewer_layers(real_data: Path, tmp_path: Path, name: str) -> None:
    folder, config = published(real_data, name, tmp_path / "model")
    config["text_config"] |= {"num_hidden_layers": 1, "vocab_size": 49280}
    config["vision_config"]["num_hidden_layers"] = 1
    (folder / "config.json").write_text(json.dumps(config))
    made = class_of(config)(transformers.AutoConfig.from_pretrained(folder)).to(torch.bfloat16)
    save_file(made.state_dict(), folder / "model.safetensors", {"format": "pt"})

    described = source.inspect(folder)
    assert described.dtype == "bf16" and described.architecture.layers == 1
    assert described.architecture.rope_theta == 100000 and described.architecture.tokens_per_tile == 64
    assert described.architecture.max_context == 8192 and described.architecture.image_token_id == 49190
    model = source.load(described)
    assert_modules(described, model)
    expected = made.state_dict()
    assert all(torch.equal(tensor, expected[key].float()) for key, tensor in model.state_dict().items())


@pytest.mark.slow
@pytest.mark.parametrize("name", PUBLISHED)
def test_published_structure_in_full(real_data: Path, tmp_path: Path, name: str) -> None:
    """All layers, as a header in front of a hole in the file: nothing is allocated."""
    folder, config = published(real_data, name, tmp_path / "model")
    with torch.device("meta"):
        model = class_of(config)(transformers.AutoConfig.from_pretrained(folder))
    write_hollow(folder / "model.safetensors", model)
    described = source.inspect(folder)
    assert_modules(described, model)
    assert described.parameters == sum(parameter.numel() for parameter in model.parameters())
    layers, kv_heads, hidden_size = (30, 3, 576) if "256M" in name else (32, 5, 960)
    numbers = described.architecture
    assert (numbers.layers, numbers.kv_heads, numbers.hidden_size) == (layers, kv_heads, hidden_size)
    assert (numbers.head_dim, numbers.vocab_size, numbers.image_size) == (64, 49280, 512)
    assert len(described.modules["decoder"]) == 7 * layers


def write_hollow(path: Path, model: Any) -> None:
    header, end = {}, 0
    for name, tensor in model.state_dict().items():
        begin, end = end, end + 2 * tensor.numel()
        header[name] = {"dtype": "BF16", "shape": list(tensor.shape), "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    with path.open("wb") as out:
        out.write(len(text).to_bytes(8, "little") + text)
        out.truncate(8 + len(text) + end)
