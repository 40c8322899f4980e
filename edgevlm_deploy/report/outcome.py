"""Verdicts and comparisons in words."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from edgevlm_deploy.comparison import WHOLE, Compared, Differences
from edgevlm_deploy.metrics.selectors import EVERYTHING
from edgevlm_deploy.metrics.tables import Gain, Metrics
from edgevlm_deploy.report.quantity import TITLES, Unit, estimated, quantity
from edgevlm_deploy.verdict import Outcome, Verdict


def headline(verdict: Verdict) -> str:
    """One of "Deployable", "Not deployable" or "Inconclusive"."""
    return {Outcome.PASS: "Deployable", Outcome.FAIL: "Not deployable"}.get(verdict.outcome, "Inconclusive")


def why(verdict: Verdict) -> str:
    """The outcome's reason in one sentence that names the gates."""
    total = len(verdict.gates)
    if verdict.outcome is Outcome.PASS:
        return f"{total} of {total} gates passed at {verdict.level:.0%} confidence."
    phrases = []
    for outcome, what in (
        (Outcome.FAIL, "failed"),
        (Outcome.INCONCLUSIVE, "undecided"),
        (Outcome.SKIPPED, "without data"),
    ):
        names = [TITLES[gate.metric].lower() for gate in verdict.gates if gate.outcome is outcome]
        if names:
            phrases.append(f"{len(names)} {what} ({', '.join(names)})")
    if not phrases:
        return f"{total} of {total} gates passed, on an emulated device."
    return f"of {total} gates {', '.join(phrases)}."


def remarks(evidence: Mapping[str, Any]) -> list[str]:
    """What to bear in mind about the machine behind the evidence, a sentence each."""
    found = (emulation(evidence), other_machine(evidence), throttling(evidence))
    return [sentence for sentence in found if sentence]


def emulation(evidence: Mapping[str, Any]) -> str:
    """A sentence when another runtime stood in for the device's, else ""."""
    if not evidence.get("emulated"):
        return ""
    return (
        "Emulated: ONNX Runtime computed TensorRT's graphs on this machine's CPU. Answers are close to the "
        "device's, times and memory are not, so it cannot pass here; validate it on the device."
    )


def other_machine(evidence: Mapping[str, Any]) -> str:
    """A sentence when a phone's bundle ran on another kind of processor, else ""."""
    platform = str(evidence["machine"].get("platform", ""))
    if evidence["runtime"]["name"] != "litert" or "aarch64" in platform or not platform:
        return ""
    return (
        "It ran on this machine's processor, not on a phone's: the same graphs and the same runtime, but "
        "latency and memory are of this machine."
    )


def throttling(evidence: Mapping[str, Any]) -> str:
    """A sentence when the board slowed down while it was measured, else ""."""
    board = evidence.get("board") or {}
    if not board.get("throttled") or evidence.get("emulated"):  # an emulation's times are not judged
        return ""
    return (
        f"The machine throttled while it was measured ({', '.join(board['throttled_by'])}): "
        "its latency will not repeat. Cool it, check its power supply and mode, and validate again."
    )


def abstaining(metrics: Metrics) -> list[str]:
    """What the bundle's own rule answers, and whether its Selector is worth its bytes; a sentence each."""
    found = []
    share, risk = metrics.estimates.get("answered_share"), metrics.estimates.get("answered_risk")
    if share is not None and share.value is not None:
        wrong = ""
        if risk is not None and risk.value is not None:
            wrong = f"; of these {estimated(risk, Unit.SHARE)} are wrong"
        found.append(
            f"By its own threshold the bundle answers {estimated(share, Unit.SHARE)} of the "
            f"{share.n:,} {EVERYTHING} items{wrong}."
        )
    for one in metrics.selector[-1:]:
        found += [_gained(gain, f"{one.n:,} {one.part} items") for gain in one.gains]
    return found


def _gained(one: Gain, items: str) -> str:
    assert one.gain.low is not None and one.gain.high is not None
    verdict = "beats MaxProb" if one.gain.low > 0 else "does worse than MaxProb"
    if one.gain.low <= 0 <= one.gain.high:
        verdict = "is not shown to beat MaxProb"
    shares = [quantity(score.value, Unit.SHARE) for score in (one.selector, one.max_prob)]
    return (
        f"At {one.risk:.0%} wrong answers the Selector {verdict}: it answers {shares[0]} of the {items}, "
        f"MaxProb {shares[1]}, a difference of {estimated(one.gain, Unit.POINTS)}."
    )


def changes(found: Differences) -> str:
    """How many answers differ and which way, in one sentence."""
    rows = found.of(*WHOLE)
    if not found.changed:
        return f"B gives A's answer to each of {found.items:,} items."
    counts = (
        (sum(row.negative for row in rows), "right → wrong"),
        (sum(row.positive for row in rows), "wrong → right"),
        (sum(row.still_wrong for row in rows), "wrong in another way"),
        (sum(row.still_right for row in rows), "right in other words"),
    )
    ways = ", ".join(f"{count:,} {way}" for count, way in counts if count)
    return f"B answers {len(found.changed):,} of {found.items:,} items differently from A: {ways}."


def comparability(compared: Compared) -> list[str]:
    """What was left out, and whose answers are not a device's; a sentence each."""
    only_a, only_b = compared.left_out
    found = []
    if only_a or only_b:
        found.append(f"Left out: {only_a:,} items that only A has and {only_b:,} that only B has.")
    if not compared.same_seed:
        found.append("A and B changed their pictures from different seeds, so those are not compared.")
    if compared.a.bundle.manifest["source"] != compared.b.bundle.manifest["source"]:
        found.append("A and B were compiled from different checkpoints.")
    for name, side in (("A", compared.a), ("B", compared.b)):
        if side.evidence is not None and (sentence := emulation(side.evidence)):
            found.append(f"{name}: {sentence}")
    return found
