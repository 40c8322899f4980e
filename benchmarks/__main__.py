"""`python -m benchmarks`: compile SmolVLM-256M's shape, then time it beside PyTorch and llama.cpp."""

from __future__ import annotations

import argparse
import dataclasses
import json
import shlex
import sys
from pathlib import Path
from typing import Any

from benchmarks import conditions, page
from benchmarks.process import run, say
from benchmarks.rounds import REPOSITORY, Engine, Failed, compete
from benchmarks.workload import OUTPUTS

RECIPES = {"default": "w4a16_g64", "int8": "w8a16"}
"""Recipe → weights of its decoder's layers."""
BUILD = REPOSITORY / "build" / "benchmarks"
PEERS = REPOSITORY / "build" / "peers" / "bin" / "python"
RESULTS = REPOSITORY / "benchmarks" / "RESULTS.md"


def arguments(given: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--config", type=Path, help="folder with a config.json of another shape")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--peer-python",
        type=lambda given: Path(given).absolute(),  # not resolved: an environment's python is a link
        default=PEERS if PEERS.exists() else Path(sys.executable),
        help="interpreter with llama-cpp-python and gguf (default: build/peers/bin/python, else this one)",
    )
    parser.add_argument("--reuse", action="store_true", help="time the graphs that the last run compiled")
    parser.add_argument("--json", type=Path, help="write every single time to this file")
    parser.add_argument("--markdown", type=Path, help=f"write the tables, e.g. to {RESULTS.name}")
    return parser.parse_args(given)


def engines(peer_python: str) -> list[Engine]:
    """All lines of the table. edgevlm and PyTorch run in this interpreter."""
    own = [
        Engine("edgevlm", recipe, f"edgevlm {recipe}", RECIPES[recipe], sys.executable) for recipe in RECIPES
    ]
    torch = [Engine("pytorch", kind, "PyTorch", kind, sys.executable) for kind in ("float32", "bfloat16")]
    llama = [Engine("llama_cpp", kind, "llama.cpp", kind, peer_python) for kind in ("Q4_0", "Q8_0")]
    return [*own, *llama, *torch]


def is_compiled() -> bool:
    return all((BUILD / recipe / "compiled.json").is_file() for recipe in RECIPES)


def compile_all(config: Path | None, threads: int, reuse: bool) -> dict[str, dict[str, Any]]:
    """Checkpoint and graphs below `BUILD`, each recipe in a process of its own."""
    (BUILD / OUTPUTS).mkdir(parents=True, exist_ok=True)
    if not reuse:
        say("writing a checkpoint of random weights")
        for old in BUILD.glob("*.gguf"):
            old.unlink()
        program = "import sys; from benchmarks.shape import main; main(*sys.argv[1:])"
        run("-c", program, str(BUILD), *([str(config)] if config else []))
        for recipe in RECIPES:
            say(f"compiling recipe {recipe} on {threads} thread(s)")
            run("-m", "benchmarks.compilation", str(BUILD), recipe, str(threads))
    return {recipe: json.loads((BUILD / recipe / "compiled.json").read_text()) for recipe in RECIPES}


def main() -> None:
    given = arguments()
    before = conditions.now()
    reused = given.reuse and is_compiled()
    compiled = compile_all(given.config, max(given.threads), reused)
    lines = engines(str(given.peer_python))
    try:
        heats = tuple(compete(lines, BUILD, threads, given.rounds, say) for threads in given.threads)
    except Failed as failure:
        sys.exit(f"An engine that had loaded ended in the middle of a round: {failure}")
    after = conditions.now()
    versions: dict[str, str] = {}
    for result in heats[0].results:
        versions.update(result.versions)
    run = page.Run(
        command=shlex.join(["python", "-m", "benchmarks", *sys.argv[1:]]),
        machine=conditions.machine(),
        versions=versions,
        compiled=compiled,
        reused=reused,
        heats=heats,
        other_cores=conditions.other_cores(before, after),
        minutes=(after.wall - before.wall) / 60,
    )
    print(page.terminal(run, BUILD))
    if given.json:
        given.json.write_text(json.dumps(dataclasses.asdict(run), indent=1, default=str) + "\n")
    if given.markdown:
        given.markdown.write_text(page.markdown(run, BUILD))


if __name__ == "__main__":
    main()
