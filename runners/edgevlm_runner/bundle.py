"""Open a bundle: `NAME.edgevlm` (a zip of stored entries) or the folder it unpacks to.

Layout (manifest.json lists every file but itself, seal.json and evidence/ with SHA-256 and size):

    manifest.json   model.json      graphs/*.onnx        tokenizer/tokenizer.json
    items.jsonl     images/         reference.jsonl      gates.json  recipe.json  target.json
    quantization.json               certainty.json       runner/edgevlm_runner/*.py
    reference_features.npz          of dual encoders whose recipe asks for it
    seal.json       evidence/*      after verification; the seal names the manifest and the evidence

Nothing in a bundle is executed or unpickled here, and nothing is used before its digest matched.
A zip is unpacked once, into CACHE/<digest of manifest and seal>; that copy is digested in full on every
open as well, because cards in devices rot. What the second open saves is the unpacking and the writing.
A digest proves that a bundle is whole, not who made it. Byte code that Python leaves in `__pycache__` when
the runner is started from an unpacked folder is passed over; nothing else may be added to it.

Python 3.8, standard library only.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import re
import shutil
import stat
import struct
import zipfile
from pathlib import Path
from typing import Any, BinaryIO, Callable, Dict, Iterator, List, Mapping, Optional, Tuple, Union, cast

from edgevlm_runner.contract import (
    FORMAT_VERSION,
    REFERENCE_FEATURES,
    Certainty,
    DualEncoderSpec,
    Item,
    Model,
    from_json,
    model_from_json,
    read_jsonl,
)
from edgevlm_runner.errors import BundleError
from edgevlm_runner.storage import fsync_directory, require_free, storage_errors, stream_digest

MANIFEST, SEAL, EVIDENCE = "manifest.json", "seal.json", "evidence/"
MODEL, ITEMS, CERTAINTY = "model.json", "items.jsonl", "certainty.json"
MAX_JSON_BYTES = 64 << 20
MAX_FILES = 1_000_000
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+-]*(/[A-Za-z0-9_][A-Za-z0-9_.+-]*)*")
_SEAL_KEYS = {"format_version", "manifest_sha256", "evidence", "outcome", "deployable", "statement"}
_DAMAGED_ZIP = (
    zipfile.BadZipFile,
    EOFError,
    struct.error,
    ValueError,
    NotImplementedError,
    RuntimeError,
    OverflowError,
)
"""What zipfile raises for archives that are cut off, forged, compressed in odd ways or encrypted."""


@dataclasses.dataclass(frozen=True)
class Bundle:
    """A bundle whose every file matched its digest when it was opened."""

    root: Path
    manifest: Mapping[str, Any]
    digest: str
    """SHA-256 of manifest.json: the identity of the bundle, sealed or not."""
    model: Model
    items: Tuple[Item, ...]
    seal: Optional[Mapping[str, Any]]
    certainty: Certainty

    def path(self, name: str) -> Path:
        """Where a file that the manifest lists lies. Raises BundleError for any other name."""
        if name not in self.manifest["files"]:
            raise BundleError(f"{self.root}: the manifest lists no file {name!r}.")
        return self.root / name


@dataclasses.dataclass(frozen=True)
class Contents:
    """What a zip or folder holds: sizes in bytes by name, and how to read each file."""

    where: Path
    sizes: Mapping[str, int]
    read: Callable[[str], BinaryIO]


@dataclasses.dataclass(frozen=True)
class _Expected:
    """What manifest and seal promise: name → (SHA-256, size; None where only the digest is recorded)."""

    manifest: Mapping[str, Any]
    seal: Optional[Mapping[str, Any]]
    digest: str
    files: Mapping[str, Tuple[str, Optional[int]]]

    @property
    def key(self) -> str:
        """Names the unpacked copy; sealing again gives another one."""
        seal = json.dumps(self.seal, sort_keys=True)
        return hashlib.sha256(f"{self.digest} {seal}".encode()).hexdigest()[:32]


def open_bundle(path: Union[str, Path], cache: Optional[Path] = None) -> Bundle:
    """Check every file and return the bundle.

    `cache` is where a zip is unpacked: $EDGEVLM_CACHE, else ~/.cache/edgevlm.
    Raises BundleError when anything is missing, unlisted, altered or unsafe, StorageError when
    there is no room to unpack.
    """
    path = Path(path)
    with contents_of(path) as contents:
        expected = _promised(contents)
        if path.is_dir():
            _check(contents, expected)
            root = path
        else:
            root = _unpacked(contents, expected, cache or default_cache())
    return _bundle(root, expected)


def verify(path: Union[str, Path]) -> str:
    """Check every file of a zip or folder without unpacking; returns the manifest's digest.

    Raises BundleError.
    """
    with contents_of(Path(path)) as contents:
        expected = _promised(contents)
        _check(contents, expected)
    return expected.digest


def default_cache() -> Path:
    given = os.environ.get("EDGEVLM_CACHE")
    return Path(given) if given else Path.home() / ".cache" / "edgevlm"


def unpack(path: Union[str, Path], directory: Path) -> None:
    """Write the checked files of a zip to `directory`, which must not exist; all or nothing.

    Raises BundleError, or StorageError when there is no room.
    """
    with contents_of(Path(path)) as contents:
        _extract(contents, _promised(contents), directory)


@contextlib.contextmanager
def contents_of(path: Path) -> Iterator[Contents]:
    """The files at `path` with safe, unique names; nothing has been digested yet. Raises BundleError."""
    if not path.exists():
        raise BundleError(f"{path}: no such bundle. Give a .edgevlm file or the folder it unpacks to.")
    try:
        if path.is_dir():
            yield Contents(path, _folder_sizes(path), lambda name: (path / name).open("rb"))
        else:
            with zipfile.ZipFile(str(path)) as archive:
                sizes = _zip_sizes(path, archive.infolist())
                yield Contents(path, sizes, lambda name: cast(BinaryIO, archive.open(name)))
    except _DAMAGED_ZIP as error:
        raise BundleError(f"{path}: not a whole bundle ({error}). Copy or compile it again.") from error
    except OSError as error:
        raise BundleError(f"{path}: cannot be read ({error}).") from error


def _folder_sizes(root: Path) -> Dict[str, int]:
    sizes: Dict[str, int] = {}
    for folder, subfolders, files in os.walk(str(root)):
        if "__pycache__" in subfolders:
            subfolders.remove("__pycache__")
        for name in subfolders + files:
            path = Path(folder) / name
            mode = path.lstat().st_mode
            if stat.S_ISREG(mode):
                sizes[path.relative_to(root).as_posix()] = path.lstat().st_size
            elif not stat.S_ISDIR(mode):
                raise BundleError(f"{path}: links and special files are not allowed in a bundle.")
    _check_names(root, list(sizes))
    return sizes


def _zip_sizes(path: Path, entries: List[zipfile.ZipInfo]) -> Dict[str, int]:
    """Stored entries only, so that a small file cannot unpack to a large one."""
    for entry in entries:
        kind = stat.S_IFMT(entry.external_attr >> 16)
        if entry.is_dir() or kind not in (0, stat.S_IFREG):
            raise BundleError(f"{path}: {entry.filename!r} is not a plain file; a bundle holds nothing else.")
        if entry.compress_type != zipfile.ZIP_STORED or entry.compress_size != entry.file_size:
            raise BundleError(f"{path}: {entry.filename!r} is compressed; bundles store their files as is.")
        if entry.flag_bits & 0x1:
            raise BundleError(f"{path}: {entry.filename!r} is encrypted; bundles are not.")
    _check_names(path, [entry.orig_filename for entry in entries])
    total, size = sum(entry.file_size for entry in entries), path.stat().st_size
    if total > size:
        raise BundleError(f"{path}: its files claim {total:,} bytes, the archive has {size:,}.")
    return {entry.filename: entry.file_size for entry in entries}


def _check_names(where: Path, names: List[str]) -> None:
    """Relative, plain, and different on every file system, those that ignore case included."""
    if len(names) > MAX_FILES:
        raise BundleError(f"{where}: holds {len(names):,} files, at most {MAX_FILES:,} are read.")
    seen: Dict[str, str] = {}
    for name in names:
        if not _NAME.fullmatch(name):
            raise BundleError(f"{where}: unsafe file name {name!r}.")
        if name.lower() in seen:
            raise BundleError(f"{where}: {name!r} and {seen[name.lower()]!r} are one file on some disks.")
        seen[name.lower()] = name


def _promised(contents: Contents) -> _Expected:
    """Read manifest and seal; check their form and that the seal belongs to the manifest."""
    manifest, digest = _json(contents, MANIFEST)
    _check_version(contents, MANIFEST, manifest)
    files: Dict[str, Tuple[str, Optional[int]]] = {}
    listed = manifest.get("files")
    if not isinstance(listed, dict):
        raise BundleError(f"{contents.where}: {MANIFEST} has no list of files.")
    for name, entry in listed.items():
        size = entry.get("bytes") if isinstance(entry, dict) else None
        if not isinstance(entry, dict) or not _is_digest(entry.get("sha256")) or type(size) is not int:
            raise BundleError(f"{contents.where}: {MANIFEST} has no digest and size for {name!r}.")
        if name in (MANIFEST, SEAL) or name.startswith(EVIDENCE):
            raise BundleError(f"{contents.where}: {MANIFEST} may not list {name!r}, which comes after it.")
        files[name] = (entry["sha256"], size)
    seal = None
    if SEAL in contents.sizes:
        seal, files[SEAL] = _seal(contents, digest)
        files.update({EVIDENCE + name: (sha256, None) for name, sha256 in seal["evidence"].items()})
    return _Expected(manifest, seal, digest, files)


def _seal(contents: Contents, manifest_digest: str) -> Tuple[Dict[str, Any], Tuple[str, Optional[int]]]:
    seal, digest = _json(contents, SEAL)
    _check_version(contents, SEAL, seal)
    if set(seal) != _SEAL_KEYS or type(seal["deployable"]) is not bool:
        raise BundleError(f"{contents.where}: {SEAL} is malformed; it has the keys {sorted(seal)}.")
    if seal["manifest_sha256"] != manifest_digest:
        raise BundleError(
            f"{contents.where}: the seal belongs to another manifest "
            f"({seal['manifest_sha256']}, this one is {manifest_digest}). Do not deploy it; verify again."
        )
    evidence = seal["evidence"]
    if not isinstance(evidence, dict) or not all(map(_is_digest, evidence.values())):
        raise BundleError(f"{contents.where}: {SEAL} lists its evidence without digests.")
    return seal, (digest, None)


def _json(contents: Contents, name: str) -> Tuple[Dict[str, Any], str]:
    """(object, SHA-256 of its file)."""
    size = contents.sizes.get(name)
    if size is None:
        raise BundleError(f"{contents.where}: not a bundle, it has no {name}.")
    if size > MAX_JSON_BYTES:
        raise BundleError(f"{contents.where}: {name} has {size:,} bytes, the limit is {MAX_JSON_BYTES:,}.")
    with contents.read(name) as stream:
        text = stream.read()
    try:
        data = json.loads(text.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise BundleError(f"{contents.where}: {name} is not JSON ({error}).") from error
    if not isinstance(data, dict):
        raise BundleError(f"{contents.where}: {name} is a {type(data).__name__}, expected an object.")
    return data, hashlib.sha256(text).hexdigest()


def _check_version(contents: Contents, name: str, data: Mapping[str, Any]) -> None:
    version = data.get("format_version")
    if type(version) is not int or version != FORMAT_VERSION:
        raise BundleError(
            f"{contents.where}: {name} has format version {version!r}, this edgevlm reads {FORMAT_VERSION}. "
            "Compile the bundle again, or use the edgevlm that wrote it."
        )


def _is_digest(value: Any) -> bool:
    return isinstance(value, str) and len(value) == 64 and set(value) <= set("0123456789abcdef")


def _check_listing(contents: Contents, expected: _Expected) -> None:
    """The names and sizes are those that manifest and seal list."""
    present = set(contents.sizes) - {MANIFEST}
    missing, unlisted = sorted(set(expected.files) - present), sorted(present - set(expected.files))
    if missing:
        raise BundleError(f"{contents.where}: {len(missing)} file(s) are missing: {_some(missing)}.")
    if unlisted:
        unsealed = all(name.startswith(EVIDENCE) for name in unlisted) and expected.seal is None
        why = " Sealing was interrupted: seal it again." if unsealed else ""
        raise BundleError(
            f"{contents.where}: {len(unlisted)} file(s) are not in the manifest: {_some(unlisted)}.{why}"
        )
    for name, (_, size) in expected.files.items():
        if size is not None and size != contents.sizes[name]:
            raise BundleError(
                f"{contents.where}: {name} has {contents.sizes[name]:,} bytes, expected {size:,}."
            )


def _some(names: List[str]) -> str:
    return ", ".join(names[:5]) + (" …" if len(names) > 5 else "")


def _check(contents: Contents, expected: _Expected) -> None:
    """Listing and digest of every file."""
    _check_listing(contents, expected)
    for name, (sha256, _) in expected.files.items():
        with contents.read(name) as stream:
            _check_digest(contents.where, name, stream_digest(stream), sha256)


def _check_digest(where: Path, name: str, found: str, expected: str) -> None:
    if found != expected:
        raise BundleError(
            f"{where}: {name} was altered or damaged (SHA-256 {found}, expected {expected}). "
            "Copy the bundle again from its source."
        )


def _unpacked(contents: Contents, expected: _Expected, cache: Path) -> Path:
    """The checked copy in the cache; a damaged one is replaced. One process unpacks, others wait."""
    import fcntl

    root = cache / expected.key
    with storage_errors(cache):
        cache.mkdir(parents=True, exist_ok=True)
        with open(cache / f"{expected.key}.lock", "a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            try:
                if root.is_dir():
                    with contents_of(root) as copy:
                        _check(copy, expected)
                    return root
            except BundleError:
                shutil.rmtree(str(root))
            _extract(contents, expected, root)
    return root


def _extract(contents: Contents, expected: _Expected, directory: Path) -> None:
    """Copy and digest file by file into a folder beside, then rename it."""
    _check_listing(contents, expected)
    partial = directory.with_name(directory.name + ".partial")
    with storage_errors(directory):
        if directory.exists():
            raise BundleError(f"{directory}: already exists. Remove it, or unpack elsewhere.")
        if partial.exists():
            shutil.rmtree(str(partial))
        require_free(directory, sum(contents.sizes.values()))
        for name in contents.sizes:
            target = partial / name
            target.parent.mkdir(parents=True, exist_ok=True)
            with contents.read(name) as source, open(target, "xb") as out:
                found = stream_digest(source, copy_to=out)
                out.flush()
                os.fsync(out.fileno())
            wanted = expected.digest if name == MANIFEST else expected.files[name][0]
            _check_digest(contents.where, name, found, wanted)
        partial.rename(directory)
        fsync_directory(directory.parent)


def _bundle(root: Path, expected: _Expected) -> Bundle:
    """Parse what the runner needs, and check that it speaks of listed files only."""
    listed = expected.manifest["files"]
    for name in (MODEL, ITEMS):
        if name not in listed:
            raise BundleError(f"{root}: not a bundle of format {FORMAT_VERSION}, it has no {name}.")
    certainty_json: Any = {}
    try:
        model_json = json.loads((root / MODEL).read_text(encoding="utf-8"))
        if CERTAINTY in listed:  # bundles from before there was abstaining have none
            certainty_json = json.loads((root / CERTAINTY).read_text(encoding="utf-8"))
        items = tuple(read_jsonl(root / ITEMS, Item))
    except (ValueError, RecursionError) as error:
        raise BundleError(f"{root}: {MODEL}, {ITEMS} or {CERTAINTY} is not JSON ({error}).") from error
    model = model_from_json(model_json, str(root / MODEL))
    certainty = from_json(Certainty, certainty_json, str(root / CERTAINTY))
    used = [*model.graphs.values(), *(item.image for item in items if item.image)]
    used += [certainty.graph] if certainty.graph else []
    used += [REFERENCE_FEATURES] if isinstance(model, DualEncoderSpec) and model.feature_items else []
    unlisted = sorted({name for name in used if name not in listed})
    if unlisted:
        raise BundleError(f"{root}: it uses files that are not listed: {_some(unlisted)}.")
    return Bundle(root, expected.manifest, expected.digest, model, items, expected.seal, certainty)
