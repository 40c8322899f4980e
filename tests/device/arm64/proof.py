"""`python tests/device/arm64/proof.py BUNDLE …`: one bundle here and on an emulated ARM64 machine, compared.

Runs `edgevlm validate` on both, compares answers and corrupted pixels, rewrites the results in docs/arm64.md
and ends with exit code 1 when pixels differ, answers flip more often than `comparison.FLIP_LIMIT`, or a
gate fails there that does not fail here. Needs what root.sh needs.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

import numpy as np
from comparison import FLIP_LIMIT, Difference, Run, differ, problems, read
from edgevlm_runner.bundle import open_bundle
from thin import thin

HERE = Path(__file__).resolve().parent
PAGE = HERE.parents[2] / "docs" / "arm64.md"
MARK = "<!-- Written by `make device-arm64`; everything below is replaced. -->\n"
VERDICTS = (0, 3, 4)
"""Exit codes of `edgevlm validate` that are verdicts: time and memory gates fail under emulation."""


@dataclass(frozen=True)
class Proof:
    """What one bundle showed."""

    name: str
    x86: Run
    arm64: Run
    between: Difference
    """x86-64 against arm64."""
    threads: Difference
    """x86-64 against itself with one thread: the noise floor."""
    conditions: int
    unequal: tuple[str, ...]
    """Conditions whose pixels differ."""

    @property
    def problems(self) -> list[str]:
        found = problems(self.x86, self.arm64, self.between, self.unequal)
        return [f"{self.name}: {one}" for one in found]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("bundles", type=Path, nargs="+", metavar="BUNDLE")
    parser.add_argument("--every", type=int, default=1, help="take every n-th item of each condition")
    parser.add_argument(
        "--pictures", type=int, default=10, help="pictures whose corrupted pixels are compared"
    )
    parser.add_argument("--out", type=Path, default=Path("build/arm64"), help="folder for root and evidence")
    arguments = parser.parse_args()
    root = (arguments.out / "root").resolve()
    subprocess.run([HERE / "root.sh", "build", sys.executable, root], check=True)
    proofs = [
        prove(one, arguments.every, arguments.pictures, arguments.out, root) for one in arguments.bundles
    ]
    text = page(proofs, arguments.every)
    print(text)
    PAGE.write_text(PAGE.read_text().partition(MARK)[0] + MARK + "\n" + text)
    found = [one for proof in proofs for one in proof.problems]
    for problem in found:
        print(f"error: {problem}", file=sys.stderr)
    return 1 if found else 0


def prove(path: Path, every: int, pictures: int, out: Path, root: Path) -> Proof:
    folder, there = out.resolve() / path.stem, root / "bundles" / path.stem
    for one in (folder, there):
        # Evidence stays: the runner takes up the answers of a run that was cut off.
        shutil.rmtree(one / "bundle", ignore_errors=True)
        one.mkdir(parents=True, exist_ok=True)
    bundle = thin(path, every, folder / "bundle")
    shutil.copytree(bundle, there / "bundle")
    shutil.copy(HERE / "pixels.py", there)

    here = [sys.executable]
    emulated = [str(HERE / "root.sh"), "run", str(root), "/usr/bin/python3"]
    inside = f"/bundles/{path.stem}"
    count = ["--pictures", str(pictures)]
    pixels = json.loads(_output([*here, str(HERE / "pixels.py"), str(bundle), *count]))
    arm_pixels = json.loads(_output([*emulated, f"{inside}/pixels.py", f"{inside}/bundle", *count]))
    assert pixels.keys() == arm_pixels.keys()

    one_thread = ["-m", "edgevlm_runner", str(bundle), "--out", str(folder / "one-thread"), "--threads", "1"]
    _output([*here, *one_thread])
    _validate(here, str(bundle))
    _validate(emulated, f"{inside}/bundle")
    opened = open_bundle(bundle)
    x86, arm64 = read(opened, folder / "bundle.evidence"), read(opened, there / "bundle.evidence")
    return Proof(
        name=path.stem,
        x86=x86,
        arm64=arm64,
        between=differ(opened.items, x86, arm64),
        threads=differ(opened.items, x86, read(opened, folder / "one-thread")),
        conditions=len(pixels),
        unequal=tuple(key for key, value in pixels.items() if arm_pixels[key] != value),
    )


def _output(command: list[str]) -> str:
    print("+", *command, file=sys.stderr)
    return subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout


def _validate(python: list[str], bundle: str) -> None:
    command = [*python, "-m", "edgevlm_deploy.cli", "validate", bundle, "--json"]
    print("+", *command, file=sys.stderr)
    code = subprocess.run(command, stdout=subprocess.DEVNULL, check=False).returncode
    if code not in VERDICTS:
        sys.exit(f"error: edgevlm validate ended with exit code {code}, no verdict")


def page(proofs: list[Proof], every: int) -> str:
    lines = [
        f"Run on {datetime.now(timezone.utc):%Y-%m-%d}, every item of each bundle."
        if every == 1
        else f"Run on {datetime.now(timezone.utc):%Y-%m-%d}, every {every}th item of each condition."
    ]
    for proof in proofs:
        lines += ["", f"## {proof.name}", "", *_answers(proof), "", *_gates(proof), "", *_summary(proof)]
    return "\n".join(lines) + "\n"


def _answers(proof: Proof) -> list[str]:
    columns = (proof.between, proof.threads)
    rows = [
        ("items", [f"{sum(one.items.values()):,}" for one in columns]),
        ("flips, clean", [f"{one.flips['clean']} of {one.items['clean']:,}" for one in columns]),
        ("flips, corrupted", [f"{one.flips['corrupted']} of {one.items['corrupted']:,}" for one in columns]),
        ("flips", [f"{one.flip_rate:.2%}" for one in columns]),
        ("items with other tokens", [str(one.other_tokens) for one in columns]),
        *(
            (f"difference of log-probability, {name}", [f"{share(one.logprobs):.1e}" for one in columns])
            for name, share in (
                ("median", np.median),
                ("99th percentile", lambda values: np.quantile(values, 0.99)),
                ("largest", np.max),
            )
        ),
    ]
    table = ["| | arm64 against x86-64 | x86-64 against itself, one thread |", "|---|---|---|"]
    return table + [f"| {name} | {' | '.join(cells)} |" for name, cells in rows]


def _gates(proof: Proof) -> list[str]:
    table = ["| gate | x86-64 | arm64 |", "|---|---|---|"]
    return table + [
        f"| {gate} | {proof.x86.gates[gate]} | {one} |" for gate, one in proof.arm64.gates.items()
    ]


def _summary(proof: Proof) -> list[str]:
    machines = (("x86-64", proof.x86.evidence), ("arm64", proof.arm64.evidence))
    versions = [
        f"{name}: {evidence['machine']['platform']}, Python {evidence['machine']['python']}, "
        + ", ".join(f"{key} {value}" for key, value in evidence["runtime"]["versions"].items())
        + f", {evidence['seconds'] / 60:.1f} minutes."
        for name, evidence in machines
    ]
    equal = proof.conditions - len(proof.unequal)
    agree = f"{equal} of {proof.conditions} digests of corrupted pixels and of model inputs are equal."
    verdict = (
        f"The machines agree (limit: {FLIP_LIMIT:.0%} flips)." if not proof.problems else "They disagree: "
    )
    return [*(f"- {one}" for one in versions), f"- {agree}", f"- {verdict}{'; '.join(proof.problems)}"]


if __name__ == "__main__":
    sys.exit(main())
