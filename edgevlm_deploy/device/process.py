"""A run of `edgevlm_runner` from the outside: its progress, its silence, its errors."""

from __future__ import annotations

import json
import queue
import subprocess
import threading
from collections import deque
from collections.abc import Sequence
from typing import IO

from edgevlm_deploy.device.connection import Device
from edgevlm_deploy.errors import (
    BundleError,
    DeviceError,
    EdgeVlmError,
    ExecutionError,
    ImageError,
    PromptError,
    RuntimeUnavailable,
    StorageError,
)
from edgevlm_deploy.progress import Watcher

LAST_WORDS = 20
"""Lines of a failed runner that the error repeats."""

_RUNNER_ERRORS = {
    one.exit_code: one
    for one in (BundleError, ImageError, PromptError, RuntimeUnavailable, ExecutionError, StorageError)
}


def follow(command: Sequence[str], watch: Watcher, to: Device | None = None) -> None:
    """Run `command`, which starts `edgevlm_runner` here or on the device `to`, and pass its progress on.

    Raises the runner's own error, found by exit code; for any other code EdgeVlmError here and DeviceError
    on a device, where it may be the connection's; DeviceError when a device is silent for too long.
    """
    silence_s = to.silence_s if to else None
    where = f"{to.name}: " if to else ""
    lines: queue.Queue[str | None] = queue.Queue()
    said: deque[str] = deque(maxlen=LAST_WORDS)
    answered = 0
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    )
    threading.Thread(target=_pump, args=(process.stdout, lines), daemon=True).start()
    try:
        while (line := lines.get(timeout=silence_s)) is not None:
            now = _answered(line)
            if now is None:
                said.append(line)
            else:
                watch.advance(now - answered)
                answered = now
        code = process.wait()
    except queue.Empty:
        raise DeviceError(
            f"{where}no sign of life for {silence_s:g} seconds, after {answered} answers. "
            "The same command goes on from there; --device-timeout waits longer."
        ) from None
    finally:
        process.kill()
        process.wait()
    if code:
        words = "".join(said).strip().removeprefix("error: ")
        kind = _RUNNER_ERRORS.get(code, DeviceError if to else EdgeVlmError)
        raise kind(where + (words or f"the runner ended with exit code {code} and no message"))


def _pump(stream: IO[str], lines: queue.Queue[str | None]) -> None:
    """Every line, then None; reading in a thread is what lets the other end wait with a limit."""
    with stream:
        for line in stream:
            lines.put(line)
    lines.put(None)


def _answered(line: str) -> int | None:
    """The number in a progress line, None for any other line."""
    try:
        return int(json.loads(line)["answered"])
    except (ValueError, TypeError, KeyError):
        return None
