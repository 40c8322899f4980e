"""Find a checkpoint (folder or hub id), refuse what would run foreign code, check that it is whole."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from edgevlm_deploy.artifacts import digest, file_digest
from edgevlm_deploy.errors import CheckpointError, MissingExtraError
from edgevlm_deploy.source.header import StoredTensor, read_header

CONFIG = "config.json"
INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
FILES = (
    "*.safetensors",
    INDEX,
    CONFIG,
    "generation_config.json",
    "preprocessor_config.json",
    "processor_config.json",
    "chat_template.json",
    "chat_template.jinja",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
)
"""What belongs to a checkpoint: downloaded, and part of its digest. Nothing else is ever read."""
PICKLED = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
MAX_JSON_BYTES = 64 << 20
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


@dataclass(frozen=True)
class Checkpoint:
    """A folder in `save_pretrained` layout whose files are all there and fit together."""

    path: Path
    name: str
    """The hub id, or the folder's name."""
    revision: str
    """Commit of a hub checkpoint, "" for a folder."""
    digest: str
    """SHA-256 over names and contents of config, weights and tokenizer files."""
    config: Mapping[str, Any]
    tensors: Mapping[str, StoredTensor]


def open_checkpoint(checkpoint: str | Path, revision: str | None = None, offline: bool = False) -> Checkpoint:
    """Locate, check and digest a checkpoint. No weight is loaded.

    Raises CheckpointError when it is missing, incomplete, damaged, pickled, already quantised or wants
    code of its own.
    """
    path, name, commit = _locate(str(checkpoint), revision, offline)
    try:
        return _read(path, name, commit)
    except OSError as error:
        where = error.filename or path
        raise CheckpointError(
            f"{where}: cannot be read ({error.strerror}). Check its permissions."
        ) from error


