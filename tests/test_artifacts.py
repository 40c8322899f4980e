from __future__ import annotations

import dataclasses
import multiprocessing
import os
import resource
import signal
import subprocess
import sys
import time
from enum import Enum
from pathlib import Path

import pytest
from edgevlm_runner.storage import require_free
from hypothesis import given
from hypothesis import strategies as st

from edgevlm_deploy.artifacts import (
    atomic_path,
    canonical_json,
    digest,
    file_digest,
    stage,
    tree_digest,
    write_bytes_atomic,
    write_text_atomic,
)
from edgevlm_deploy.errors import StorageError
from edgevlm_deploy.recipe import Calibration, Component, Mixture

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda children: st.lists(children, max_size=4) | st.dictionaries(st.text(), children, max_size=4),
    max_leaves=12,
)


class Colour(Enum):
    RED = "red"


@dataclasses.dataclass(frozen=True)
class Point:
    x: int
    where: tuple[int, ...]


@given(st.dictionaries(st.text(), JSON, max_size=6))
def test_digest_does_not_depend_on_the_order_of_keys(value: dict[str, object]) -> None:
    assert digest(value) == digest(dict(reversed(list(value.items()))))


def test_digest_sees_through_dataclasses_enums_and_pydantic() -> None:
    assert digest(Point(1, (2, 3))) == digest({"where": [2, 3], "x": 1})
    assert digest({Component.DECODER: Colour.RED}) == digest({"decoder": "red"})
    assert digest(Calibration(mixture=Mixture(clean=0.5, dark=0.5))) != digest(Calibration())


def test_digest_is_pinned() -> None:
    """A change here would make every existing cache and bundle look stale."""
    assert canonical_json({"b": [1, 2.5, None], "a": "é"}) == '{"a":"é","b":[1,2.5,null]}'
    assert digest({"a": 1}) == "015abd7f5cc57a2dd94b7590f04ad8084273905ee33ec5cebeae62276a97f862"


@pytest.mark.parametrize("value", [Path("x"), {1: 2}, {"a": {3, 4}}, b"x"])
def test_digest_refuses_what_has_no_canonical_form(value: object) -> None:
    with pytest.raises(TypeError):
        digest(value)


def test_digest_refuses_nan() -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        digest(float("nan"))


def test_tree_digest_follows_content_and_names(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name / "sub").mkdir(parents=True)
        (tmp_path / name / "sub" / "file").write_text("content")
    assert tree_digest(tmp_path / "one") == tree_digest(tmp_path / "two")
    (tmp_path / "two" / "sub" / "file").rename(tmp_path / "two" / "file")
    assert tree_digest(tmp_path / "one") != tree_digest(tmp_path / "two")
    (tmp_path / "one" / "link").symlink_to(tmp_path / "two")
    with pytest.raises(StorageError, match="link to a folder"):
        tree_digest(tmp_path / "one")


def test_a_stage_runs_once_per_input(tmp_path: Path) -> None:
    made: list[int] = []

    def produce(folder: Path, value: int) -> None:
        made.append(value)
        (folder / "value").write_text(str(value))

    one = stage(tmp_path, "quantize", {"v": 1}, lambda f: produce(f, 1))
    again = stage(tmp_path, "quantize", {"v": 1}, lambda f: produce(f, 1))
    two = stage(tmp_path, "quantize", {"v": 2}, lambda f: produce(f, 2))
    assert one == again != two
    assert made == [1, 2]
    assert (one / "value").read_text() == "1"
    assert one.name == f"quantize-{digest({'v': 1})[:16]}"


def test_a_failed_stage_leaves_no_result_and_starts_afresh(tmp_path: Path) -> None:
    def fail(folder: Path) -> None:
        (folder / "half").write_text("")
        raise RuntimeError("boom")

    seen: list[list[str]] = []

    def work(folder: Path) -> None:
        seen.append([p.name for p in folder.iterdir()])

    with pytest.raises(RuntimeError, match="boom"):
        stage(tmp_path, "s", {}, fail)
    assert not [p for p in tmp_path.iterdir() if p.name.startswith("s-") and p.suffix != ".partial"]
    stage(tmp_path, "s", {}, work)
    assert seen == [[]]


def test_a_resumable_stage_gets_its_half_back(tmp_path: Path) -> None:
    def answer(folder: Path, rows: int) -> None:
        with (folder / "answers").open("a") as out:
            out.write("row\n" * rows)
        if rows == 1:
            raise RuntimeError("killed")

    with pytest.raises(RuntimeError, match="killed"):
        stage(tmp_path, "s", {}, lambda f: answer(f, 1), resumable=True)
    done = stage(tmp_path, "s", {}, lambda f: answer(f, 2), resumable=True)
    assert (done / "answers").read_text() == "row\n" * 3


