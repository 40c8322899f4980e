"""Where the cells of a sweep run: processes on this machine, or the nodes of a Ray cluster."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

from edgevlm_deploy.errors import DeviceError, MissingExtraError
from edgevlm_deploy.sweep import cell as cells
from edgevlm_deploy.sweep.grid import Cell
from edgevlm_deploy.sweep.rows import EXTRA, Row

_KNOCK_S = 10.0


class Engine(str, Enum):
    LOCAL = "local"
    RAY = "ray"


@dataclass(frozen=True)
class Finished:
    """What became of one cell: rows, or why there are none."""

    cell: Cell
    rows: tuple[Row, ...]
    failure: str = ""


def locally(todo: Sequence[Cell], out: Path, workers: int) -> Iterator[Finished]:
    """`workers` cells at a time, as they end."""
    pool = ThreadPoolExecutor(workers)
    try:
        running = [pool.submit(in_process, one, str(out), workers == 1) for one in todo]
        for done in as_completed(running):
            yield done.result()
    finally:
        pool.shutdown(cancel_futures=True)


def on_ray(todo: Sequence[Cell], out: Path, address: str | None, cpus: float) -> Iterator[Finished]:
    """As many cells at a time as the cluster has room for, `cpus` each.

    Every node needs edgevlm with the extra `compile`, and `out` and the models at the same paths: on a
    cluster of several machines, on a file system that they share.
    Raises MissingExtraError without Ray, DeviceError when there is no cluster at `address` (default:
    $RAY_ADDRESS, or the one on this machine).
    """
    try:
        import ray
    except ImportError as error:
        raise MissingExtraError(f"--engine ray needs Ray: {EXTRA}") from error
    address = address or os.environ.get("RAY_ADDRESS") or "auto"
    try:
        _knock(address)
        ray.init(address=address, log_to_driver=False, logging_level="ERROR")
    except (OSError, RuntimeError, ValueError) as error:
        raise DeviceError(
            f"no Ray cluster at {address} ({error}). Start one with `ray start --head`, or name it with "
            "--address or $RAY_ADDRESS."
        ) from error
    try:
        task = ray.remote(num_cpus=cpus)(in_process)
        running = {task.remote(one, str(out), False): one for one in todo}
        while running:
            (done,), _ = ray.wait(list(running), num_returns=1)
            yield _fetched(ray, done, running.pop(done))
    finally:
        ray.shutdown()


def _knock(address: str) -> None:
    """Raises OSError when nobody listens there: Ray itself would try for minutes."""
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if colon and port.isdigit():
        socket.create_connection((host.strip("[]"), int(port)), _KNOCK_S).close()


def _fetched(ray: Any, done: Any, cell: Cell) -> Finished:
    try:
        finished: Finished = ray.get(done)
    except ray.exceptions.RayError as error:
        return Finished(cell, (), f"its node or worker was lost ({str(error).splitlines()[0]})")
    return finished


def in_process(cell: Cell, out: str, alone: bool) -> Finished:
    """Run the cell in a process of its own; whatever happens to that becomes a sentence.

    What it printed is in `out`/sweeps/NAME.log when it failed.
    """
    work = cells.Work(cell=cell, alone=alone)
    done = subprocess.run(
        [sys.executable, "-m", cells.__name__, out],
        input=work.model_dump_json(),
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
    )
    if done.returncode == 0:
        return Finished(cell, cells.read(Path(done.stdout.splitlines()[-1]), cell))
    log = Path(out) / "sweeps" / f"{cell.sweep}-{cell.model.name}-{cell.recipe.name}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    log.write_text(done.stdout + done.stderr, encoding="utf-8")
    return Finished(cell, (), _why(done.returncode, done.stderr, log))


def _why(code: int, said: str, log: Path) -> str:
    _, known, message = said.rpartition("error: ")
    if code > 1 and known:
        return message.strip()
    if code < 0:
        name = signal.Signals(-code).name
        hint = ", perhaps for its memory" if name == "SIGKILL" else ""
        return f"its process was ended by {name}{hint}; see {log}"
    return f"its process ended unexpectedly (exit code {code}); see {log}"
