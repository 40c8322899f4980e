"""Turns → numbers of the table: medians with the range they came from, and ratios within each round."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.rounds import Engine, Heat, Result
from benchmarks.workload import OUTPUTS, Round

REFERENCE = "pytorch-float32"
SAME_BITS = {"edgevlm-default": "llama_cpp-Q4_0", "edgevlm-int8": "llama_cpp-Q8_0"}


@dataclass(frozen=True)
class Spread:
    """Median, least and greatest over the rounds."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        return cls(statistics.median(values), min(values), max(values))


@dataclass(frozen=True)
class Row:
    """One engine at one number of threads."""

    engine: Engine
    skipped: str
    vision_ms: Spread | None = None
    prefill_ms: Spread | None = None
    time_to_first_token_ms: Spread | None = None
    tokens_per_second: Spread | None = None
    weight_bytes: int = 0
    roof_share: float | None = None
    """Weights read per second over the bandwidth of sequential reads; above 1 they stayed in a cache."""
    peak_rss_bytes: int = 0
    features_cosine: float | None = None
    """Between the tile's image features and PyTorch's in float32: the engines run the same model."""
    logits_cosine: float | None = None
    """The same of the logits of a text prompt."""
    cpu_share: float = 1.0
    """Lowest of all rounds."""


@dataclass(frozen=True)
class Ratio:
    """How many times faster `engine` is than `peer`: median and range of the rounds' own ratios."""

    engine: Engine
    peer: Engine
    time_to_first_token: Spread | None
    prefill: Spread
    decode: Spread


def rows(heat: Heat, directory: Path) -> Iterator[Row]:
    gb_per_second = statistics.median(heat.gb_per_second)
    for result in heat.results:
        yield _row(result, gb_per_second, directory) if result.rounds else Row(result.engine, result.skipped)


def _row(result: Result, gb_per_second: float, directory: Path) -> Row:
    decode = Spread.of([one.tokens_per_second for one in result.rounds])
    return Row(
        result.engine,
        skipped="",
        vision_ms=_optional(result, lambda one: one.vision_ms),
        prefill_ms=Spread.of([one.prefill_ms for one in result.rounds]),
        time_to_first_token_ms=_optional(result, lambda one: one.time_to_first_token_ms),
        tokens_per_second=decode,
        weight_bytes=result.weight_bytes,
        roof_share=result.weight_bytes * decode.median / (gb_per_second * 1e9),
        peak_rss_bytes=result.peak_rss_bytes,
        features_cosine=_cosine(directory / OUTPUTS, result.engine.key, "features"),
        logits_cosine=_cosine(directory / OUTPUTS, result.engine.key, "logits"),
        cpu_share=min(one.cpu_share for one in result.rounds),
    )


def _optional(result: Result, value: Callable[[Round], float | None]) -> Spread | None:
    values = [value(one) for one in result.rounds]
    known = [one for one in values if one is not None]
    return Spread.of(known) if known else None


def _cosine(outputs: Path, key: str, kind: str) -> float | None:
    paths = outputs / f"{REFERENCE}.{kind}.npy", outputs / f"{key}.{kind}.npy"
    if not all(path.is_file() for path in paths):
        return None
    first, second = (np.load(path, allow_pickle=False).astype(np.float64).ravel() for path in paths)
    return float(first @ second / np.linalg.norm(first) / np.linalg.norm(second))


def ratios(heat: Heat) -> Iterator[Ratio]:
    """edgevlm against llama.cpp of the same bits, and against PyTorch; peers that ran."""
    results = {result.engine.key: result for result in heat.results if result.rounds}
    for key, result in results.items():
        if result.engine.name != "edgevlm":
            continue
        peers = [SAME_BITS[key], *(peer for peer in results if peer.startswith("pytorch-"))]
        for peer in peers:
            if peer in results:
                yield _ratio(result, results[peer])


def _ratio(result: Result, peer: Result) -> Ratio:
    pairs = list(zip(result.rounds, peer.rounds, strict=True))
    first = [
        theirs.time_to_first_token_ms / ours.time_to_first_token_ms
        for ours, theirs in pairs
        if ours.time_to_first_token_ms and theirs.time_to_first_token_ms
    ]
    return Ratio(
        result.engine,
        peer.engine,
        time_to_first_token=Spread.of(first) if first else None,
        prefill=Spread.of([theirs.prefill_ms / ours.prefill_ms for ours, theirs in pairs]),
        decode=Spread.of([ours.tokens_per_second / theirs.tokens_per_second for ours, theirs in pairs]),
    )