def _read(path: Path, name: str, commit: str) -> Checkpoint:
    if not (path / CONFIG).is_file():
        raise CheckpointError(f"{path}: has no {CONFIG}. Give the folder that `save_pretrained` wrote.")
    for file in sorted(path.glob("*.json")):
        if fnmatchcase(file.name, "*config.json"):
            _refuse_code(file, read_json(file))
    config = read_json(path / CONFIG)
    if "quantization_config" in config:
        raise CheckpointError(
            f"{path}: is already quantised. Give the original FP16, BF16 or FP32 checkpoint."
        )
    tensors: dict[str, StoredTensor] = {}
    for file in _weight_files(path):
        tensors.update(read_header(file))
    _check_index(path, tensors)
    return Checkpoint(path, name, commit, _digest(path), config, tensors)


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object of bounded size. Raises CheckpointError."""
    if path.stat().st_size > MAX_JSON_BYTES:
        raise CheckpointError(f"{path}: larger than {MAX_JSON_BYTES:,} bytes; this is no configuration.")
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise CheckpointError(
            f"{path}: not JSON ({error}). Download or save the checkpoint again."
        ) from error
    if not isinstance(data, dict):
        raise CheckpointError(f"{path}: expected a JSON object, got {type(data).__name__}.")
    return data


def _locate(checkpoint: str, revision: str | None, offline: bool) -> tuple[Path, str, str]:
    """(folder, name, commit)."""
    folder = Path(checkpoint).expanduser()
    if folder.is_dir():
        if revision is not None:
            raise CheckpointError(
                f"{checkpoint}: revision {revision!r} was asked for, but this is a folder; only hub "
                "checkpoints have revisions. Leave it out."
            )
        return folder, folder.resolve().name, ""
    if folder.exists():
        raise CheckpointError(f"{checkpoint}: is a file; give the checkpoint's folder.")
    if not _HUB_ID.fullmatch(checkpoint):
        raise CheckpointError(f"{checkpoint}: no such folder, and not a hub id (owner/name) either.")
    path = _download(checkpoint, revision, offline)
    # The hub's cache names a snapshot's folder by its commit.
    return path, checkpoint, path.name


def _download(hub_id: str, revision: str | None, offline: bool) -> Path:
    try:
        from huggingface_hub import errors, snapshot_download
    except ImportError as error:
        raise MissingExtraError("Hub checkpoints need `pip install edgevlm[compile]`.") from error
    wanted = f"{hub_id} at revision {revision}" if revision else hub_id
    try:
        return Path(
            snapshot_download(hub_id, revision=revision, allow_patterns=list(FILES), local_files_only=offline)
        )
    except errors.GatedRepoError as error:
        raise CheckpointError(
            f"{wanted}: access is restricted. Accept its terms on the hub, then run `hf auth login`."
        ) from error
    except errors.RevisionNotFoundError as error:
        raise CheckpointError(f"{wanted}: the hub has no such revision of this model.") from error
    except errors.RepositoryNotFoundError as error:
        raise CheckpointError(
            f"{wanted}: no such folder, and no public model of that name on the hub."
        ) from error
    # Without a network the hub's client raises its own, httpx's or the system's errors.
    except Exception as error:
        reason = "is not in the local cache" if offline else f"cannot be downloaded ({type(error).__name__})"
        mend = "Run once without --offline" if offline else "Check the network"
        raise CheckpointError(
            f"{wanted}: no such folder, and as a hub id it {reason}. {mend}, or give a local folder."
        ) from error


def _refuse_code(file: Path, data: Mapping[str, Any]) -> None:
    """A config with `auto_map` names Python files of the checkpoint to be executed."""
    if "auto_map" in data:
        raise CheckpointError(
            f"{file}: asks for code that the checkpoint brings along (`auto_map`), which is never run. "
            "Convert it to the layout of a model that transformers knows by itself."
        )
    for value in data.values():
        if isinstance(value, dict):
            _refuse_code(file, value)


def _weight_files(path: Path) -> list[Path]:
    """The safetensors files, all present; a single file goes before an index, as in transformers."""
    if (path / SINGLE).is_file():
        return [path / SINGLE]
    if (path / INDEX).is_file():
        names = sorted({str(name) for name in _weight_map(path).values()})
        outside = [name for name in names if Path(name).name != name or not name.endswith(".safetensors")]
        if outside:
            raise CheckpointError(f"{path / INDEX}: names {outside[0]!r}, which is no file of this folder.")
        missing = [name for name in names if not (path / name).is_file()]
        if missing:
            raise CheckpointError(
                f"{path}: {len(missing)} of {len(names)} weight files are missing "
                f"({', '.join(missing[:3])}). Download or copy the checkpoint again."
            )
        return [path / name for name in names]
    pickled = [file.name for pattern in PICKLED for file in sorted(path.glob(pattern))]
    if pickled:
        raise CheckpointError(
            f"{path}: its weights are pickled ({pickled[0]}), which can run code when loaded. "
            "Save them as safetensors: `model.save_pretrained(folder)`."
        )
    raise CheckpointError(f"{path}: holds no weights; expected {SINGLE} or {INDEX}.")


def _weight_map(path: Path) -> dict[str, Any]:
    weight_map = read_json(path / INDEX).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{path / INDEX}: has no weight_map. Download the checkpoint again.")
    return weight_map


def _check_index(path: Path, tensors: Mapping[str, StoredTensor]) -> None:
    """Every tensor lies in the file that the index names, and no other is there."""
    if (path / SINGLE).is_file():
        return
    found = {name: tensor.file for name, tensor in tensors.items()}
    weight_map = _weight_map(path)
    wrong = sorted(name for name in {*found, *weight_map} if found.get(name) != weight_map.get(name))
    if wrong:
        raise CheckpointError(
            f"{path / INDEX}: {len(wrong)} tensors are not where it says, e.g. {wrong[0]}. The files are of "
            "different versions; download the checkpoint again."
        )


def _digest(path: Path) -> str:
    files = [
        file
        for file in sorted(path.iterdir())
        if file.is_file() and any(fnmatchcase(file.name, pattern) for pattern in FILES)
    ]
    return digest({file.name: file_digest(file) for file in files})
