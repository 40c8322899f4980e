"""Evidence: every item answered, latency and memory measured, on the machine that this runs on."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import platform
import sys
import threading
import time
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, Optional, Sequence, Union

from edgevlm_runner import features
from edgevlm_runner.board import Watch
from edgevlm_runner.bundle import Bundle
from edgevlm_runner.contract import (
    CLEAN,
    FEATURES,
    FORMAT_VERSION,
    Answer,
    DualEncoderSpec,
    Item,
    read_jsonl,
    to_json,
)
from edgevlm_runner.errors import BundleError
from edgevlm_runner.respond import Respondent, ZeroShot, respondent, usable_cores
from edgevlm_runner.runtimes import OnAccelerator
from edgevlm_runner.storage import file_digest, storage_errors

WARM_UP_ITEMS = 5
LATENCY_ITEMS = 120
"""Enough for a two-sided 95 % interval of the 95th percentile (73 is the least)."""
FLUSH_EVERY = 32
SIGN_OF_LIFE_S = 30.0

AnyRespondent = Union[Respondent, ZeroShot]

Progress = Callable[[int, int], None]
"""Called with (items answered, items in all)."""


def gather(
    bundle: Bundle, out: Path, progress: Progress, threads: Optional[int] = None, emulate: bool = False
) -> None:
    """Write `answers.jsonl` and `evidence.json` to `out`, and `features.npz` where the bundle asks for it.

    With `emulate`, a TensorRT bundle runs without TensorRT and the evidence says so: its times and its
    memory are not the device's.

    Answers of a killed run are taken up again when they come from the same bundle on the same
    runtime and threads. Latency is measured first, on an otherwise idle runtime.
    """
    with storage_errors(out):
        out.mkdir(parents=True, exist_ok=True)
        began = time.perf_counter()
        with _signs_of_life(progress, len(bundle.items)):
            loaded = respondent(bundle, threads, emulate)
        with loaded:
            loaded_ms = 1e3 * (time.perf_counter() - began)
            origin = _origin(bundle, loaded)
            with Watch() as watch:
                latency = _latency(loaded, bundle.items)
                _answer_all(loaded, bundle.items, out, origin, progress)
                kept = _features(loaded, bundle, out)
            runtime = loaded.runtime
            device_bytes, build_seconds = 0, 0.0
            if isinstance(runtime, OnAccelerator):
                device_bytes, build_seconds = runtime.device_bytes(), runtime.build_seconds()
        answers = out / "answers.jsonl"
        evidence = dict(origin)
        evidence.update(
            machine=machine(),
            items=len(bundle.items),
            answers_sha256=file_digest(answers),
            features_sha256=kept,
            build_seconds=build_seconds,
            load_ms=loaded_ms - 1e3 * build_seconds,
            seconds=time.perf_counter() - began,
            latency=latency,
            peak_rss_bytes=peak_rss_bytes(),
            device_bytes=device_bytes,
            board=_board(watch, latency),
        )
        temporary = out / "evidence.json.tmp"
        temporary.write_text(json.dumps(evidence, indent=1) + "\n", encoding="utf-8")
        temporary.replace(out / "evidence.json")


def _features(loaded: AnyRespondent, bundle: Bundle, out: Path) -> Optional[str]:
    """Digest of the embeddings' file; None where the bundle asks for none."""
    path, spec = out / FEATURES, bundle.model
    if isinstance(loaded, ZeroShot) and isinstance(spec, DualEncoderSpec) and spec.feature_items:
        features.write(path, loaded.features(bundle.items))
        return file_digest(path)
    if path.exists():  # of another bundle
        path.unlink()
    return None


def _board(watch: Watch, latency: Dict[str, List[float]]) -> Dict[str, Any]:
    """What the watch saw, and an answer's energy: mean power × mean time, the idle board's share included."""
    seen, times = watch.summary(), latency["latency_ms"]
    power = seen["power_w_mean"]
    known = power is not None and times
    energy = round(power * sum(times) / len(times) / 1e3, 4) if known else None
    return {**seen, "energy_j_per_answer": energy}


@contextlib.contextmanager
def _signs_of_life(progress: Progress, items: int) -> Iterator[None]:
    """Report "none answered yet" again and again: engines can take longer than a host waits in silence."""
    loaded = threading.Event()

    def report() -> None:
        while not loaded.wait(SIGN_OF_LIFE_S):
            progress(0, items)

    reporter = threading.Thread(target=report, name="loading", daemon=True)
    reporter.start()
    try:
        yield
    finally:
        loaded.set()
        reporter.join()


