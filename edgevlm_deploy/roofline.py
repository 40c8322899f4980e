"""What a device needs at the very least, while nothing has run on it: weights over memory bandwidth.

Every generated token reads the decoder's weights once, and the first one the vision encoder's before. So

    first token ≥ (vision encoder + decoder) / bandwidth
    answer      ≥ first token + (tokens − 1) · decoder / bandwidth

A dual encoder has no decoder: its answer takes one reading of the vision encoder. Arithmetic, activations,
launches and preprocessing come on top. A bound is no measurement: the gates on latency and memory stay open
until a device says otherwise.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from edgevlm_deploy.recipe import GateName
from edgevlm_deploy.target import Target

NOT_MEASURED = "it ran without the device"


def weight_bytes(files: Mapping[str, Mapping[str, Any]], graph: str) -> int:
    """Bytes of a graph in the manifest's list of files, external weights included."""
    return sum(int(entry["bytes"]) for name, entry in files.items() if name in (graph, f"{graph}.data"))


def first_token_ms(vision_bytes: int, decoder_bytes: int, bandwidth_gb_s: float) -> float:
    return (vision_bytes + decoder_bytes) / bandwidth_gb_s / 1e6


def answer_ms(vision_bytes: int, decoder_bytes: int, tokens: float, bandwidth_gb_s: float) -> float:
    """tokens: generated ones per answer, end of sequence included."""
    later = max(tokens - 1, 0.0) * decoder_bytes / bandwidth_gb_s / 1e6
    return first_token_ms(vision_bytes, decoder_bytes, bandwidth_gb_s) + later


def reasons(
    manifest: Mapping[str, Any], graphs: Mapping[str, str], target: Target, tokens: float
) -> dict[str, str]:
    """Gate → why it is skipped, with the bound where the target says its bandwidth."""
    vision, decoder = (
        weight_bytes(manifest["files"], graphs[one]) if one in graphs else 0
        for one in ("vision_encoder", "decoder")
    )
    found = dict.fromkeys(
        (GateName.TIME_TO_FIRST_TOKEN_MS_P95, GateName.LATENCY_MS_P95, GateName.PEAK_RSS_BYTES), NOT_MEASURED
    )
    bandwidth = target.memory_bandwidth_gb_s
    if bandwidth is not None:
        first, whole = (
            first_token_ms(vision, decoder, bandwidth),
            answer_ms(vision, decoder, tokens, bandwidth),
        )
        at = f"reading the weights at {bandwidth:g} GB/s alone takes"
        found[GateName.TIME_TO_FIRST_TOKEN_MS_P95] += f"; {at} {first:.2g} ms"
        answer = f"{whole:.2g} ms for {tokens:.1f} tokens" if decoder else f"{whole:.2g} ms"
        found[GateName.LATENCY_MS_P95] += f"; {at} {answer}"
    estimate = manifest["verification"].get("estimated_memory_bytes")
    if estimate is not None:
        found[GateName.PEAK_RSS_BYTES] += (
            f"; weights, cache and activations are {estimate / 1e6:,.0f} MB at the profiles' largest shapes"
        )
    return {name.value: reason for name, reason in found.items()}
