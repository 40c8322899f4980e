"""The verdict in words."""

from __future__ import annotations

from edgevlm_deploy.report.quantity import TITLES
from edgevlm_deploy.verdict import Outcome, Verdict


def headline(verdict: Verdict) -> str:
    """ "Deployable", "Not deployable" or "Inconclusive"."""
    return {Outcome.PASS: "Deployable", Outcome.FAIL: "Not deployable"}.get(verdict.outcome, "Inconclusive")


def why(verdict: Verdict) -> str:
    """The outcome's reason in one sentence that names the gates."""
    total = len(verdict.gates)
    by_outcome = {
        outcome: [TITLES[gate.metric].lower() for gate in verdict.gates if gate.outcome is outcome]
        for outcome in Outcome
    }
    if verdict.outcome is Outcome.PASS:
        return f"{total} of {total} gates passed at {verdict.level:.0%} confidence."
    phrases = [
        f"{len(by_outcome[outcome])} of {total} gates {verb} ({', '.join(by_outcome[outcome])})"
        for outcome, verb in (
            (Outcome.FAIL, "failed"),
            (Outcome.INCONCLUSIVE, "could not be decided"),
            (Outcome.SKIPPED, "had nothing to judge"),
        )
        if by_outcome[outcome]
    ]
    return (" and ".join(phrases) or "there are no gates") + "."
