"""Writing, packing and sealing: the host's side of a bundle."""

from __future__ import annotations

import dataclasses
import json
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import small_bundle
from edgevlm_runner.contract import Answer, Certainty, Item
from PIL import Image

from edgevlm_deploy import bundle as bundles
from edgevlm_deploy.artifacts import digest, file_digest, tree_digest
from edgevlm_deploy.bundle import (
    Parts,
    Provenance,
    open_bundle,
    pack,
    picture_name,
    seal,
    unpack,
    verify,
    write,
)
from edgevlm_deploy.errors import BundleError, StorageError
from edgevlm_deploy.recipe import Gate, GateName, Recipe
from edgevlm_deploy.target import Backend, Target

MODEL = dataclasses.replace(
    small_bundle.MODEL,
    graphs={"vision_encoder": "graphs/vision_encoder.onnx", "decoder": "graphs/decoder.onnx"},
)


@pytest.fixture
def parts(tmp_path: Path) -> Parts:
    source = tmp_path / "parts"
    (source / "graphs").mkdir(parents=True)
    for name, size in (("vision_encoder.onnx", 1000), ("decoder.onnx", 200_000), ("decoder.onnx.data", 10)):
        (source / "graphs" / name).write_bytes(bytes(range(250)) * (size // 10))
    (source / "tokenizer.json").write_text("{}")
    Image.new("RGB", (8, 8)).save(source / "cat.PNG")
    image_id = file_digest(source / "cat.PNG")
    image = picture_name(source / "cat.PNG", image_id)
    items = [
        Item("1", "1", "count", "clean", image, image_id, "How many?", ("2",)),
        Item("1-fog", "1", "count", "fog/3", image, image_id, "How many?", ("2",)),
        Item("2", "2", "", "clean", "", "", "Who?", ()),
    ]
    gate = Gate(metric=GateName.ACCURACY, min=0.5)
    return Parts(
        name="demo-host-cpu",
        model=MODEL,
        graphs=source / "graphs",
        tokenizer=source / "tokenizer.json",
        items=items,
        pictures={image: source / "cat.PNG"},
        reference=[Answer(item.id, "2", (5, 6), (-0.1, -0.2), True) for item in items],
        gates=[gate],
        recipe=Recipe(name="demo", description="", gates=(gate,)),
        target=Target(name="host-cpu", description="", backend=Backend.ONNXRUNTIME, memory_bytes=1 << 30),
        quantization={"decoder.layers.0": {"bits": 4}},
        provenance=Provenance(
            edgevlm_version="0.1.0",
            packages={"torch": "2.13.0"},
            source={"model": "demo", "digest": "0" * 64},
            seeds={"calibration": 0},
            calibration={"digest": "1" * 64, "samples": 2},
            quantization={"quantizer": "neural-compressor"},
            verification={"max_difference": 1e-6},
            reference={"dtype": "float16"},
        ),
    )


@pytest.fixture
def evidence(tmp_path: Path) -> Path:
    folder = tmp_path / "evidence"
    folder.mkdir()
    for name in ("evidence.json", "answers.jsonl", "verdict.json", "metrics.json"):
        (folder / name).write_text(f'{{"file": "{name}"}}\n')
    return folder


def test_round_trip(parts: Parts, tmp_path: Path) -> None:
    folder = write(parts, tmp_path / "bundle")
    packed = pack(folder, tmp_path / "out" / "demo.edgevlm")
    unpack(packed, tmp_path / "unpacked")
    assert tree_digest(folder) == tree_digest(tmp_path / "unpacked")
    for path in (folder, packed, tmp_path / "unpacked"):
        opened = open_bundle(path, cache=tmp_path / "cache")
        assert opened.model == parts.model
        assert list(opened.items) == list(parts.items)
        assert opened.seal is None
        assert opened.digest == file_digest(folder / "manifest.json") == verify(path)
        assert opened.path("graphs/decoder.onnx").read_bytes() == (parts.graphs / "decoder.onnx").read_bytes()


def test_what_the_manifest_says(parts: Parts, tmp_path: Path) -> None:
    folder = write(parts, tmp_path / "bundle")
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["recipe"] == {"name": "demo", "digest": digest(parts.recipe)}
    assert manifest["calibration"] == {"digest": "1" * 64, "samples": 2}
    assert "runner/edgevlm_runner/bundle.py" in manifest["files"]
    assert "graphs/decoder.onnx.data" in manifest["files"]
    image = next(iter(parts.pictures))
    assert manifest["files"][image]["bytes"] == (folder / image).stat().st_size
    assert str(tmp_path) not in (folder / "manifest.json").read_text()


def test_the_same_parts_give_the_same_bytes(parts: Parts, tmp_path: Path) -> None:
    one = pack(write(parts, tmp_path / "first"), tmp_path / "one.edgevlm")
    (tmp_path / "elsewhere").mkdir()
    two = pack(write(parts, tmp_path / "elsewhere" / "second"), tmp_path / "two.edgevlm")
    assert one.read_bytes() == two.read_bytes()


def test_the_packed_runner_opens_its_own_bundle(parts: Parts, tmp_path: Path) -> None:
    """On a device there is only what the bundle brings; the byte code it leaves behind is tolerated."""
    folder = write(parts, tmp_path / "bundle")
    program = (
        "import sys; from edgevlm_runner.bundle import open_bundle; print(open_bundle(sys.argv[1]).digest)"
    )
    for _ in range(2):
        done = subprocess.run(
            [sys.executable, "-S", "-c", program, str(folder)],
            env={"PYTHONPATH": str(folder / "runner")},
            capture_output=True,
            text=True,
            check=True,
        )
        assert done.stdout.strip() == file_digest(folder / "manifest.json")
    assert list((folder / "runner").rglob("*.pyc"))
    pack(folder, tmp_path / "demo.edgevlm")
    unpack(tmp_path / "demo.edgevlm", tmp_path / "unpacked")
    assert not list((tmp_path / "unpacked").rglob("*.pyc"))


@pytest.mark.parametrize("zipped", [True, False])
def test_sealing(parts: Parts, evidence: Path, tmp_path: Path, zipped: bool) -> None:
    folder = write(parts, tmp_path / "bundle")
    path = pack(folder, tmp_path / "demo.edgevlm") if zipped else folder
    before = verify(path)
    seal(path, evidence, "passed", True, "All 3 gates passed.")
    opened = open_bundle(path, cache=tmp_path / "cache")
    assert opened.digest == before
    assert opened.seal is not None
    assert opened.seal["outcome"] == "passed"
    assert opened.seal["deployable"] is True
    assert opened.seal["evidence"] == {p.name: file_digest(p) for p in evidence.iterdir()}
    assert (opened.root / "evidence" / "verdict.json").read_text() == (evidence / "verdict.json").read_text()

    (evidence / "metrics.json").unlink()
    seal(path, evidence, "failed", False, "1 of 3 gates failed.")
    again = open_bundle(path, cache=tmp_path / "cache")
    assert again.seal is not None
    assert again.seal["deployable"] is False
    assert not (again.root / "evidence" / "metrics.json").exists()


def test_sealing_a_zip_and_a_folder_gives_the_same_bundle(
    parts: Parts, evidence: Path, tmp_path: Path
) -> None:
    folder = write(parts, tmp_path / "bundle")
    packed = pack(folder, tmp_path / "demo.edgevlm")
    for path in (folder, packed):
        seal(path, evidence, "passed", True, "")
    assert pack(folder, tmp_path / "again.edgevlm").read_bytes() == packed.read_bytes()


def test_a_half_sealed_folder_is_refused_until_it_is_sealed_again(
    parts: Parts, evidence: Path, tmp_path: Path
) -> None:
    folder = write(parts, tmp_path / "bundle")
    (folder / "evidence").mkdir()
    (folder / "evidence" / "verdict.json").write_text("{}")
    with pytest.raises(BundleError, match="Sealing was interrupted: seal it again"):
        open_bundle(folder)
    seal(folder, evidence, "passed", True, "")
    assert open_bundle(folder).seal is not None


def test_sealing_needs_evidence_from_elsewhere(parts: Parts, tmp_path: Path) -> None:
    folder = write(parts, tmp_path / "bundle")
    (tmp_path / "empty").mkdir()
    with pytest.raises(BundleError, match="no evidence to seal"):
        seal(folder, tmp_path / "empty", "passed", True, "")
    with pytest.raises(BundleError, match="no such bundle"):
        seal(folder, tmp_path / "nowhere", "passed", True, "")
    with pytest.raises(BundleError, match="inside the bundle"):
        seal(folder, folder / "graphs", "passed", True, "")
    (folder / "graphs" / "decoder.onnx").write_bytes(b"other")
    (tmp_path / "empty" / "verdict.json").write_text("{}")
    with pytest.raises(BundleError, match="expected 5,000,000"):
        seal(folder, tmp_path / "empty", "passed", True, "")
    assert not (folder / "seal.json").exists()


def test_parts_that_do_not_fit_together(parts: Parts, tmp_path: Path) -> None:
    def refused(match: str, **changes: object) -> None:
        with pytest.raises(BundleError, match=match):
            write(dataclasses.replace(parts, **changes), tmp_path / "bundle")  # type: ignore[arg-type]

    refused("do not match one to one", reference=parts.reference[:2])
    refused("an id of its own", items=[parts.items[0], parts.items[0]])
    refused("is not given", pictures={})
    refused("graphs", model=dataclasses.replace(MODEL, graphs={"decoder": "graphs/other.onnx"}))
    source = dataclasses.replace(parts.provenance, source={"model": str(tmp_path)})
    refused(r"manifest\.source\.model: .* is a path of this machine", provenance=source)


def test_a_picture_that_changed_meanwhile_is_noticed(parts: Parts, tmp_path: Path) -> None:
    Image.new("RGB", (8, 8), "red").save(next(iter(parts.pictures.values())))
    with pytest.raises(BundleError, match="changed since"):
        write(parts, tmp_path / "bundle")


@pytest.fixture
def folder(parts: Parts, tmp_path: Path) -> Path:
    return write(parts, tmp_path / "bundle")


@pytest.fixture
def limited_files(folder: Path) -> Iterator[None]:
    """A process limit stands in for a full disk: writes beyond 2 MiB fail."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2 << 20, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    signal.signal(signal.SIGXFSZ, before)


@pytest.mark.usefixtures("limited_files")
def test_a_write_that_fails_while_packing_leaves_nothing(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with pytest.raises(StorageError, match=r"demo\.edgevlm: File too large"):
        pack(folder, tmp_path / "out" / "demo.edgevlm")
    assert not list((tmp_path / "out").iterdir())


def test_a_full_disk_is_noticed_before_packing(folder: Path, tmp_path: Path) -> None:
    small = tmp_path / "small"
    small.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(small)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("mounting a small file system needs root")
    try:
        with pytest.raises(StorageError, match=r"5,[\d,]+ bytes are needed, 1,048,576 are free"):
            pack(folder, small / "demo.edgevlm")
        packed = pack(folder, tmp_path / "demo.edgevlm")
        with pytest.raises(StorageError, match="bytes are needed"):
            open_bundle(packed, cache=small / "cache")
        with pytest.raises(StorageError, match="bytes are needed"):
            unpack(packed, small / "unpacked")
    finally:
        subprocess.run(["umount", str(small)], check=True)


KILLED = """
import sys, time
from pathlib import Path
from edgevlm_deploy import bundle
import shutil

copy = shutil.copyfileobj
def slow(source, target, length):
    target.write(source.read(10))
    print("ready", flush=True)
    time.sleep(60)
shutil.copyfileobj = slow
if sys.argv[1] == "pack":
    bundle.pack(Path(sys.argv[2]), Path(sys.argv[3]))
else:
    bundle.seal(Path(sys.argv[3]), Path(sys.argv[2]), "passed", True, "")
"""


@pytest.mark.parametrize("step", ["pack", "seal"])
def test_a_killed_process_leaves_no_half_file(
    folder: Path, evidence: Path, tmp_path: Path, step: str
) -> None:
    out = tmp_path / "out" / "demo.edgevlm"
    before = pack(folder, out).read_bytes()
    source = folder if step == "pack" else evidence
    process = subprocess.Popen(
        [sys.executable, "-c", KILLED, step, str(source), str(out)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    assert out.read_bytes() == before
    verify(out)


def test_public_names() -> None:
    assert all(hasattr(bundles, name) for name in bundles.__all__)


def test_a_selector_travels_with_its_threshold(parts: Parts, tmp_path: Path) -> None:
    file = tmp_path / "selector.onnx"
    file.write_bytes(b"layers")
    certainty = Certainty(2.5, 100, "selector", 0.75, "graphs/selector.onnx")
    whole = dataclasses.replace(parts, certainty=certainty, selector=file)
    opened = open_bundle(write(whole, tmp_path / "bundle"))
    assert opened.certainty == certainty
    assert opened.path(opened.certainty.graph).read_bytes() == b"layers"
    with pytest.raises(BundleError, match=r"selector graphs/selector\.onnx has no file or no name"):
        write(dataclasses.replace(whole, selector=None), tmp_path / "without")
