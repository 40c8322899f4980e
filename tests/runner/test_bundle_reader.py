"""What a device accepts as a bundle, and every way to be refused."""

from __future__ import annotations

import contextlib
import json
import os
import stat
import threading
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from edgevlm_runner.bundle import Bundle, default_cache, open_bundle, unpack, verify
from edgevlm_runner.contract import Item, ModelSpec, from_json, to_json, write_jsonl
from edgevlm_runner.errors import BundleError
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from small_bundle import MODEL, listing, sealed, sha256, stored


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "bundle"
    (root / "graphs").mkdir(parents=True)
    (root / "images").mkdir()
    (root / "graphs" / "decoder.onnx").write_bytes(bytes(range(256)) * 20)
    (root / "images" / "cat.png").write_bytes(b"png")
    (root / "model.json").write_text(json.dumps(to_json(MODEL)))
    write_jsonl(root / "items.jsonl", [Item("1", "1", "", "clean", "images/cat.png", "c", "What?", ("cat",))])
    listing(root)
    return root


@pytest.fixture
def packed(folder: Path, tmp_path: Path) -> Path:
    return stored(folder, tmp_path / "demo.edgevlm")


def test_a_folder_and_its_zip_open_alike(folder: Path, packed: Path, tmp_path: Path) -> None:
    one, two = open_bundle(folder), open_bundle(packed, cache=tmp_path / "cache")
    assert one.root == folder
    assert two.root.parent == tmp_path / "cache"
    assert (one.model, one.items, one.digest) == (two.model, two.items, two.digest)
    assert one.digest == verify(packed) == sha256((folder / "manifest.json").read_bytes())
    assert one.path("graphs/decoder.onnx") == folder / "graphs" / "decoder.onnx"
    for name in ("../bundle/model.json", "other", "manifest.json"):
        with pytest.raises(BundleError, match="lists no file"):
            one.path(name)


