"""Ask a bundle one question, or let it classify one picture, as `edgevlm run` does."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from edgevlm_runner import abstain, zero_shot
from edgevlm_runner.contract import Certainty, DualEncoderSpec
from edgevlm_runner.respond import Reply, Respondent, ZeroShot

from edgevlm_deploy.bundle import Bundle, open_sealed
from edgevlm_deploy.errors import PromptError


def answer(
    path: Path,
    question: str | None,
    image: Path | None,
    unsealed: bool,
    on_text: Callable[[str], None],
    emulate: bool = False,
) -> dict[str, Any]:
    """Stream the answer to `on_text` and return it with its confidence and latency.

    A bundle that may abstain decides after the last token, so its answer comes in one piece, or a sentence
    that says why there is none; what is returned holds the answer anyway.
    A dual encoder needs a picture; `question` may name other classes than the bundle's, separated by
    commas, and the answer has `classes`: probability (with the logit scale that was fitted when it was
    compiled) and cosine of each, the likeliest first.
    Raises BundleError when the bundle has not passed its gates, unless `unsealed` is given, PromptError when
    question or picture is missing.
    """
    bundle = open_sealed(path, unsealed)
    if isinstance(bundle.model, DualEncoderSpec):
        return _classify(bundle, bundle.model, question, image, on_text, emulate)
    if not question:
        raise PromptError("This bundle answers questions: give one with --prompt.")
    certainty = bundle.certainty
    with Respondent(bundle, emulate=emulate) as respondent:
        reply = respondent.ask(question, image, (lambda _: None) if certainty.abstain else on_text)
    if certainty.abstain:
        on_text(withheld(reply, certainty) if reply.abstained else reply.text)
    return {**_common(bundle, reply), "tokens": len(reply.token_ids)}


def _classify(
    bundle: Bundle,
    spec: DualEncoderSpec,
    classes: str | None,
    image: Path | None,
    on_text: Callable[[str], None],
    emulate: bool,
) -> dict[str, Any]:
    if image is None:
        raise PromptError("This bundle classifies pictures: give one with --image.")
    others = [one.strip() for one in (classes or "").split(",") if one.strip()]
    if classes and len(set(others)) < 2:
        raise PromptError(f"A classifier chooses among two classes or more, separated by commas: {classes!r}")
    with ZeroShot(bundle, emulate=emulate) as respondent:
        if others:
            respondent.choose_among(list(dict.fromkeys(others)))
        reply, names = respondent.ask(image), respondent.classes
    on_text(withheld(reply, bundle.certainty) if reply.abstained else reply.text)
    fitted = zero_shot.tempered(spec, bundle.certainty.temperature)
    probabilities = np.exp(zero_shot.log_probabilities(np.array(reply.scores), fitted))
    ranked = sorted(zip(names, probabilities, reply.scores, strict=True), key=lambda row: -row[2])
    listed = [
        {"class": name, "probability": float(probability), "cosine": cosine}
        for name, probability, cosine in ranked
    ]
    return {**_common(bundle, reply), "confidence": listed[0]["probability"], "classes": listed}


def _common(bundle: Bundle, reply: Reply) -> dict[str, Any]:
    certainty = bundle.certainty
    return {
        "answer": reply.text,
        "abstained": reply.abstained,
        "deployable": bool(bundle.seal and bundle.seal["deployable"]),
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