def read_evidence(directory: Path, bundle_digest: str) -> Dict[str, Any]:
    """Evidence of the bundle with that digest. Raises BundleError when it is of another or altered."""
    path = directory / "evidence.json"
    try:
        evidence = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BundleError(f"{path}: no readable evidence ({error}). Run `edgevlm validate`.") from error
    if not isinstance(evidence, dict) or evidence.get("format_version") != FORMAT_VERSION:
        raise BundleError(f"{path}: evidence of another version of edgevlm. Run `edgevlm validate` again.")
    if evidence.get("bundle") != bundle_digest:
        raise BundleError(f"{path}: evidence of another bundle. Run `edgevlm validate` on this one.")
    if evidence.get("answers_sha256") != file_digest(directory / "answers.jsonl"):
        raise BundleError(f"{directory}/answers.jsonl is not what evidence.json was written for.")
    kept = evidence.get("features_sha256")
    if kept and not ((directory / FEATURES).is_file() and kept == file_digest(directory / FEATURES)):
        raise BundleError(f"{directory}/{FEATURES} is not what evidence.json was written for.")
    return evidence


def _origin(bundle: Bundle, respondent: AnyRespondent) -> Dict[str, Any]:
    """What the answers depend on."""
    return {
        "format_version": FORMAT_VERSION,
        "bundle": bundle.digest,
        "runtime": {"name": bundle.model.runtime, "versions": dict(respondent.runtime.versions())},
        "threads": respondent.threads,
        "emulated": respondent.emulated,
    }


def _latency(respondent: AnyRespondent, items: Sequence[Item]) -> Dict[str, List[float]]:
    """Samples in milliseconds over clean items spread through the table, after a warm-up."""
    clean = [item for item in items if item.condition == CLEAN]
    step = max(1, len(clean) // LATENCY_ITEMS)
    for item in clean[:WARM_UP_ITEMS]:
        respondent.answer(item)
    replies = [respondent.answer(item)[1] for item in clean[::step][:LATENCY_ITEMS]]
    samples: Dict[str, List[float]] = {
        name: [round(getattr(reply, name), 3) for reply in replies]
        for name in ("preprocess_ms", "vision_ms", "time_to_first_token_ms", "latency_ms")
    }
    samples["per_token_ms"] = [round(one, 3) for reply in replies for one in reply.per_token_ms]
    return samples


def _answer_all(
    respondent: AnyRespondent, items: Sequence[Item], out: Path, origin: Dict[str, Any], progress: Progress
) -> None:
    partial = out / "answers.partial.jsonl"
    done = _resumable(partial, origin)
    with open(partial, "a", encoding="utf-8") as stream:
        if not done:
            stream.seek(0)
            stream.truncate()
            stream.write(json.dumps(origin) + "\n")
        for number, item in enumerate(items):
            if item.id not in done:
                done[item.id], _ = respondent.answer(item)
                stream.write(json.dumps(to_json(done[item.id]), ensure_ascii=False) + "\n")
            if number % FLUSH_EVERY == 0:
                stream.flush()
                progress(number + 1, len(items))
    progress(len(items), len(items))
    complete = out / "answers.jsonl.tmp"
    with open(complete, "w", encoding="utf-8", newline="\n") as stream:
        for item in items:
            stream.write(json.dumps(dataclasses.asdict(done[item.id]), ensure_ascii=False) + "\n")
    complete.replace(out / "answers.jsonl")
    partial.unlink()


def _resumable(partial: Path, origin: Dict[str, Any]) -> Dict[str, Answer]:
    """Answers of a killed run with the same origin; its last, cut line is dropped."""
    if not partial.exists():
        return {}
    head, _, rows = partial.read_text(encoding="utf-8").partition("\n")
    try:
        if json.loads(head) != origin:
            return {}
        kept = rows[: rows.rfind("\n") + 1]
        body = partial.with_name("answers.resumed.jsonl")
        body.write_text(kept, encoding="utf-8")
        done = {answer.item_id: answer for answer in read_jsonl(body, Answer)}
        body.unlink()
        partial.write_text(head + "\n" + kept, encoding="utf-8")
        return done
    except (ValueError, BundleError):
        return {}


def machine() -> Dict[str, Any]:
    """What the evidence was gathered on."""
    return {
        "platform": platform.platform(),
        "cpu": _cpu_name(),
        "cores": usable_cores(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "python": platform.python_version(),
    }


def _cpu_name() -> str:
    """The board's or processor's name from the kernel, where it tells."""
    for path, key in (("/proc/device-tree/model", None), ("/proc/cpuinfo", "model name")):
        try:
            text = Path(path).read_text(encoding="utf-8", errors="replace")
        except OSError:
            continue
        if key is None:
            return text.strip("\0\n ")
        for line in text.splitlines():
            if line.startswith(key):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def peak_rss_bytes() -> int:
    """Largest resident set of this process so far.

    Linux's own count for this program comes first: getrusage's also covers the process that started it.
    """
    try:
        for line in Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
