"""Ask a bundle one question, as `edgevlm run` does."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from edgevlm_runner import abstain
from edgevlm_runner.contract import Certainty
from edgevlm_runner.respond import Reply, Respondent

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

    A bundle that may abstain decides after the last token, so its answer comes in one piece, or a sentence
    that says why there is none; what is returned holds the answer anyway.
    Raises BundleError when the bundle has not passed its gates, unless `unsealed` is given.
    """
    bundle = open_sealed(path, unsealed)
    certainty = bundle.certainty
    with Respondent(bundle, emulate=emulate) as respondent:
        reply = respondent.ask(question, image, (lambda _: None) if certainty.abstain else on_text)
    if certainty.abstain:
        on_text(withheld(reply, certainty) if reply.abstained else reply.text)
    return {
        "answer": reply.text,
        "abstained": reply.abstained,
        "deployable": bool(bundle.seal and bundle.seal["deployable"]),
        "tokens": len(reply.token_ids),
        "confidence": abstain.scaled(reply.confidence, certainty.temperature),
        "max_prob": abstain.max_prob(reply.token_logprobs),
        "selector": reply.selector,
        "threshold": certainty.threshold,
        "time_to_first_token_ms": reply.time_to_first_token_ms,
        "latency_ms": reply.latency_ms,
    }


def withheld(reply: Reply, certainty: Certainty) -> str:
    """Why there is no answer."""
    if certainty.threshold is None:
        return "(abstained: at no score was the model right often enough)"
    if certainty.abstain == abstain.SELECTOR:
        return f"(abstained: the selector gives {reply.selector:.2f}, answers need {certainty.threshold:.2f})"
    score = abstain.max_prob(reply.token_logprobs)
    return (
        f"(abstained: the probability of the answer is {score:.2f}, answers need {certainty.threshold:.2f})"
    )
