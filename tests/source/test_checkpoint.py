"""What is refused before a weight is loaded, and what identifies a checkpoint."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from edgevlm_deploy import source
from edgevlm_deploy.errors import CheckpointError


def test_identity(saved: Path) -> None:
    model = source.inspect(saved)
    assert (model.name, model.revision, model.family, model.dtype) == ("tiny-smolvlm", "", "smolvlm", "fp16")
    assert len(model.digest) == 64
    assert source.inspect(str(saved)) == model


def test_the_digest_sees_every_file_that_matters_and_no_other(
    saved: Path, folder: Path, edit: Callable[..., None]
) -> None:
    original = source.inspect(saved).digest
    (folder / "README.md").write_text("hello")
    assert source.inspect(folder).digest == original
    edit(folder / "generation_config.json", temperature=0.5)
    changed = source.inspect(folder).digest
    weights = bytearray((folder / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (folder / "model.safetensors").write_bytes(weights)
    assert len({original, changed, source.inspect(folder).digest}) == 3


def test_stored_dtypes(make: Callable[..., Path]) -> None:
    assert source.inspect(make(dtype="bfloat16")).dtype == "bf16"
    assert source.inspect(make(dtype="float32")).dtype == "fp32"


def test_what_is_not_there(tmp_path: Path, saved: Path) -> None:
    with pytest.raises(CheckpointError, match="no such folder, and not a hub id"):
        source.inspect(tmp_path / "absent" / "model")
    with pytest.raises(CheckpointError, match="is a file"):
        source.inspect(saved / "config.json")
    with pytest.raises(CheckpointError, match=r"has no config\.json"):
        source.inspect(tmp_path)
    with pytest.raises(CheckpointError, match="only hub checkpoints have revisions"):
        source.inspect(saved, revision="main")


def test_a_hub_id_that_is_not_cached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(CheckpointError, match=r"local cache.*--offline"):
        source.inspect("nobody/nothing", offline=True)
    with pytest.raises(CheckpointError, match=r"revision abc.*local cache"):
        source.inspect("nobody/nothing", revision="abc", offline=True)


def test_a_hub_id_from_the_cache(saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    commit = "0123456789abcdef0123456789abcdef01234567"
    repository = tmp_path / "models--owner--tiny"
    shutil.copytree(saved, repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    model = source.inspect("owner/tiny", offline=True)
    assert (model.name, model.revision) == ("owner/tiny", commit)
    assert model.digest == source.inspect(saved).digest
    assert source.inspect("owner/tiny", revision=commit, offline=True) == model


def test_unknown_family(folder: Path, edit: Callable[..., None]) -> None:
    edit(folder / "config.json", model_type="mllama")
    with pytest.raises(CheckpointError, match="'mllama' is not supported; supported: idefics3, smolvlm, "):
        source.inspect(folder)
    edit(folder / "config.json", model_type=None)
    with pytest.raises(CheckpointError, match="None is not supported"):
        source.inspect(folder)


@pytest.mark.parametrize("file", ["config.json", "processor_config.json", "tokenizer_config.json"])
def test_code_of_its_own_is_refused(folder: Path, edit: Callable[..., None], file: str) -> None:
    edit(folder / file, auto_map={"AutoModel": "modeling.Evil"})
    with pytest.raises(CheckpointError, match=f"{file}.*auto_map"):
        source.inspect(folder)
    edit(folder / file, auto_map=None, nested={"deeper": {"auto_map": {}}})
    with pytest.raises(CheckpointError, match="auto_map"):
        source.inspect(folder)


def test_pickled_weights_are_refused(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=r"pickled.*save_pretrained"):
        source.inspect(folder)
    (folder / "pytorch_model.bin").unlink()
    with pytest.raises(CheckpointError, match="holds no weights"):
        source.inspect(folder)


def test_quantised_checkpoints_are_refused(folder: Path, edit: Callable[..., None]) -> None:
    edit(folder / "config.json", quantization_config={"quant_method": "awq"})
    with pytest.raises(CheckpointError, match="already quantised"):
        source.inspect(folder)


def test_truncated_weights(folder: Path) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match="truncated or damaged"):
        source.inspect(folder)


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
@pytest.mark.parametrize("file", ["config.json", "model.safetensors"])
def test_files_that_cannot_be_read(folder: Path, file: str) -> None:
    (folder / file).chmod(0)
    with pytest.raises(CheckpointError, match="cannot be read"):
        source.inspect(folder)


@pytest.mark.parametrize("text", ["", "{", "[]", "[" * 100_000, "\udcff"])
def test_damaged_configuration(folder: Path, text: str) -> None:
    (folder / "config.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(CheckpointError, match=r"config\.json"):
        source.inspect(folder)


def test_shards(make: Callable[..., Path]) -> None:
    folder = make(max_shard_size="40KB")
    index = folder / "model.safetensors.index.json"
    model = source.inspect(folder)
    assert len(model.weight_files) > 1
    assert model.parameters == source.inspect(make()).parameters
    original = index.read_text()
    data = json.loads(original)

    first, *_, last = sorted(data["weight_map"])
    swapped = {**data["weight_map"], last: data["weight_map"][first]}
    for weight_map, message in (
        (swapped, "not where it says"),
        ({**data["weight_map"], "ghost.weight": model.weight_files[0]}, r"ghost\.weight"),
        ({**data["weight_map"], last: "../elsewhere.safetensors"}, "no file of this folder"),
        ({**data["weight_map"], last: "weights.bin"}, "no file of this folder"),
        ({}, "no weight_map"),
    ):
        index.write_text(json.dumps({**data, "weight_map": weight_map}))
        with pytest.raises(CheckpointError, match=message):
            source.inspect(folder)
    index.write_text(original)
    (folder / model.weight_files[-1]).unlink()
    with pytest.raises(CheckpointError, match="weight files are missing"):
        source.inspect(folder)
