"""Outcomes of compilations that nobody ran."""

from __future__ import annotations

from edgevlm_deploy.search.proof import Proof
from edgevlm_deploy.verdict import Outcome


def proof(trial: int, holds: bool) -> Proof:
    return Proof(
        trial=trial,
        recipe="",
        bundle="",
        outcome=Outcome.PASS if holds else Outcome.INCONCLUSIVE,
        sealed=holds,
        holds=holds,
        bundle_bytes=1,
        latency_ms_p95=None,
        peak_rss_bytes=None,
        estimates={},
        open_gates=(),
    )
