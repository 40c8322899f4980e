"""A bundle in the form that a device takes: a folder, a .litertlm file, or compiled for Qualcomm's NPU."""

from __future__ import annotations

import dataclasses
import json
import tempfile
from enum import Enum
from pathlib import Path
from typing import Any

from edgevlm_runner.contract import AnyresSpec, ModelSpec
from edgevlm_runner.runtimes.litert import MODEL

from edgevlm_deploy import bundle
from edgevlm_deploy.bundle import Bundle
from edgevlm_deploy.errors import BundleError, StorageError

PUSHED_TO = "/data/local/tmp/edgevlm"
"""Where `edgevlm validate --device adb` works too."""


class Form(str, Enum):
    FOLDER = "folder"
    LITERTLM = "litertlm"
    QUALCOMM = "qualcomm"


def default_out(path: Path, form: Form) -> Path:
    """Beside the bundle."""
    endings = {Form.FOLDER: "-device", Form.LITERTLM: ".litertlm", Form.QUALCOMM: f"-npu{bundle.SUFFIX}"}
    return path.with_name(path.name.removesuffix(bundle.SUFFIX) + endings[form])


def package(path: Path, form: Form, out: Path, unsealed: bool) -> dict[str, Any]:
    """Write `out` from the bundle at `path` and say what is in it and what to do with it, as JSON types.

    Raises BundleError when the bundle has not passed its gates, unless `unsealed` is given, or is not of a
    kind that the form takes; StorageError when `out` exists or cannot be written.
    """
    opened = bundle.open_sealed(path, unsealed)
    if out.exists():
        raise StorageError(f"{out} exists. Remove it, or name another place with --out.")
    made = {Form.FOLDER: _folder, Form.LITERTLM: _litertlm, Form.QUALCOMM: _qualcomm}[form]
    return {"package": str(out), **_state(opened), **made(opened, path, out)}


def _state(opened: Bundle) -> dict[str, str]:
    seal = opened.seal
    return {"seal": "none: not validated" if seal is None else str(seal["statement"])}


def _folder(opened: Bundle, path: Path, out: Path) -> dict[str, Any]:
    bundle.unpack(path, out)
    there = f"{PUSHED_TO}/{out.name}"
    return {
        "bytes": sum(one.stat().st_size for one in out.rglob("*") if one.is_file()),
        "push": f"adb push {out} {there}",
        "run": f'adb shell "cd {there} && PYTHONPATH=runner python3 -m edgevlm_runner . --out ../evidence"',
    }


def _litertlm(opened: Bundle, path: Path, out: Path) -> dict[str, Any]:
    from edgevlm_deploy.export import litertlm, litertlm_check

    facts = {"name": str(opened.manifest["name"]), "edgevlm_bundle": opened.digest, **_state(opened)}
    tokenizer = opened.path("tokenizer/tokenizer.json")
    model, spec = _model(opened, path), opened.model
    if not isinstance(spec, ModelSpec):
        raise BundleError(
            f"{path} holds a model of kind {spec.kind}; LiteRT-LM runs decoders that read picture "
            "and question."
        )
    if spec.position_rows > 1:
        raise BundleError(
            f"{path}: LiteRT-LM places tokens one after the other, {spec.family} in time, height and width. "
            "Take --format folder."
        )
    if spec.prefix or isinstance(spec.image, AnyresSpec):
        raise BundleError(
            f"{path}: LiteRT-LM reads a prompt in causal pieces with one tile, unlike {spec.family}. "
            "Take --format folder."
        )
    try:
        sections = litertlm.write(model, spec, tokenizer, facts, opened.digest, out)
        compared = litertlm_check.compare(out, opened, spec)
    except Exception:
        out.unlink(missing_ok=True)
        raise
    return {
        "bytes": out.stat().st_size,
        "sections": [dataclasses.asdict(one) for one in sections],
        "compared": dataclasses.asdict(compared),
        **({"abstaining": "left out: LiteRT-LM answers every question"} if opened.certainty.abstain else {}),
    }


def _qualcomm(opened: Bundle, path: Path, out: Path) -> dict[str, Any]:
    """A bundle of its own, with the compiled graph; nobody has judged it, so it has no seal."""
    from edgevlm_deploy.export import qualcomm

    model = _model(opened, path)
    target = json.loads(opened.path("target.json").read_text(encoding="utf-8"))
    if target["accelerator"] != "npu":
        raise BundleError(
            f"{path} was compiled for the {target['accelerator']}; Hexagon takes calibrated integers. "
            "Compile it for a target with `accelerator: npu` first."
        )
    with tempfile.TemporaryDirectory(prefix="edgevlm-package-") as temporary:
        folder = Path(temporary) / "bundle"
        bundle.unpack(path, folder)
        name = opened.model.graphs[MODEL]
        counted = qualcomm.compile(model, target["soc"], folder / name)
        bundle.revise(folder, [name], {"compiled_for": target["soc"], **counted})
        bundle.pack(folder, out)
    return {"bytes": out.stat().st_size, **counted, "next": f"edgevlm validate {out} --device adb"}


def _model(opened: Bundle, path: Path) -> Path:
    if opened.model.runtime != "litert":
        raise BundleError(
            f"{path} holds graphs for {opened.model.runtime}, this form needs LiteRT's. Compile for a target "
            "such as snapdragon-8-gen3."
        )
    return opened.path(opened.model.graphs[MODEL])
