"""Ask a bundle one question, as `edgevlm run` does."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from edgevlm_runner.respond import Respondent

from edgevlm_deploy.bundle import open_sealed


def answer(
    path: Path,
    question: str,
    image: Path | None,
    unsealed: bool,
    on_text: Callable[[str], None],
    emulate: bool = False,
) -> dict[str, Any]:
    """Stream the answer to `on_text` and return it with its confidence and latency.

    Raises BundleError when the bundle has not passed its gates, unless `unsealed` is given.
    """
    bundle = open_sealed(path, unsealed)
    with Respondent(bundle, emulate=emulate) as respondent:
        reply = respondent.ask(question, image, on_text)
    return {
        "answer": reply.text,
        "deployable": bool(bundle.seal and bundle.seal["deployable"]),
        "tokens": len(reply.token_ids),
        "confidence": reply.confidence,
        "time_to_first_token_ms": reply.time_to_first_token_ms,
        "latency_ms": reply.latency_ms,
    }
