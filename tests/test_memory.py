"""How much memory is left, as the kernel's files say it."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgevlm_deploy import paging
from edgevlm_deploy.memory import available_bytes

GIGA = 1 << 30


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


@pytest.fixture
def proc(tmp_path: Path) -> Path:
    _write(tmp_path / "proc/meminfo", f"MemTotal: 99 kB\nMemAvailable:  {8 * GIGA // 1024} kB\n")
    return tmp_path / "proc"


def test_without_limits_it_is_the_machines(proc: Path, tmp_path: Path) -> None:
    assert available_bytes(proc, tmp_path / "none") == 8 * GIGA


def test_the_tightest_group_counts_and_pages_of_files_do_not(proc: Path, tmp_path: Path) -> None:
    _write(proc / "self/cgroup", "0::/job/inner\n")
    groups = tmp_path / "groups"
    _write(groups / "job/memory.max", str(4 * GIGA))
    _write(groups / "job/memory.current", str(3 * GIGA))
    _write(groups / "job/memory.stat", f"anon 5\nfile {2 * GIGA}\n")
    _write(groups / "job/inner/memory.max", "max\n")
    _write(groups / "job/inner/memory.current", "1\n")
    assert available_bytes(proc, groups) == 3 * GIGA


def test_version_one_of_control_groups(proc: Path, tmp_path: Path) -> None:
    _write(proc / "self/cgroup", "9:cpu:/job\n4:cpuset,memory:/job\n0::/\n")
    folder = tmp_path / "groups/memory/job"
    _write(folder / "memory.limit_in_bytes", str(2 * GIGA))
    _write(folder / "memory.usage_in_bytes", str(GIGA))
    _write(folder / "memory.stat", f"cache 1\ntotal_cache {GIGA // 2}\n")
    assert available_bytes(proc, tmp_path / "groups") == GIGA + GIGA // 2


def test_nothing_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert available_bytes(tmp_path, tmp_path) is None
    monkeypatch.setattr(paging, "available_bytes", lambda: None)
    assert not paging.is_needed(10**12)


def test_a_model_is_paged_when_its_copies_do_not_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(paging, "available_bytes", lambda: 10 * GIGA)
    assert not paging.is_needed(GIGA // 2)
    assert paging.is_needed(2 * GIGA)
