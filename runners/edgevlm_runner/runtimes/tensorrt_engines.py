"""Engines: built once on the board that runs them, kept in a cache, never taken from anywhere else.

An engine fits one GPU, one TensorRT and one driver, so it is no part of a bundle. In the cache it is named
by the digest of everything that it depends on; its own digest lies beside it and is compared before
TensorRT sees a byte: a plan holds machine code, and a damaged or foreign one is built anew, never used.

    CACHE/tensorrt/KEY.plan   KEY.json {"plan_sha256", "strong", "reason", "graph_sha256", …}   timings.bin
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import mmap
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Dict, List, Mapping, Optional, Sequence

from edgevlm_runner.errors import ExecutionError
from edgevlm_runner.runtimes import profiles as optimisation
from edgevlm_runner.runtimes.tensorrt_build import Request, error_log
from edgevlm_runner.storage import file_digest, storage_errors, stream_digest

FORMAT = 1
"""Part of every key: raised when this code builds otherwise from the same inputs."""
TIMINGS = "timings.bin"


@dataclasses.dataclass(frozen=True)
class Board:
    """What an engine is bound to, apart from its graph."""

    tensorrt: str
    gpu: str
    """Name and compute capability."""
    cuda: str
    driver: str


@dataclasses.dataclass(frozen=True)
class Plan:
    """An engine's file and how it came about."""

    path: Path
    strong: bool
    reason: str
    """Why it is not strongly typed; "" when it is."""
    build_seconds: float = 0.0
    """What the build took just now; 0 when the engine was there."""


def key(graph_sha256: str, profiles: Sequence[optimisation.Profile], board: Board) -> str:
    """SHA-256 that names an engine in the cache."""
    parts = [FORMAT, graph_sha256, optimisation.plain(profiles), dataclasses.asdict(board)]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def graph_digest(graph: Path) -> str:
    """SHA-256 over the graph and the files beside it that it names: its weights, when they lie outside."""
    sha256 = hashlib.sha256()
    for path in [graph, *_external(graph)]:
        sha256.update(f"{path.name} {file_digest(path)}\n".encode())
    return sha256.hexdigest()


def find_or_build(
    graph: Path, profiles: Sequence[optimisation.Profile], board: Board, cache: Path, free_bytes: int
) -> Plan:
    """The engine of `graph` for this board, from the cache when it is there and whole.

    free_bytes: free device memory, which bounds the builder's scratch memory.
    Raises ExecutionError when TensorRT cannot build it, StorageError when the cache cannot be written.
    """
    graph_sha256 = graph_digest(graph)
    name = key(graph_sha256, profiles, board)
    plan, note = cache / f"{name}.plan", cache / f"{name}.json"
    known = _whole(plan, note, name)
    if known is not None:
        return known
    with storage_errors(cache):
        cache.mkdir(parents=True, exist_ok=True)
    request = Request(str(graph), optimisation.plain(profiles), str(plan), str(cache / TIMINGS), free_bytes)
    began = time.perf_counter()
    typing = _build(request)
    seconds = time.perf_counter() - began
    facts = {
        **typing,
        "key": name,
        "plan_sha256": file_digest(plan),
        "graph_sha256": graph_sha256,
        **dataclasses.asdict(board),
    }
    temporary = note.with_name(f"{note.name}.{os.getpid()}.tmp")
    with storage_errors(cache):
        temporary.write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
        temporary.replace(note)  # last, so that a plan without its digest counts as none
    return Plan(plan, bool(typing["strong"]), str(typing["reason"]), seconds)


def deserialize(trt: Any, runtime: Any, plan: Plan) -> Any:
    """The engine in device memory. Raises ExecutionError when TensorRT refuses it."""
    log = runtime.logger
    with open(plan.path, "rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as data:
        engine = runtime.deserialize_cuda_engine(data)
        # The board's one memory holds weights and page cache alike: what was read is not needed twice.
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    if engine is None:
        told = log.told() or "it gives no reason"
        raise ExecutionError(
            f"{plan.path}: TensorRT {trt.__version__} refuses this engine ({told}). "
            f"Delete {plan.path.parent} to build all engines anew."
        )
    return engine


def open_runtime(trt: Any) -> Any:
    """A `tensorrt.Runtime` whose logger keeps errors."""
    return trt.Runtime(error_log(trt))


def _external(graph: Path) -> List[Path]:
    """Files beside the graph whose names its bytes contain: ONNX names external weights by path."""
    with open(graph, "rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as data:
        beside = [path for path in graph.parent.iterdir() if path.is_file() and path != graph]
        return sorted(path for path in beside if data.find(path.name.encode()) >= 0)


def _whole(plan: Path, note: Path, name: str) -> Optional[Plan]:
    """The cached plan if it is the one that was written for this key, else None.

    Only files of this user or of root count: who may write both can write a digest that matches.
    """
    try:
        if not {plan.stat().st_uid, note.stat().st_uid} <= {os.getuid(), 0}:
            return None
        facts = json.loads(note.read_text(encoding="utf-8"))
        with open(plan, "rb") as stream:
            found = stream_digest(stream)
    except (OSError, ValueError):
        return None
    if not isinstance(facts, dict) or facts.get("key") != name or facts.get("plan_sha256") != found:
        return None
    return Plan(plan, facts.get("strong") is True, str(facts.get("reason", "")))


def _build(request: Request) -> Dict[str, Any]:
    """Run the builder in a process of its own and return how it typed the network."""
    command = [sys.executable, "-m", "edgevlm_runner.runtimes.tensorrt_build"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    done = subprocess.run(
        command,
        input=json.dumps(dataclasses.asdict(request)),
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode == 0:
        typing: Dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
        return typing
    said = done.stderr.strip()
    if done.returncode < 0:
        said = f"the builder was ended by signal {-done.returncode}, most likely for want of memory. {said}"
    said = said.partition("error: ")[2] or said or f"exit code {done.returncode}"
    raise ExecutionError(f"{request.graph}: no engine. {said}")


def typings(plans: Mapping[str, Plan]) -> str:
    """One line for the evidence: "strong", or which component is weakly typed and why."""
    weak = {component: plan.reason for component, plan in plans.items() if not plan.strong}
    if not weak:
        return "strong"
    if len(set(weak.values())) == 1 and len(weak) == len(plans):
        return f"weak: {next(iter(weak.values()))}"
    return "; ".join(f"{component} weak: {reason}" for component, reason in weak.items())
