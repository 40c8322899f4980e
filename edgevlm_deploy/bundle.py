"""Write, pack and seal bundles; `edgevlm_runner.bundle` documents the layout and opens them.

The same inputs give the same bytes: no times, no paths of this machine, sorted names, fixed permissions.
"""

from __future__ import annotations

import io
import json
import re
import shutil
import stat
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import edgevlm_runner
from edgevlm_runner.bundle import (
    CERTAINTY,
    EVIDENCE,
    ITEMS,
    MANIFEST,
    MODEL,
    SEAL,
    Bundle,
    contents_of,
    open_bundle,
    unpack,
    verify,
)
from edgevlm_runner.contract import (
    FORMAT_VERSION,
    REFERENCE_FEATURES,
    Answer,
    Certainty,
    Item,
    Model,
    to_json,
    write_jsonl,
)
from edgevlm_runner.storage import require_free, storage_errors

from edgevlm_deploy.artifacts import (
    atomic_path,
    digest,
    file_digest,
    pretty_json,
    write_bytes_atomic,
    write_text_atomic,
)
from edgevlm_deploy.errors import BundleError
from edgevlm_deploy.recipe import Gate, Recipe
from edgevlm_deploy.target import Target

__all__ = [
    "SUFFIX",
    "Bundle",
    "Parts",
    "Provenance",
    "evidence_of",
    "open_bundle",
    "open_sealed",
    "pack",
    "picture_name",
    "recipe",
    "revise",
    "seal",
    "unpack",
    "verify",
    "write",
]

SUFFIX = ".edgevlm"
_EPOCH = (1980, 1, 1, 0, 0, 0)
_HOST_PATH = re.compile(r"(/|~|[A-Za-z]:[\\/]|file:)")


@dataclass(frozen=True)
class Provenance:
    """What the manifest says about the making; plain JSON without times and without host paths."""

    edgevlm_version: str
    packages: Mapping[str, str]
    """Version of every package that took part."""
    source: Mapping[str, Any]
    seeds: Mapping[str, int]
    calibration: Mapping[str, Any]
    quantization: Mapping[str, Any]
    verification: Mapping[str, Any]
    """How the exported graphs compared with the quantised model."""
    reference: Mapping[str, Any]
    certainty: Mapping[str, Any] = field(default_factory=dict)
    """How the temperature, the Selector and its threshold were found."""


@dataclass(frozen=True)
class Parts:
    """Everything that goes into a bundle.

    graphs     folder whose files become `graphs/…`; `model.graphs` names them
    pictures   name in the bundle (`picture_name`) → file
    selector   what becomes `certainty.graph`; None without one
    features   what becomes `reference_features.npz`; None where `model.feature_items` asks for none
    """

    name: str
    model: Model
    graphs: Path
    tokenizer: Path
    items: Sequence[Item]
    pictures: Mapping[str, Path]
    reference: Sequence[Answer]
    gates: Sequence[Gate]
    recipe: Recipe
    target: Target
    quantization: Mapping[str, Any]
    provenance: Provenance
    certainty: Certainty = field(default_factory=Certainty)
    selector: Path | None = None
    features: Path | None = None


def recipe(bundle: Bundle) -> Recipe:
    """The recipe that the bundle was compiled with. Raises BundleError when it is of another version."""
    path = bundle.path("recipe.json")
    try:
        return Recipe.model_validate_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BundleError(f"{path}: not a recipe of this edgevlm ({error}). Compile it again.") from error


def evidence_of(bundle: Bundle, path: Path) -> Path:
    """The folder with the evidence of the bundle that was opened from `path`: sealed in it, or beside it.

    Raises BundleError when there is none.
    """
    directory = bundle.root / "evidence" if bundle.seal else path.with_suffix(".evidence")
    if not directory.is_dir():
        raise BundleError(f"{path} has no evidence yet. Run `edgevlm validate {path}` first.")
    return directory


def picture_name(image: Path, image_id: str) -> str:
    """`images/<SHA-256>.<extension>`: what `Item.image` holds."""
    return f"images/{image_id}{image.suffix.lower()}"


def write(parts: Parts, out: Path) -> Path:
    """Fill the folder `out`, which must be empty or absent, and open it once to prove that it is whole.

    Raises BundleError when parts do not fit together, StorageError when there is no room.
    """
    _check_parts(parts)
    with storage_errors(out):
        out.mkdir(parents=True, exist_ok=True)
        if any(out.iterdir()):
            raise BundleError(f"{out}: the folder for a bundle must be empty.")
        copies = _copies(parts)
        require_free(out, sum(source.stat().st_size for source in copies.values()))
        for name, source in copies.items():
            target = out / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, target)
        for name, value in _documents(parts).items():
            (out / name).write_text(pretty_json(value), encoding="utf-8")
        write_jsonl(out / ITEMS, parts.items)
        write_jsonl(out / "reference.jsonl", parts.reference)
        write_text_atomic(out / MANIFEST, pretty_json(_manifest(parts, out)))
    for item in {item.image: item for item in parts.items if item.image}.values():
        if file_digest(out / item.image) != item.image_id:
            raise BundleError(f"{parts.pictures[item.image]}: changed since item {item.id} was read.")
    open_bundle(out)
    return out


