"""Contenders side by side: each loaded in its own process, asked in turn, A B C A B C …

The machine drifts (turbo, neighbours on the same host), so what is compared has to be measured minute by
minute together.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from benchmarks.workload import Round

REPOSITORY = Path(__file__).resolve().parent.parent
SETTLE_SECONDS = 0.05
"""Between two turns: OpenMP's threads spin a little while before they sleep."""


@dataclass(frozen=True)
class Engine:
    """One line of the table."""

    name: str
    """Module in `benchmarks.contenders`."""
    variant: str
    title: str
    weights: str
    python: str
    """Interpreter."""

    @property
    def key(self) -> str:
        return f"{self.name}-{self.variant}"


@dataclass(frozen=True)
class Result:
    """All turns of one engine at one number of threads, or why there are none."""

    engine: Engine
    threads: int
    rounds: tuple[Round, ...] = ()
    weight_bytes: int = 0
    load_seconds: float = 0.0
    peak_rss_bytes: int = 0
    versions: dict[str, str] = field(default_factory=dict)
    skipped: str = ""


@dataclass(frozen=True)
class Heat:
    """What was measured together."""

    threads: int
    results: tuple[Result, ...]
    gb_per_second: tuple[float, ...]
    """Sequential reads of memory, once a round."""
    repetitions: int


class Failed(Exception):
    """A contender's process ended; the message is the last line that it wrote."""


class _Process:
    def __init__(self, command: Sequence[str], threads: int, errors: IO[bytes]) -> None:
        self._errors = errors
        self._child = subprocess.Popen(
            command,
            cwd=REPOSITORY,
            env={**os.environ, "OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
        )

    def answer(self) -> dict[str, Any]:
        assert self._child.stdout is not None
        line = self._child.stdout.readline()
        if not line:
            self._child.wait()
            self._errors.seek(0)
            written = self._errors.read().decode(errors="replace").strip().splitlines()
            raise Failed(written[-1] if written else f"exit status {self._child.returncode}")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def turn(self) -> dict[str, Any]:
        assert self._child.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # then there is no answer either
            self._child.stdin.write("\n")
            self._child.stdin.flush()
        return self.answer()

    def close(self) -> None:
        assert self._child.stdin is not None and self._child.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            self._child.stdin.close()
        self._child.wait()
        self._child.stdout.close()


def compete(
    engines: Sequence[Engine],
    directory: Path,
    threads: int,
    repetitions: int,
    say: Callable[[str], None],
) -> Heat:
    """Load all engines, give each a turn to warm up, then `repetitions` turns one after the other."""
    with contextlib.ExitStack() as stack:

        def start(python: str, *arguments: str) -> _Process:
            errors = stack.enter_context(tempfile.TemporaryFile())
            try:
                process = _Process([python, "-m", *arguments, str(threads)], threads, errors)
            except OSError as error:
                raise Failed(f"{python}: {error.strerror}") from error
            stack.callback(process.close)
            return process

        processes: dict[Engine, _Process] = {}
        results: dict[Engine, Result] = {}
        for engine in engines:
            say(f"{threads} thread(s): loading {engine.title}, {engine.weights}")
            module = f"benchmarks.contenders.{engine.name}"
            try:
                process = start(engine.python, module, str(directory), engine.variant)
                hello = process.answer()
                process.turn()
            except Failed as failure:
                results[engine] = Result(engine, threads, skipped=str(failure))
                continue
            processes[engine] = process
            results[engine] = Result(engine, threads, **hello)
        reader = start(sys.executable, "benchmarks.bandwidth")
        reader.answer()
        turns: dict[Engine, list[dict[str, Any]]] = {engine: [] for engine in processes}
        speeds: list[float] = []
        for number in range(repetitions):
            say(f"{threads} thread(s): round {number + 1} of {repetitions}")
            for engine, process in processes.items():
                time.sleep(SETTLE_SECONDS)
                turns[engine].append(process.turn())
            time.sleep(SETTLE_SECONDS)
            speeds.append(float(reader.turn()["gb_per_second"]))
    made = tuple(_with_turns(results[engine], turns.get(engine, [])) for engine in engines)
    return Heat(threads, made, tuple(speeds), repetitions)


def _with_turns(result: Result, turns: Sequence[dict[str, Any]]) -> Result:
    if not turns:
        return result
    rounds = tuple(
        Round(one["vision_ms"], one["prefill_ms"], tuple(one["decode_ms"]), one["cpu_share"]) for one in turns
    )
    return Result(
        result.engine,
        result.threads,
        rounds,
        result.weight_bytes,
        result.load_seconds,
        max(int(one["peak_rss_bytes"]) for one in turns),
        result.versions,
    )
