"""The GPU of the stand-ins: memory with bounds, and a stream that works only when it is waited for.

Deferred work shows what a real GPU would: memory that is refilled too early, a missing synchronisation.
"""

from __future__ import annotations

import ctypes
import json
import os
from collections.abc import Callable
from pathlib import Path

LISTS = Path(__file__).parents[1] / "device" / "names"
TENSORRT = os.environ["STANDIN_TENSORRT"]
CUDA = {"8.6": "11.8", "10.3": "12.6", "10.13": "13.0", "10.16": "13.2", "11.1": "13.2"}[TENSORRT]
FAILURES = frozenset(os.environ.get("STANDIN_FAILS", "").split())

OK, INVALID_VALUE, OUT_OF_MEMORY, CAPTURE_INVALIDATED = 0, 1, 2, 901
TOTAL = 8 << 30
ALIGNMENT = 256

Work = Callable[[], None]


def listed(kind: str, release: str) -> tuple[str, dict[str, list[str]]]:
    """(module name, public names and their members) of a release's real bindings."""
    content = json.loads((LISTS / f"{kind}-{release}.json").read_text())
    return content["module"], content["names"]


class Device:
    def __init__(self) -> None:
        self.blocks: dict[int, ctypes.Array[ctypes.c_char]] = {}
        self.queue: list[Work] = []
        self.captured: list[Work] | None = None
        self.capture_broken = False
        self.kernels = 0
        """Engines enqueued one by one."""
        self.launches = 0
        """Graphs launched."""
        self.strided = 0

    @property
    def free(self) -> int:
        return TOTAL - sum(len(block) for block in self.blocks.values())

    def allocate(self, size: int) -> int:
        """Address of memory that begins at a multiple of `ALIGNMENT`, as CUDA's does."""
        block = ctypes.create_string_buffer(
            b"\xff" * (size + ALIGNMENT), size + ALIGNMENT
        )  # NaN, as old memory may be
        address = -(-ctypes.addressof(block) // ALIGNMENT) * ALIGNMENT
        self.blocks[address] = block
        return address

    def holds(self, address: int, size: int) -> bool:
        """Whether the bytes lie in one allocation."""
        sizes = {start: len(block) - ALIGNMENT for start, block in self.blocks.items()}
        return any(start <= address and address + size <= start + room for start, room in sizes.items())

    def put(self, work: Work) -> None:
        (self.queue if self.captured is None else self.captured).append(work)

    def finish(self) -> None:
        while self.queue:
            self.queue.pop(0)()


DEVICE = Device()
