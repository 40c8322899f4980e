"""On what and under which circumstances was measured."""

from __future__ import annotations

import os
import resource
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Clock:
    """Wall time, busy time of all cores (Linux's /proc/stat), and what this process and its ended
    children took of it; all in seconds."""

    wall: float
    busy: float
    own: float


def now() -> Clock:
    return Clock(time.monotonic(), _busy_seconds(), _own_seconds())


def other_cores(before: Clock, after: Clock) -> float | None:
    """How many cores other processes kept busy on average; None where the kernel does not tell."""
    if not after.busy:
        return None
    others = (after.busy - before.busy) - (after.own - before.own)
    return max(0.0, others / (after.wall - before.wall))


def machine() -> dict[str, Any]:
    from edgevlm_runner import measure

    cores = os.cpu_count() or 1
    return {**measure.machine(), "cores": cores, "cores_allowed": sorted(os.sched_getaffinity(0))}


def _busy_seconds() -> float:
    """user, nice, system, irq, softirq and steal of the first line; idle and iowait are the 4th and 5th."""
    path = Path("/proc/stat")
    if not path.is_file():
        return 0.0
    fields = [int(one) for one in path.read_text().splitlines()[0].split()[1:9]]
    return (sum(fields) - fields[3] - fields[4]) / os.sysconf("SC_CLK_TCK")


def _own_seconds() -> float:
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)
