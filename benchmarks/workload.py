"""What every contender does: one picture tile, a prompt, an answer. Standard library and NumPy only.

A contender is a process of its own: `python -m benchmarks.contenders.NAME DIRECTORY VARIANT THREADS` loads
its model, then answers each line on standard input with one line of JSON. So no two of them share a thread
pool or a heap, and the caller decides whose turn it is.
"""

from __future__ import annotations

import dataclasses
import json
import os
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

IMAGE_TOKENS = 64
"""One 512-pixel tile of 1,024 patches after pixel shuffle by 4."""
TEXT_TOKENS = 30
PROMPT_TOKENS = IMAGE_TOKENS + TEXT_TOKENS
ANSWER_TOKENS = 32
MAX_CONTEXT = 256
OUTPUTS = "outputs"
"""Folder of what the engines computed: NAME-VARIANT.logits.npy and .features.npy."""


@dataclasses.dataclass(frozen=True)
class Round:
    """One contender's turn. Milliseconds; None is what it does not run."""

    vision_ms: float | None
    """Encoding one tile."""
    prefill_ms: float
    """Embedding and decoder over the whole prompt, up to the first token."""
    decode_ms: tuple[float, ...]
    """Each token after the first."""
    cpu_share: float
    """CPU time over wall time and threads; well below 1 on one thread: others computed meanwhile."""

    @property
    def tokens_per_second(self) -> float:
        return 1e3 * len(self.decode_ms) / sum(self.decode_ms)

    @property
    def time_to_first_token_ms(self) -> float | None:
        return None if self.vision_ms is None else self.vision_ms + self.prefill_ms


class Contender(Protocol):
    """A loaded model. Token ids are Python integers, logits float32 [V] of the last token."""

    def look(self) -> NDArray[np.float32] | None:
        """Encode the tile and keep its features [IMAGE_TOKENS, D] for the next `read`; None without eyes."""

    def read(self, ids: list[int]) -> NDArray[np.float32]:
        """Forget everything, then prefill. After `look`, the tile takes the place of the first tokens."""

    def write(self, token: int) -> NDArray[np.float32]:
        """Append one token."""

    def weight_bytes(self) -> int:
        """Weights that one decoded token reads, as they are stored: decoder layers, last norm and head."""

    def versions(self) -> dict[str, str]:
        """Software that computes."""


def text_prompt(vocab_size: int) -> list[int]:
    """`PROMPT_TOKENS` token ids without a picture, the same for every contender."""
    return [int(token) for token in np.random.default_rng(0).integers(3, vocab_size - 200, PROMPT_TOKENS)]


def picture(side: int) -> NDArray[np.uint8]:
    """Pixels [side, side, 3] of one tile."""
    return np.random.default_rng(1).integers(0, 256, (side, side, 3), np.uint8)


def tile(side: int) -> NDArray[np.float32]:
    """The picture as the vision encoder takes it: float32 [1, 3, side, side] in −1 … 1."""
    return picture(side).transpose(2, 0, 1)[None].astype(np.float32) / np.float32(127.5) - np.float32(1)


def play(contender: Contender, ids: list[int], threads: int) -> Round:
    """One turn. The loop around every engine is this one: nobody is judged by its own `generate`."""
    cpu, start = time.process_time(), time.perf_counter()
    features = contender.look()
    seen = time.perf_counter()
    token = int(np.argmax(contender.read(ids)))
    times = [time.perf_counter()]
    for _ in range(ANSWER_TOKENS):
        token = int(np.argmax(contender.write(token)))
        times.append(time.perf_counter())
    return Round(
        vision_ms=None if features is None else 1e3 * (seen - start),
        prefill_ms=1e3 * (times[0] - seen),
        decode_ms=tuple(1e3 * float(step) for step in np.diff(times)),
        cpu_share=(time.process_time() - cpu) / (times[-1] - start) / threads,
    )


def serve(name: str, load: Callable[[Path, str, int], Contender]) -> None:
    """Main loop of a contender's process.

    The first line tells what was loaded. Before it the logits of the text prompt and the tile's features
    are written to `DIRECTORY/outputs/`, which show whether all engines run the same model.
    """
    directory, variant, threads = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print goes to standard error
    began = time.perf_counter()
    contender = load(directory, variant, threads)
    loaded = time.perf_counter() - began
    ids = text_prompt(json.loads((directory / "shape.json").read_text())["vocab_size"])
    np.save(directory / OUTPUTS / f"{name}-{variant}.logits.npy", contender.read(ids))
    features = contender.look()
    if features is not None:
        np.save(directory / OUTPUTS / f"{name}-{variant}.features.npy", features)
    hello = {
        "versions": contender.versions(),
        "load_seconds": loaded,
        "weight_bytes": contender.weight_bytes(),
    }
    _reply(answers, hello)
    for _ in sys.stdin:
        played = play(contender, ids, threads)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        _reply(answers, {**dataclasses.asdict(played), "peak_rss_bytes": peak})


def _reply(answers: Any, value: dict[str, Any]) -> None:
    answers.write(json.dumps(value) + "\n")
    answers.flush()