def _concurrent(cache: Path) -> None:
    def produce(folder: Path) -> None:
        with (cache / "calls").open("a") as out:
            out.write("x")
        (folder / "file").write_text("half")
        time.sleep(0.2)
        (folder / "file").write_text("whole")

    assert (stage(cache, "s", {}, produce) / "file").read_text() == "whole"


def test_concurrent_runs_of_one_stage_do_the_work_once(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=_concurrent, args=(tmp_path,)) for _ in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0, 0, 0]
    assert (tmp_path / "calls").read_text() == "x"


KILLED = """
import sys, time
from pathlib import Path
from edgevlm_deploy.artifacts import stage, atomic_path

def produce(folder):
    (folder / "half").write_text("half")
    print("ready", flush=True)
    time.sleep(60)

if sys.argv[1] == "stage":
    stage(Path(sys.argv[2]), "s", {}, produce)
else:
    with atomic_path(Path(sys.argv[2]) / "file") as temporary:
        produce_in = temporary.write_text("half")
        print("ready", flush=True)
        time.sleep(60)
"""


def _kill(mode: str, folder: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", KILLED, mode, str(folder)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()


def test_a_killed_stage_is_done_again(tmp_path: Path) -> None:
    _kill("stage", tmp_path)
    assert not (tmp_path / f"s-{digest({})[:16]}").exists()
    done = stage(tmp_path, "s", {}, lambda folder: (folder / "whole").touch())
    assert [p.name for p in done.iterdir()] == ["whole"]


def test_a_killed_write_leaves_the_old_content(tmp_path: Path) -> None:
    write_text_atomic(tmp_path / "file", "old")
    _kill("write", tmp_path)
    assert (tmp_path / "file").read_text() == "old"


def test_writes_replace_atomically_and_leave_nothing_beside(tmp_path: Path) -> None:
    write_text_atomic(tmp_path / "file", "é\n")
    write_bytes_atomic(tmp_path / "file", b"new")
    assert [p.name for p in tmp_path.iterdir()] == ["file"]
    assert (tmp_path / "file").read_bytes() == b"new"
    assert (
        file_digest(tmp_path / "file") == "11507a0e2f5e69d5dfa40a62a1bd7b6ee57e6bcd85c67c9b8431b36fff21c437"
    )

    def fail() -> None:
        with atomic_path(tmp_path / "file") as temporary:
            temporary.write_text("half")
            raise RuntimeError("boom")

    with pytest.raises(RuntimeError):
        fail()
    assert [p.name for p in tmp_path.iterdir()] == ["file"]
    assert (tmp_path / "file").read_bytes() == b"new"


@pytest.fixture
def small_files() -> object:
    """A process limit stands in for a full disk: writes beyond 64 KiB fail."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    signal.signal(signal.SIGXFSZ, before)


@pytest.mark.usefixtures("small_files")
def test_a_write_that_does_not_fit_is_a_storage_error(tmp_path: Path) -> None:
    target = tmp_path / "file"
    write_bytes_atomic(target, b"old")
    with pytest.raises(StorageError, match=r"file: File too large \([\d,]+ bytes are free\)"):
        write_bytes_atomic(target, b"x" * (1 << 17))
    assert target.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["file"]
    with pytest.raises(StorageError, match="ulimit"):
        stage(tmp_path, "s", {}, lambda folder: (folder / "big").write_bytes(b"x" * (1 << 17)) and None)


def test_a_library_that_wraps_a_full_disk_is_understood(tmp_path: Path) -> None:
    def produce(folder: Path) -> None:
        raise RuntimeError("Error while serializing: No space left on device (os error 28)")

    with pytest.raises(StorageError, match="Free some space"):
        stage(tmp_path, "s", {}, produce)


def test_a_folder_that_is_not_there_is_a_storage_error(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"there is no folder .*nowhere\. Make it"):
        write_text_atomic(tmp_path / "nowhere" / "file", "x")


def test_a_folder_that_cannot_be_written_is_a_storage_error(tmp_path: Path) -> None:
    """Permissions do not stop root, a read-only mount does; so one of the two is tried."""
    folder = tmp_path / "closed"
    folder.mkdir()
    if os.geteuid() != 0:
        folder.chmod(0o500)
        undo, match = None, "Change the permissions"
    else:
        mount = ["mount", "-t", "tmpfs", "-o", "ro", "tmpfs", str(folder)]
        if subprocess.run(mount, capture_output=True, check=False).returncode:
            pytest.skip("this root may not mount a file system")
        undo, match = ["umount", str(folder)], "mounted read-only"
    try:
        with pytest.raises(StorageError, match=match):
            write_text_atomic(folder / "file", "x")
        with pytest.raises(StorageError, match=match):
            stage(folder / "cache", "s", {}, lambda _: None)
    finally:
        if undo:
            subprocess.run(undo, check=True)


def test_too_little_room_names_both_numbers(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"9,000,000,000,000,000 bytes are needed, [\d,]+ are free"):
        require_free(tmp_path / "not" / "there" / "yet", 9_000_000_000_000_000)