def test_the_cache_is_where_the_environment_says(
    packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDGEVLM_CACHE", str(tmp_path / "there"))
    assert open_bundle(packed).root.parent == tmp_path / "there"
    monkeypatch.delenv("EDGEVLM_CACHE")
    assert default_cache() == Path.home() / ".cache" / "edgevlm"


def test_the_second_open_unpacks_nothing(packed: Path, tmp_path: Path) -> None:
    first = open_bundle(packed, cache=tmp_path / "cache")
    written = (first.root / "graphs" / "decoder.onnx").stat().st_mtime_ns
    assert open_bundle(packed, cache=tmp_path / "cache") == first
    assert (first.root / "graphs" / "decoder.onnx").stat().st_mtime_ns == written


@pytest.mark.parametrize("damage", ["flip", "remove", "add"])
def test_a_rotten_copy_in_the_cache_is_replaced(packed: Path, tmp_path: Path, damage: str) -> None:
    graph = open_bundle(packed, cache=tmp_path / "cache").root / "graphs" / "decoder.onnx"
    good = graph.read_bytes()
    if damage == "flip":
        graph.write_bytes(good[:-1] + b"x")
    elif damage == "remove":
        graph.unlink()
    else:
        (graph.parent / "more.onnx").write_bytes(b"x")
    again = open_bundle(packed, cache=tmp_path / "cache")
    assert (again.root / "graphs" / "decoder.onnx").read_bytes() == good
    assert sorted(p.name for p in graph.parent.iterdir()) == ["decoder.onnx"]


def test_what_a_killed_unpacking_left_is_removed(packed: Path, tmp_path: Path) -> None:
    root = open_bundle(packed, cache=tmp_path / "cache").root
    root.rename(root.with_name(root.name + ".partial"))
    (root.with_name(root.name + ".partial") / "half").write_text("half")
    assert open_bundle(packed, cache=tmp_path / "cache").root == root
    assert not root.with_name(root.name + ".partial").exists()


def test_concurrent_opens_unpack_once(packed: Path, tmp_path: Path) -> None:
    opened: list[Bundle] = []
    threads = [
        threading.Thread(target=lambda: opened.append(open_bundle(packed, cache=tmp_path / "cache")))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(opened) == 4
    assert len({bundle.root for bundle in opened}) == 1


def _flip(folder: Path) -> None:
    path = folder / "graphs" / "decoder.onnx"
    data = bytearray(path.read_bytes())
    data[100] ^= 1
    path.write_bytes(bytes(data))


def _manifest(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    manifest = json.loads((folder / "manifest.json").read_text())
    change(manifest)
    (folder / "manifest.json").write_text(json.dumps(manifest))


def _deep(folder: Path) -> None:
    (folder / "manifest.json").write_text("[" * 100_000)


ATTACKS: list[tuple[Callable[[Path], object], str]] = [
    (_flip, r"graphs/decoder\.onnx was altered or damaged \(SHA-256 \w+, expected \w+\)"),
    (lambda f: (f / "graphs" / "decoder.onnx").write_bytes(b"short"), "has 5 bytes, expected 5,120"),
    (lambda f: (f / "graphs" / "decoder.onnx").unlink(), r"1 file\(s\) are missing: graphs/decoder\.onnx"),
    (lambda f: (f / "graphs" / "extra.onnx").write_bytes(b"x"), r"not in the manifest: graphs/extra\.onnx"),
    (lambda f: (f / "manifest.json").unlink(), r"not a bundle, it has no manifest\.json"),
    (lambda f: (f / "manifest.json").write_text("{"), "is not JSON"),
    (lambda f: (f / "manifest.json").write_bytes(b"\xff\xfe"), "is not JSON"),
    (lambda f: (f / "manifest.json").write_text("[]"), "expected an object"),
    (_deep, "is not JSON"),
    (lambda f: _manifest(f, lambda m: m.update(format_version=2)), "format version 2, this edgevlm reads 1"),
    (lambda f: _manifest(f, lambda m: m.update(format_version=True)), "format version True"),
    (lambda f: _manifest(f, lambda m: m.pop("files")), "no list of files"),
    (lambda f: _manifest(f, lambda m: m["files"].update(x=1)), "no digest and size for 'x'"),
    (
        lambda f: _manifest(f, lambda m: m["files"].update({"seal.json": {"sha256": "0" * 64, "bytes": 1}})),
        "may not list 'seal.json'",
    ),
    (
        lambda f: _manifest(f, lambda m: m["files"].update({"../x": {"sha256": "0" * 64, "bytes": 1}})),
        r"1 file\(s\) are missing: \.\./x",
    ),
    (lambda f: (f / "graphs" / "Decoder.onnx").write_bytes(b"x"), "are one file on some disks"),
    (lambda f: (f / "graphs" / ".hidden").write_bytes(b"x"), "unsafe file name 'graphs/.hidden'"),
    (lambda f: (f / "graphs" / "naïve.onnx").write_bytes(b"x"), "unsafe file name"),
    (lambda f: (f / "evidence").mkdir() or (f / "evidence" / "v.json").write_text(""), "was interrupted"),
]


@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.parametrize(("attack", "message"), ATTACKS)
def test_a_bundle_that_was_tampered_with_is_refused(
    folder: Path, tmp_path: Path, attack: Callable[[Path], object], message: str, zipped: bool
) -> None:
    attack(folder)
    path = stored(folder, tmp_path / "demo.edgevlm") if zipped else folder
    with pytest.raises(BundleError, match=message):
        open_bundle(path, cache=tmp_path / "cache")
    with pytest.raises(BundleError, match=message):
        verify(path)
    if zipped:
        with pytest.raises(BundleError, match=message):
            unpack(path, tmp_path / "unpacked")
        assert not (tmp_path / "unpacked").exists()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("model.json", "{}", "unknown keys"),
        ("model.json", "{", "is not JSON"),
        ("items.jsonl", "{", "not JSON"),
        ("items.jsonl", "{}\n", "lacks"),
    ],
)
def test_listed_files_are_still_not_believed(folder: Path, name: str, content: str, message: str) -> None:
    (folder / name).write_text(content)
    listing(folder)
    with pytest.raises(BundleError, match=message):
        open_bundle(folder)


@pytest.mark.parametrize("name", ["/etc/passwd", "../secret", "graphs/missing.onnx"])
def test_model_and_items_cannot_name_files_elsewhere(folder: Path, name: str) -> None:
    (folder / "model.json").write_text(json.dumps({**to_json(MODEL), "graphs": {"decoder": name}}))
    listing(folder)
    with pytest.raises(BundleError, match="files that are not listed"):
        open_bundle(folder)


def test_links_are_refused(folder: Path, tmp_path: Path) -> None:
    graph = folder / "graphs" / "decoder.onnx"
    graph.rename(tmp_path / "elsewhere.onnx")
    graph.symlink_to(tmp_path / "elsewhere.onnx")
    with pytest.raises(BundleError, match="links and special files"):
        open_bundle(folder)
    graph.unlink()
    os.mkfifo(graph)
    with pytest.raises(BundleError, match="links and special files"):
        open_bundle(folder)
    graph.unlink()
    (folder / "link").symlink_to(tmp_path)
    with pytest.raises(BundleError, match="links and special files"):
        open_bundle(folder)


def _entry(name: str, mode: int = stat.S_IFREG | 0o644) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name)
    info.external_attr = mode << 16
    return info


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("/etc/cron", "unsafe file name"),
        ("../outside", "unsafe file name"),
        ("graphs/../../outside", "unsafe file name"),
        ("graphs//x", "unsafe file name"),
        ("./x", "unsafe file name"),
        ("C:/x", "unsafe file name"),
        ("a\\b", "unsafe file name"),
        ("x\n", "unsafe file name"),
        ("folder/", "not a plain file"),
        ("MODEL.json", "one file on some disks"),
    ],
)
def test_unsafe_names_in_a_zip(packed: Path, tmp_path: Path, name: str, message: str) -> None:
    with zipfile.ZipFile(packed, "a") as archive:
        archive.writestr(_entry(name), b"x")
    with pytest.raises(BundleError, match=message):
        open_bundle(packed, cache=tmp_path / "cache")
    assert not (tmp_path / "outside").exists()