def pack(directory: Path, out: Path) -> Path:
    """The folder as one zip of stored entries; the same folder gives the same bytes.

    Raises BundleError when the folder is no whole bundle, StorageError when the zip does not fit.
    """
    verify(directory)
    out.parent.mkdir(parents=True, exist_ok=True)
    with contents_of(directory) as contents:
        _zip(out, contents.sizes, contents.read)
    return out


def open_sealed(path: Path, unsealed: bool) -> Bundle:
    """Raises BundleError when the bundle has not passed its gates, unless `unsealed` is given."""
    opened = open_bundle(path)
    if opened.seal is None and not unsealed:
        raise BundleError(
            f"{path} has not passed its gates on any device. Run `edgevlm validate {path}` first, "
            "or give --unsealed to try it anyway."
        )
    return opened


def revise(directory: Path, changed: Sequence[str], verification: Mapping[str, Any]) -> None:
    """Make the folder a bundle of its own after the files `changed` were replaced; its seal is void.

    verification: what is to be said in the manifest beside what was verified before.
    """
    _remove_seal(directory)
    manifest = json.loads((directory / MANIFEST).read_text(encoding="utf-8"))
    manifest["verification"] = {**manifest["verification"], **verification}
    for name in changed:
        file = directory / name
        manifest["files"][name] = {"sha256": file_digest(file), "bytes": file.stat().st_size}
    write_text_atomic(directory / MANIFEST, pretty_json(manifest))
    open_bundle(directory)


def seal(bundle: Path, evidence: Path, outcome: str, deployable: bool, statement: str) -> None:
    """Add the files of the folder `evidence` and a seal that names them and the manifest.

    Works on a zip (replaced in one step) or a folder. An earlier seal and its evidence give way. Killed
    between the steps, a folder is refused until it is sealed again; a zip keeps its old content.

    Raises BundleError when the bundle is not whole, StorageError when the new zip does not fit.
    """
    with contents_of(evidence) as contents:
        added = {EVIDENCE + name: evidence / name for name in sorted(contents.sizes)}
    if bundle.resolve() in evidence.resolve().parents:
        raise BundleError(f"{evidence}: lies inside the bundle; gather evidence outside of it.")
    if not added:
        raise BundleError(f"{evidence}: there is no evidence to seal.")
    if bundle.is_dir():
        _remove_seal(bundle)
    content = {
        "format_version": FORMAT_VERSION,
        "manifest_sha256": verify(bundle),
        "evidence": {name[len(EVIDENCE) :]: file_digest(path) for name, path in added.items()},
        "outcome": outcome,
        "deployable": deployable,
        "statement": statement,
    }
    text = pretty_json(content).encode()
    if bundle.is_dir():
        with storage_errors(bundle):
            for name, path in added.items():
                (bundle / name).parent.mkdir(parents=True, exist_ok=True)
                write_bytes_atomic(bundle / name, path.read_bytes())
            write_bytes_atomic(bundle / SEAL, text)
    else:
        _seal_zip(bundle, added, text)
    verify(bundle)


def _remove_seal(directory: Path) -> None:
    """Back to the unsealed folder, seal first: evidence without a seal is refused, never believed."""
    with storage_errors(directory):
        (directory / SEAL).unlink(missing_ok=True)
        if (directory / EVIDENCE).is_dir():
            shutil.rmtree(directory / EVIDENCE)


def _seal_zip(bundle: Path, added: Mapping[str, Path], text: bytes) -> None:
    with contents_of(bundle) as contents:
        kept = {n: size for n, size in contents.sizes.items() if n != SEAL and not n.startswith(EVIDENCE)}
        sizes = {**kept, **{name: path.stat().st_size for name, path in added.items()}, SEAL: len(text)}

        def read(name: str) -> BinaryIO:
            if name == SEAL:
                return io.BytesIO(text)
            return added[name].open("rb") if name in added else contents.read(name)

        _zip(bundle, sizes, read)


