"""Two machines ran one bundle: do they say the same?"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from edgevlm_runner.bundle import Bundle
from edgevlm_runner.contract import Answer, Item, read_jsonl
from edgevlm_runner.measure import read_evidence

from edgevlm_deploy.metrics.consistency import diverges

FLIP_LIMIT = 0.01
"""Share of items that another processor may answer differently: half of what the demo's gates allow."""
OF_THE_EMULATOR = frozenset({"time_to_first_token_ms_p95", "latency_ms_p95", "peak_rss_bytes"})
"""Gates that say nothing about an emulated device."""


@dataclass(frozen=True)
class Run:
    """One bundle on one machine."""

    answers: Mapping[str, Answer]
    evidence: Mapping[str, Any]
    gates: Mapping[str, str]
    """Gate → outcome, e.g. "divergence_rate ≤ 0.05" → "pass"; empty where nothing was judged."""


@dataclass(frozen=True)
class Difference:
    """Answers of two runs, item by item."""

    items: Mapping[str, int]
    flips: Mapping[str, int]
    """By "clean" and "corrupted": items whose normalised answers differ."""
    other_tokens: int
    """Items whose tokens differ, flips included."""
    logprobs: np.ndarray
    """float64 [tokens]: absolute difference in nats, over items with equal tokens."""

    @property
    def flip_rate(self) -> float:
        return sum(self.flips.values()) / sum(self.items.values())


def read(bundle: Bundle, evidence: Path) -> Run:
    """Raises BundleError when the evidence is not this bundle's."""
    verdict = evidence / "verdict.json"
    judged = json.loads(verdict.read_text())["gates"] if verdict.exists() else []
    return Run(
        answers={one.item_id: one for one in read_jsonl(evidence / "answers.jsonl", Answer)},
        evidence=read_evidence(evidence, bundle.digest),
        gates={
            f"{one['metric']} {'≥' if one['max'] is None else '≤'} {one['min'] or one['max']}": one["outcome"]
            for one in judged
            if one["metric"] not in OF_THE_EMULATOR
        },
    )


def differ(items: Sequence[Item], one: Run, other: Run) -> Difference:
    counts, flips = {"clean": 0, "corrupted": 0}, {"clean": 0, "corrupted": 0}
    other_tokens = 0
    logprobs: list[float] = []
    for item in items:
        first, second = one.answers[item.id], other.answers[item.id]
        kind = "corrupted" if item.corruption else "clean"
        counts[kind] += 1
        flips[kind] += diverges(first.text, second.text)
        if first.token_ids == second.token_ids:
            logprobs += [abs(a - b) for a, b in zip(first.token_logprobs, second.token_logprobs, strict=True)]
        else:
            other_tokens += 1
    return Difference(counts, flips, other_tokens, np.array(logprobs))


def problems(x86: Run, arm64: Run, difference: Difference, unequal: Sequence[str]) -> list[str]:
    """What must not be, one sentence each; empty when the machines agree.

    unequal   conditions whose pixels differ
    """
    found = [f"pixels differ in {', '.join(unequal)}"] if unequal else []
    if difference.flip_rate > FLIP_LIMIT:
        found.append(f"{difference.flip_rate:.2%} of the answers differ, the limit is {FLIP_LIMIT:.0%}")
    return found + [
        f"{gate} fails on arm64 but is {x86.gates[gate]} on x86-64"
        for gate, outcome in arm64.gates.items()
        if outcome == "fail" and x86.gates[gate] != "fail"
    ]
