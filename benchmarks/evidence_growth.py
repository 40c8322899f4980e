"""How the evidence grows with its items: `python -m benchmarks.evidence_growth`.

The demo is compiled once per size; the runner answers all items, the host judges them. Items per second and
peak memory should not depend on the number of items; the bootstrap's time grows with it.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

from benchmarks import conditions, page
from benchmarks.process import run, say
from benchmarks.rounds import REPOSITORY

BUILD = REPOSITORY / "build" / "benchmarks" / "evidence-growth"
CONDITIONS = 50
"""Ten corruptions at five severities: half of the items are clean, half are corrupted."""


@dataclass(frozen=True)
class Size:
    items: int
    answered_seconds: float
    peak_rss_bytes: float
    judged_seconds: float
    judge_peak_rss_bytes: float


def arguments(given: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.evidence_growth", description=__doc__)
    parser.add_argument("--items", nargs="+", type=int, default=[100, 1000, 10_000])
    parser.add_argument("--markdown", type=Path, help="write the table, e.g. to docs/evidence-growth.md")
    return parser.parse_args(given)


def grow(items: int) -> Size:
    """Compile the demo with about `items` items, answer them, and judge the answers in a fresh process."""
    say(f"{items:,} items")
    BUILD.mkdir(parents=True, exist_ok=True)
    written = BUILD / f"items-{items}.yaml"
    settings = yaml.safe_load((REPOSITORY / "recipes" / "default.yaml").read_text())
    settings["name"] = f"items-{items}"
    settings["evaluation"] = {
        "clean_items": items // 2,
        "items_per_condition": max(1, items // 2 // CONDITIONS),
        "temperature_items": 0,
    }
    written.write_text(yaml.safe_dump(settings, sort_keys=False))
    order = ["compile", "demo", "--target", "host-cpu", "--recipe", str(written), "--out", str(BUILD)]
    run("-m", "edgevlm_deploy.cli", *order, "--json", accepted=(0, 3, 4))
    bundle = BUILD / f"demo-host-cpu-{written.stem}.edgevlm"
    seen = json.loads((bundle.with_suffix(".evidence") / "evidence.json").read_text())
    seconds, peak = _judge(bundle)
    return Size(seen["items"], seen["seconds"], seen["peak_rss_bytes"], seconds, peak)


def _judge(bundle: Path) -> tuple[float, float]:
    """(seconds, peak memory in bytes) of judging alone, in a process of its own."""
    program = (
        "import sys, time\n"
        "from pathlib import Path\n"
        "from edgevlm_runner.measure import peak_rss_bytes\n"
        "from edgevlm_deploy import bundle, validation\n"
        "path, out = map(Path, sys.argv[1:])\n"
        "opened = bundle.open_bundle(path)\n"
        "began = time.perf_counter()\n"
        "validation.judge(opened, path, out)\n"
        "print(time.perf_counter() - began, peak_rss_bytes())\n"
    )
    command = [sys.executable, "-c", program, str(bundle), str(bundle.with_suffix(".evidence"))]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=True)
    seconds, peak = done.stdout.split()
    return float(seconds), float(peak)


def table(sizes: Sequence[Size]) -> page.Table:
    columns = ("items", "answered s", "items/s", "runner peak MB", "judged s", "judging peak MB")
    rows = tuple(
        (
            f"{one.items:,}",
            f"{one.answered_seconds:.1f}",
            f"{one.items / one.answered_seconds:.0f}",
            f"{one.peak_rss_bytes / 1e6:.0f}",
            f"{one.judged_seconds:.1f}",
            f"{one.judge_peak_rss_bytes / 1e6:.0f}",
        )
        for one in sizes
    )
    return page.Table("Growth", columns, rows)


def main() -> None:
    given = arguments()
    before = conditions.now()
    sizes = [grow(items) for items in given.items]
    others = conditions.other_cores(before, conditions.now())
    machine = conditions.machine()
    said = [
        "Written by `python -m benchmarks.evidence_growth --markdown docs/evidence-growth.md`. The demo, "
        "`default` for `host-cpu`, half of the items clean and half corrupted; latency is measured on 120 "
        "items whatever their number.",
        page.company(others, machine["cores"]),
        page.machine(machine),
    ]
    text = page.document("How the evidence grows", said, [table(sizes)])
    print(text)
    if given.markdown:
        given.markdown.write_text(text)


if __name__ == "__main__":
    main()
