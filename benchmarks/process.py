"""Steps in processes of their own, and what is said meanwhile."""

from __future__ import annotations

import shlex
import subprocess
import sys
from collections.abc import Collection

from benchmarks.rounds import REPOSITORY


def run(*arguments: str, accepted: Collection[int] = (0,)) -> None:
    """This Python with `arguments`. What torch's exporter prints is of no interest unless it fails."""
    done = subprocess.run([sys.executable, *arguments], cwd=REPOSITORY, capture_output=True, text=True)
    if done.returncode not in accepted:
        sys.exit(f"{shlex.join(arguments)} failed:\n{done.stderr[-4000:]}")


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
