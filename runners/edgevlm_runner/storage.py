"""Digests of files, and the operating system's refusals to write as sentences.

Python 3.8, standard library only.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import shutil
from pathlib import Path
from typing import BinaryIO, Iterator, Optional, Union

from edgevlm_runner.errors import StorageError

CHUNK_BYTES = 1 << 20
_MENDING = {
    errno.ENOSPC: "Free some space there, or choose a folder on another disk.",
    errno.EDQUOT: "Your quota is used up: delete something, or choose a folder on another disk.",
    errno.EFBIG: "The file system or a process limit (ulimit -f) does not allow files of this size.",
    errno.EROFS: "The file system is mounted read-only; choose another folder.",
    errno.EACCES: "Change the permissions of the folder, or choose another one.",
    errno.EPERM: "Change the permissions of the folder, or choose another one.",
    errno.EIO: "The disk reports a hardware error; choose a folder on another disk.",
}


def file_digest(path: Path) -> str:
    """SHA-256 of a file's bytes in hexadecimal, read in chunks."""
    with open(path, "rb") as stream:
        return stream_digest(stream)


def stream_digest(source: BinaryIO, copy_to: Optional[BinaryIO] = None) -> str:
    """SHA-256 of what is left in `source`; with `copy_to`, copied there on the way."""
    sha256 = hashlib.sha256()
    while True:
        chunk = source.read(CHUNK_BYTES)
        if not chunk:
            return sha256.hexdigest()
        sha256.update(chunk)
        if copy_to is not None:
            copy_to.write(chunk)


def free_bytes(path: Path) -> int:
    """Free space of the file system that `path` is on or would be created on."""
    existing = Path(path).resolve()
    while not existing.exists():
        existing = existing.parent
    return shutil.disk_usage(str(existing)).free


def require_free(path: Path, needed_bytes: int) -> None:
    """Raises StorageError before a write that cannot fit is begun."""
    free = free_bytes(path)
    if free < needed_bytes:
        raise StorageError(
            f"{path}: {needed_bytes:,} bytes are needed, {free:,} are free. {_MENDING[errno.ENOSPC]}"
        )


@contextlib.contextmanager
def storage_errors(path: Union[Path, str]) -> Iterator[None]:
    """Turn a full disk, a quota, a read-only or forbidden folder into StorageError.

    Other OSErrors (a missing input, say) pass through: they are not about storage.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in _MENDING:
            raise
        raise StorageError(storage_message(Path(str(error.filename or path)), error)) from error


def storage_message(path: Path, error: OSError) -> str:
    """What happened at `path`, how much is free, how to mend it."""
    try:
        room = f" ({free_bytes(path):,} bytes are free)"
    except OSError:
        room = ""
    return f"{path}: {os.strerror(error.errno or 0)}{room}. {_MENDING.get(error.errno or 0, '')}".rstrip()


def fsync_directory(path: Path) -> None:
    """Make a rename inside `path` survive a power cut."""
    descriptor = os.open(str(path), os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