def test_a_link_in_a_zip(packed: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(packed, "a") as archive:
        archive.writestr(_entry("link", stat.S_IFLNK | 0o777), b"/etc/passwd")
    with pytest.raises(BundleError, match="not a plain file"):
        open_bundle(packed, cache=tmp_path / "cache")


def test_a_name_that_occurs_twice(packed: Path, tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="Duplicate name"), zipfile.ZipFile(packed, "a") as archive:
        archive.writestr("model.json", b"{}")
    with pytest.raises(BundleError, match="one file on some disks"):
        open_bundle(packed, cache=tmp_path / "cache")


def test_compressed_entries_and_bombs(folder: Path, packed: Path, tmp_path: Path) -> None:
    (folder / "bomb").write_bytes(bytes(50_000_000))
    with zipfile.ZipFile(packed, "a", zipfile.ZIP_DEFLATED) as archive:
        archive.write(folder / "bomb", "bomb")
    assert packed.stat().st_size < 200_000
    with pytest.raises(BundleError, match="'bomb' is compressed"):
        open_bundle(packed, cache=tmp_path / "cache")


def test_sizes_that_the_archive_cannot_hold(packed: Path, tmp_path: Path) -> None:
    """Overlapping entries: the directory of the zip claims the same bytes many times."""
    data = bytearray(packed.read_bytes())
    for signature, offset in ((b"PK\x01\x02", 20),):
        start = data.rindex(signature)
        data[start + offset : start + offset + 8] = (1 << 30).to_bytes(4, "little") * 2
    packed.write_bytes(bytes(data))
    with pytest.raises(BundleError, match=r"its files claim 1,\d+,\d+,\d+ bytes"):
        open_bundle(packed, cache=tmp_path / "cache")


def test_every_truncation_of_a_zip_is_refused(packed: Path, tmp_path: Path) -> None:
    whole = packed.read_bytes()
    cut = tmp_path / "cut.edgevlm"
    for length in [0, 1, 30, *range(100, len(whole), 397), len(whole) - 1]:
        cut.write_bytes(whole[:length])
        with pytest.raises(BundleError):
            open_bundle(cut, cache=tmp_path / "cache")


@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_no_changed_byte_passes_unnoticed(packed: Path, data: st.DataObject) -> None:
    """Either the bundle is refused with a sentence, or what it says is what it said before."""
    whole = bytearray(packed.read_bytes())
    where = data.draw(st.integers(0, len(whole) - 1))
    value = data.draw(st.integers(0, 255).filter(lambda one: one != whole[where]))
    expected = verify(packed)
    changed = packed.with_name("changed.edgevlm")
    whole[where] = value
    changed.write_bytes(bytes(whole))
    with contextlib.suppress(BundleError):
        assert verify(changed) == expected


@pytest.mark.parametrize("content", [b"", b"no zip", b"PK\x05\x06" + bytes(18)])
def test_what_is_no_bundle_at_all(tmp_path: Path, content: bytes) -> None:
    with pytest.raises(BundleError, match="no such bundle"):
        open_bundle(tmp_path / "nothing")
    (tmp_path / "file").write_bytes(content)
    with pytest.raises(BundleError, match=r"not a (whole )?bundle"):
        open_bundle(tmp_path / "file")
    (tmp_path / "empty").mkdir()
    with pytest.raises(BundleError, match="it has no manifest"):
        open_bundle(tmp_path / "empty")


def test_unpacking_never_overwrites(packed: Path, tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    with pytest.raises(BundleError, match="already exists"):
        unpack(packed, tmp_path / "there")


@pytest.fixture
def with_evidence(folder: Path) -> Path:
    (folder / "evidence").mkdir()
    (folder / "evidence" / "verdict.json").write_text('{"outcome": "passed"}')
    sealed(folder)
    return folder


@pytest.mark.parametrize("zipped", [False, True])
def test_a_sealed_bundle(with_evidence: Path, tmp_path: Path, zipped: bool) -> None:
    path = stored(with_evidence, tmp_path / "sealed.edgevlm") if zipped else with_evidence
    opened = open_bundle(path, cache=tmp_path / "cache")
    assert opened.seal is not None
    assert opened.seal["deployable"] is True


SEAL_ATTACKS: list[tuple[Callable[[Path], object], str]] = [
    (lambda f: (f / "evidence" / "verdict.json").write_text('{"outcome": "Passed"}'), "altered or damaged"),
    (lambda f: (f / "evidence" / "verdict.json").unlink(), "are missing: evidence/verdict.json"),
    (lambda f: (f / "evidence" / "more.json").write_text("{}"), "not in the manifest: evidence/more.json"),
    (lambda f: (f / "seal.json").unlink(), "not in the manifest: evidence/verdict.json"),
    (lambda f: sealed(f, manifest_sha256="0" * 64), "the seal belongs to another manifest"),
    (lambda f: _manifest(f, lambda m: m.update(name="other")), "the seal belongs to another manifest"),
    (lambda f: sealed(f, format_version=9), "seal.json has format version 9"),
    (lambda f: sealed(f, deployable="yes"), "seal.json is malformed"),
    (lambda f: sealed(f, extra=1), "seal.json is malformed"),
    (lambda f: sealed(f, evidence=["verdict.json"]), "without digests"),
    (lambda f: sealed(f, evidence={"../model.json": "0" * 64}), "are missing: evidence/../model.json"),
]


@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.parametrize(("attack", "message"), SEAL_ATTACKS)
def test_a_seal_that_does_not_fit_is_refused(
    with_evidence: Path, tmp_path: Path, attack: Callable[[Path], object], message: str, zipped: bool
) -> None:
    attack(with_evidence)
    path = stored(with_evidence, tmp_path / "sealed.edgevlm") if zipped else with_evidence
    with pytest.raises(BundleError, match=message):
        open_bundle(path, cache=tmp_path / "cache")


def test_sealing_again_makes_another_copy_in_the_cache(with_evidence: Path, tmp_path: Path) -> None:
    first = open_bundle(stored(with_evidence, tmp_path / "a.edgevlm"), cache=tmp_path / "cache")
    sealed(with_evidence, deployable=False, outcome="failed")
    second = open_bundle(stored(with_evidence, tmp_path / "b.edgevlm"), cache=tmp_path / "cache")
    assert first.root != second.root
    assert first.digest == second.digest
    assert second.seal is not None
    assert second.seal["deployable"] is False


@pytest.mark.parametrize(
    "profiles", [[], {"decoder": 1}, {"decoder": [{"x": [[1], [1]]}]}, {"decoder": [{"x": 1}]}]
)
def test_profiles_of_another_form_are_refused(profiles: Any) -> None:
    data = {**to_json(MODEL), "profiles": profiles}
    with pytest.raises(BundleError, match="expected component → list of profiles"):
        from_json(ModelSpec, data, "model.json")
