"""How much memory this process may still take: the machine's, or less where a control group limits it."""

from __future__ import annotations

from pathlib import Path

PROC = Path("/proc")
CONTROL_GROUPS = Path("/sys/fs/cgroup")


def available_bytes(proc: Path = PROC, control_groups: Path = CONTROL_GROUPS) -> int | None:
    """The least of what the kernel calls available and what each limit leaves; None where nothing says it."""
    found = [*_machine(proc), *_limits(proc, control_groups)]
    return min(found, default=None)


def _machine(proc: Path) -> list[int]:
    for line in _text(proc / "meminfo").splitlines():
        if line.startswith("MemAvailable:"):
            return [int(line.split()[1]) * 1024]
    return []


def _limits(proc: Path, control_groups: Path) -> list[int]:
    """What the process's control group and those above it leave. Pages of files do not count: the kernel
    takes them back when it needs them."""
    left = []
    for line in _text(proc / "self/cgroup").splitlines():
        _, controllers, own = line.split(":", 2)
        if controllers == "":  # version 2
            root, limit, used, cached = control_groups, "memory.max", "memory.current", "file"
        elif "memory" in controllers.split(","):
            root, cached = control_groups / "memory", "total_cache"
            limit, used = "memory.limit_in_bytes", "memory.usage_in_bytes"
        else:
            continue
        group = root / own.strip("/")
        for folder in [group, *group.parents]:
            left += _left(folder, limit, used, cached)
            if folder == root:
                break
    return left


def _left(folder: Path, limit: str, used: str, cached: str) -> list[int]:
    most, now = _text(folder / limit).strip(), _text(folder / used).strip()
    if not (most.isdigit() and now.isdigit()):  # "max", or no such file
        return []
    files = [
        line.split()[1] for line in _text(folder / "memory.stat").splitlines() if line.split()[0] == cached
    ]
    return [int(most) - int(now) + int(files[0] if files else 0)]


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
