"""Stages addressed by the digest of their inputs, and files that are never seen half-written.

A stage writes into `NAME-DIGEST.partial`; when it is done, the folder is synced and renamed to
`NAME-DIGEST`. So a folder without `.partial` is complete, a killed run resumes from the last
finished stage, and a changed input changes the name.
"""

from __future__ import annotations

import dataclasses
import errno
import fcntl
import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from enum import Enum
from pathlib import Path
from typing import Any

from edgevlm_runner.storage import (
    file_digest,
    fsync_directory,
    require_free,
    storage_errors,
    storage_message,
)
from pydantic import BaseModel

from edgevlm_deploy.errors import StorageError

__all__ = [
    "atomic_path",
    "canonical_json",
    "digest",
    "file_digest",
    "pretty_json",
    "require_free",
    "stage",
    "tree_digest",
    "write_bytes_atomic",
    "write_text_atomic",
]


def canonical_json(value: Any) -> str:
    """The one JSON text of a value: sorted keys, no spaces, UTF-8, no NaN.

    Accepts JSON types, tuples, enums, dataclasses and pydantic objects. Raises TypeError for anything
    else, paths included: a path says nothing about content, `file_digest(path)` does.
    """
    return json.dumps(
        _plain(value), sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    )


def pretty_json(value: Any) -> str:
    """For people and diffs: indented, keys sorted, newline at the end; the same types as `canonical_json`."""
    return json.dumps(_plain(value), indent=1, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n"


def digest(value: Any) -> str:
    """SHA-256 of `canonical_json(value)`."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()


def tree_digest(directory: Path) -> str:
    """SHA-256 over relative paths and contents of all files under `directory`.

    A link to a file counts as its content (that is how model caches store checkpoints); a link to
    a folder raises StorageError, because following it could leave the tree or never end.
    """
    files: dict[str, str] = {}
    for path in sorted(directory.rglob("*")):
        if path.is_symlink() and path.is_dir():
            raise StorageError(f"{path}: a link to a folder inside {directory}. Replace it by the folder.")
        if path.is_file():
            files[path.relative_to(directory).as_posix()] = file_digest(path)
    return digest(files)


def stage(
    cache: Path,
    name: str,
    inputs: Mapping[str, Any],
    produce: Callable[[Path], None],
    *,
    resumable: bool = False,
) -> Path:
    """The folder that `produce(folder)` fills from `inputs`; made once, then found by its digest.

    What a killed run left behind is removed first; with `resumable`, `produce` gets it back and goes
    on from there. Two processes that want the same stage: the second waits and finds it made.

    Raises StorageError when the disk is full or the folder cannot be written.
    """
    final = cache / f"{name}-{digest(inputs)[:16]}"
    if final.is_dir():
        return final
    with _storage_errors_of_libraries(final), _lock(cache / ".locks" / final.name):
        if final.is_dir():
            return final
        partial = final.with_name(f"{final.name}.partial")
        if partial.exists() and not resumable:
            shutil.rmtree(partial)
        partial.mkdir(exist_ok=True)
        produce(partial)
        _sync(partial)
        partial.rename(final)
        fsync_directory(cache)
    return final


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """A temporary path beside `path` that replaces it when the block ends well.

    Raises StorageError when the disk is full or the folder does not exist or cannot be written.
    """
    if not path.parent.is_dir():
        raise StorageError(f"{path}: there is no folder {path.parent}. Make it, or write elsewhere.")
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    with storage_errors(path):
        try:
            yield temporary
            with temporary.open("rb") as written:
                os.fsync(written.fileno())
            temporary.replace(path)
            fsync_directory(path.parent)
        finally:
            temporary.unlink(missing_ok=True)


def write_bytes_atomic(path: Path, data: bytes) -> None:
    """`path` holds either its old content or all of `data`, never a part of it."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(data)


def write_text_atomic(path: Path, text: str) -> None:
    """UTF-8, newlines as given; see `write_bytes_atomic`."""
    write_bytes_atomic(path, text.encode())


def _plain(value: Any) -> Any:
    """`value` as JSON types."""
    if isinstance(value, Enum):
        return _plain(value.value)
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json")
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: _plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {_key(key): _plain(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(one) for one in value]
    hint = "; give file_digest(path)" if isinstance(value, Path) else ""
    raise TypeError(f"{type(value).__name__} has no canonical JSON form{hint}: {value!r}")


def _key(key: Any) -> str:
    plain = _plain(key)
    if not isinstance(plain, str):
        raise TypeError(f"keys of a canonical mapping are strings, got {key!r}")
    return plain


@contextmanager
def _lock(path: Path) -> Iterator[None]:
    """Exclusive between processes; the kernel releases it when its owner dies."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@contextmanager
def _storage_errors_of_libraries(path: Path) -> Iterator[None]:
    """Like `storage_errors`, also for libraries (safetensors, torch) with an error type of their own."""
    full = os.strerror(errno.ENOSPC)
    try:
        with storage_errors(path):
            yield
    except (StorageError, OSError):
        raise
    except Exception as error:
        if full not in str(error):
            raise
        raise StorageError(storage_message(path, OSError(errno.ENOSPC, full))) from error


def _sync(directory: Path) -> None:
    """Flush every file and folder below, so that the rename that follows names finished data."""
    for path in directory.rglob("*"):
        if path.is_dir():
            fsync_directory(path)
        elif path.is_file():
            with path.open("rb") as written:
                os.fsync(written.fileno())
    fsync_directory(directory)