def _zip(out: Path, sizes: Mapping[str, int], read: Callable[[str], BinaryIO]) -> None:
    """Stored, sorted, 1980-01-01, rw-r--r--: nothing in the archive depends on when and where."""
    require_free(out, sum(sizes.values()) + 512 * len(sizes))
    with atomic_path(out) as temporary, zipfile.ZipFile(temporary, "x", zipfile.ZIP_STORED) as archive:
        for name in sorted(sizes):
            entry = zipfile.ZipInfo(name, _EPOCH)
            entry.create_system = 3
            entry.external_attr = (stat.S_IFREG | 0o644) << 16
            entry.file_size = sizes[name]
            with read(name) as source, archive.open(entry, "w") as target:
                shutil.copyfileobj(source, target, 1 << 20)


def _copies(parts: Parts) -> dict[str, Path]:
    """name in the bundle → file that is copied there as it is."""
    graphs = {f"graphs/{path.name}": path for path in sorted(parts.graphs.iterdir()) if path.is_file()}
    package = Path(edgevlm_runner.__file__).parent
    runner = {
        f"runner/edgevlm_runner/{path.relative_to(package).as_posix()}": path
        for path in sorted(package.rglob("*.py"))
    }
    pictures = {item.image: parts.pictures[item.image] for item in parts.items if item.image}
    selector = {} if parts.selector is None else {parts.certainty.graph: parts.selector}
    features = {} if parts.features is None else {REFERENCE_FEATURES: parts.features}
    return {
        **graphs,
        **selector,
        **features,
        "tokenizer/tokenizer.json": parts.tokenizer,
        **pictures,
        **runner,
    }


def _documents(parts: Parts) -> dict[str, Any]:
    return {
        MODEL: to_json(parts.model),
        CERTAINTY: to_json(parts.certainty),
        "gates.json": [gate.model_dump(mode="json") for gate in parts.gates],
        "recipe.json": parts.recipe.model_dump(mode="json"),
        "target.json": parts.target.model_dump(mode="json"),
        "quantization.json": parts.quantization,
    }


def _manifest(parts: Parts, out: Path) -> dict[str, Any]:
    made = parts.provenance
    manifest: dict[str, Any] = {
        "format_version": FORMAT_VERSION,
        "name": parts.name,
        "edgevlm_version": made.edgevlm_version,
        "packages": dict(made.packages),
        "source": dict(made.source),
        "recipe": {"name": parts.recipe.name, "digest": digest(parts.recipe)},
        "target": {"name": parts.target.name, "digest": digest(parts.target)},
        "seeds": dict(made.seeds),
        "calibration": dict(made.calibration),
        "quantization": dict(made.quantization),
        "verification": dict(made.verification),
        "reference": dict(made.reference),
        "certainty": dict(made.certainty),
    }
    _refuse_host_paths(manifest, "manifest")
    with contents_of(out) as contents:
        manifest["files"] = {
            name: {"sha256": file_digest(out / name), "bytes": size}
            for name, size in sorted(contents.sizes.items())
        }
    return manifest


def _refuse_host_paths(value: Any, key: str) -> None:
    """A path of this machine tells the customer nothing, and makes two builds differ."""
    if isinstance(value, Mapping):
        for name, one in value.items():
            _refuse_host_paths(one, f"{key}.{name}")
    elif isinstance(value, (list, tuple)):
        for number, one in enumerate(value):
            _refuse_host_paths(one, f"{key}[{number}]")
    elif isinstance(value, str) and _HOST_PATH.match(value):
        raise BundleError(f"{key}: {value!r} is a path of this machine; give a name or a digest.")


def _check_parts(parts: Parts) -> None:
    """Everything that is named is there, and the reference answered every item exactly once."""
    missing = [name for name in parts.model.graphs.values() if not (parts.graphs / Path(name).name).is_file()]
    missing += [name for name in parts.model.graphs.values() if name != f"graphs/{Path(name).name}"]
    if missing or not parts.model.graphs:
        raise BundleError(f"{parts.graphs}: the model's graphs {missing} are not there as graphs/<file>.")
    if bool(parts.certainty.graph) != (parts.selector is not None):
        raise BundleError(f"the selector {parts.certainty.graph or parts.selector} has no file or no name.")
    ids = [item.id for item in parts.items]
    if not ids or len(set(ids)) != len(ids):
        raise BundleError("a bundle needs items, each with an id of its own.")
    if sorted(ids) != sorted(answer.item_id for answer in parts.reference):
        raise BundleError(
            f"{len(ids)} items and {len(parts.reference)} reference answers do not match one to one."
        )
    for item in parts.items:
        if not item.image:
            continue
        if item.image not in parts.pictures or Path(item.image).stem != item.image_id:
            raise BundleError(
                f"item {item.id}: picture {item.image!r} is not given, or not named by its digest."
            )
