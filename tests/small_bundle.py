"""The smallest bundle there is, made by hand, for tests that damage it."""

from __future__ import annotations

import hashlib
import json
import zipfile
from pathlib import Path
from typing import Any

from edgevlm_runner.contract import ImageSpec, ModelSpec, PromptSpec

MODEL = ModelSpec(
    family="smolvlm",
    runtime="onnxruntime",
    graphs={"decoder": "graphs/decoder.onnx"},
    image=ImageSpec(96, 96, False, None, 1, 1 / 255, (0.5,) * 3, (0.5,) * 3),
    prompt=PromptSpec("{image}{question}", "{question}", "<image>", "<fake>", "<global>", 16),
    image_token_id=4,
    eos_token_ids=(6,),
    max_new_tokens=8,
    max_context=64,
    layers=1,
    kv_heads=1,
    head_dim=8,
    hidden_size=8,
    vocab_size=32,
)
SEAL = {"format_version": 1, "outcome": "passed", "deployable": True, "statement": ""}


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def listing(folder: Path) -> None:
    """(Re)write manifest.json for what lies in `folder`."""
    files = {
        path.relative_to(folder).as_posix(): {
            "sha256": sha256(path.read_bytes()),
            "bytes": path.stat().st_size,
        }
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name not in ("manifest.json", "seal.json") and "evidence" not in path.parts
    }
    (folder / "manifest.json").write_text(json.dumps({"format_version": 1, "name": "demo", "files": files}))


def sealed(folder: Path, **changes: Any) -> None:
    evidence = {path.name: sha256(path.read_bytes()) for path in (folder / "evidence").glob("*")}
    manifest = sha256((folder / "manifest.json").read_bytes())
    seal = {**SEAL, "manifest_sha256": manifest, "evidence": evidence, **changes}
    (folder / "seal.json").write_text(json.dumps(seal))


def stored(folder: Path, out: Path) -> Path:
    with zipfile.ZipFile(out, "w", zipfile.ZIP_STORED) as archive:
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                archive.write(path, path.relative_to(folder).as_posix())
    return out
