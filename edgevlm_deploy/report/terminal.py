"""Verdict, bundle and comparison as plain text, in colour only on a terminal."""

from __future__ import annotations

import io
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from edgevlm_runner.bundle import Bundle
from edgevlm_runner.contract import to_json

from edgevlm_deploy.comparison import Compared, Differences
from edgevlm_deploy.judging import Judged
from edgevlm_deploy.metrics import Estimate
from edgevlm_deploy.metrics.consistency import Flip
from edgevlm_deploy.metrics.tables import Metrics
from edgevlm_deploy.report import inventory
from edgevlm_deploy.report.gallery import DIRECTIONS
from edgevlm_deploy.report.names import CATEGORIES
from edgevlm_deploy.report.outcome import abstaining, changes, comparability, headline, remarks, why
from edgevlm_deploy.report.quantity import Unit, estimated, limit, measured, quantity
from edgevlm_deploy.verdict import GateResult, Outcome, Verdict

if TYPE_CHECKING:  # it reads ONNX, which a device does not have
    from edgevlm_deploy.lint.tensorrt import Report

WIDTH = 200
"""Columns when standard output is a file or a pipe: nothing is wrapped that a program may read."""
_STYLES = {
    Outcome.PASS: "green",
    Outcome.FAIL: "bold red",
    Outcome.INCONCLUSIVE: "yellow",
    Outcome.SKIPPED: "yellow",
}
MOST_CHANGED = 10
"""Changed answers in the table of a comparison."""
_FLIP_STYLES = {Flip.NEGATIVE: "red", Flip.POSITIVE: "green", Flip.NEUTRAL: "yellow"}


class Validation(Protocol):
    """A judged bundle and where everything about it lies."""

    @property
    def bundle(self) -> Path: ...
    @property
    def verdict(self) -> Verdict: ...
    @property
    def metrics(self) -> Metrics: ...
    @property
    def evidence(self) -> Mapping[str, Any]: ...
    @property
    def sealed(self) -> bool: ...
    @property
    def report(self) -> Path: ...


def verdict_table(validation: Validation) -> str:
    """One row a gate, then the outcome in one sentence and where bundle and report are."""
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0), header_style="dim")
    for column in ("gate", "measured", "limit", "status"):
        table.add_column(column, no_wrap=column in ("gate", "limit"))
    for gate in validation.verdict.gates:
        style = _STYLES[gate.outcome]
        table.add_row(
            Text(gate.metric.value), Text(measured(gate)), Text(limit(gate)), Text(_status(gate), style)
        )
    sentence = Text(_sentence(validation), _STYLES[validation.verdict.outcome])
    places = Text(f"bundle  {validation.bundle}\nreport  {validation.report}")
    skipped = [
        Text(gate.explanation, "dim")
        for gate in validation.verdict.gates
        if gate.outcome is Outcome.SKIPPED and gate.explanation
    ]
    warnings = [Text(one, "yellow") for one in remarks(validation.evidence)]
    withheld = [Text(one) for one in abstaining(validation.metrics)]
    return _rendered(table, Text(""), *skipped, *withheld, sentence, *warnings, places)


def _status(gate: GateResult) -> str:
    """The word, and what would change it."""
    if gate.outcome is Outcome.INCONCLUSIVE and gate.needed is not None:
        return f"inconclusive, about {gate.needed:,} {gate.unit} needed (now {gate.n:,})"
    return gate.outcome.value + (", within the noise floor" if gate.within_noise_floor else "")


def _sentence(validation: Validation) -> str:
    sealed = "Sealed." if validation.sealed else "Not sealed."
    return f"{headline(validation.verdict)}: {why(validation.verdict)} {sealed}"


def lint_table(report: Report) -> str:
    """One row a finding, then the outcome in one sentence."""
    from rich.table import Table
    from rich.text import Text

    styles = {"error": "bold red", "warning": "yellow"}
    table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0), header_style="dim")
    for column in ("severity", "rule", "where", "finding"):
        table.add_column(column, no_wrap=column in ("severity", "rule"), overflow="fold")
    for one in report.findings:
        severity = one.severity.value
        table.add_row(Text(severity, styles[severity]), one.rule, Text(one.where), Text(one.message))
    warnings = len(report.findings) - report.errors
    sentence = (
        f"{report.path} {'does not fit' if report.errors else 'fits'} TensorRT {report.release} on "
        f"{report.target.name}: {_count(report.errors, 'error')}, {_count(warnings, 'warning')}; it needs at "
        f"least about {quantity(report.memory.total_bytes, Unit.BYTES)}."
    )
    parts = [table, Text("")] if report.findings else []
    return _rendered(*parts, Text(sentence, "bold red" if report.errors else "green"))


def comparison_table(compared: Compared) -> str:
    """One row a part of the items, the first changed answers, and what happened in one sentence."""
    from rich.table import Table
    from rich.text import Text

    found = compared.differences
    table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0), header_style="dim")
    table.add_column("items", no_wrap=True)
    for column in ("n", "right→wrong", "wrong→right", "other wrong"):
        table.add_column(column, justify="right")
    for column in ("accuracy drop", "p", "confidence change"):
        table.add_column(column)
    for row in found.rows:
        table.add_row(
            Text(
                row.part.value if row.whole else f"  {row.name or 'not named'}", "bold" if row.whole else ""
            ),
            *(f"{count:,}" for count in (row.comparison.n, row.negative, row.positive, row.still_wrong)),
            estimated(row.comparison.accuracy_drop, Unit.POINTS),
            f"{row.mcnemar_p:.2g}",
            estimated(row.confidence_change, Unit.POINTS),
        )
    sides = _columns({"A": compared.a.name, "B": compared.b.name}, {})
    remarks = [Text(one, "yellow") for one in comparability(compared)]
    sentence = Text(changes(found), "bold")
    return _rendered(sides, Text(""), table, Text(""), *_changed_items(found), sentence, *remarks)


def _changed_items(found: Differences) -> list[Any]:
    """The first changed answers, right → wrong before the others."""
    from rich.table import Table
    from rich.text import Text

    order = list(DIRECTIONS)
    items = sorted(
        ((order.index(one.flip), one) for one in found.changed if one.flip), key=lambda row: row[0]
    )
    if not items:
        return []
    table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0), header_style="dim")
    for column in ("changed", "condition", "question", "accepted", "A", "B"):
        table.add_column(column, overflow="fold")
    for place, one in items[:MOST_CHANGED]:
        table.add_row(
            Text(DIRECTIONS[order[place]], _FLIP_STYLES[order[place]]),
            Text(one.condition),
            Text(one.question),
            Text(" / ".join(dict.fromkeys(one.accepted))),
            Text(f"{one.a or '(nothing)'} ({one.a_confidence:.2f})"),
            Text(f"{one.b or '(nothing)'} ({one.b_confidence:.2f})"),
        )
    more = len(items) - MOST_CHANGED
    rest = [Text(f"… and {more:,} more; --json and --html have them.", "dim")] if more > 0 else []
    return [table, *rest, Text("")]


def judges_table(judged: Judged) -> str:
    """Failures by category, a column a judge; then how each two judges agree."""
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0), header_style="dim")
    table.add_column("failure", no_wrap=True)
    for column in judged.columns:
        table.add_column(Text(column.judge), justify="right")
    for category, title in CATEGORIES.items():
        table.add_row(title, *(f"{column.counts[category]:,}" for column in judged.columns))
    for title, counts in (
        ("unparsed", [column.unparsed for column in judged.columns]),
        ("not asked", [column.missing for column in judged.columns]),
    ):
        if any(counts):
            table.add_row(Text(title, "dim"), *(f"{count:,}" for count in counts))
    agreements = [
        Text(f"{one.a} and {one.b}: {one.same:,} of {one.kappa.n:,} alike, Cohen's κ {_kappa(one.kappa)}")
        for one in judged.agreements
    ]
    empty = f", {judged.empty:,} of them empty and judged by nobody" if judged.empty else ""
    sentence = Text(f"{_count(judged.failures, 'wrong answer')}{empty}.", "bold")
    return _rendered(table, Text(""), *agreements, sentence)


def _kappa(estimate: Estimate) -> str:
    told = estimated(estimate, Unit.RATIO)
    return f"{told} ({estimate.note})" if estimate.note else told


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" + ("" if number == 1 else "s")


def summary(bundle: Bundle) -> dict[str, Any]:
    """What is in a bundle, as JSON types. Raises BundleError when its recipe is of another version."""
    manifest, files = bundle.manifest, bundle.manifest["files"]
    seal = bundle.seal
    return {
        "name": manifest["name"],
        "digest": bundle.digest,
        "edgevlm_version": manifest["edgevlm_version"],
        "source": dict(manifest["source"]),
        "recipe": dict(manifest["recipe"]),
        "target": dict(manifest["target"]),
        "runtime": bundle.model.runtime,
        "certainty": to_json(bundle.certainty),
        "precision": inventory.precision(bundle),
        "sizes": inventory.sizes(bundle),
        "bytes": sum(int(entry["bytes"]) for entry in files.values()),
        "items": len(bundle.items),
        "checks": {
            "files_digested": len(files),
            "quantization": dict(manifest["quantization"]),
            "verification": dict(manifest["verification"]),
        },
        "seal": None
        if seal is None
        else {key: seal[key] for key in ("outcome", "deployable", "statement")}
        | {"evidence": sorted(seal["evidence"])},
    }


def summary_text(summary: Mapping[str, Any]) -> str:
    """`summary` for people."""
    from rich.text import Text

    seal = summary["seal"]
    state = "none: not validated yet" if seal is None else f"{seal['outcome']} – {seal['statement']}"
    checks = summary["checks"]
    blocks = {
        summary["name"]: {
            "digest": summary["digest"],
            "seal": state,
            "recipe": summary["recipe"]["name"],
            "target": summary["target"]["name"],
            "runtime": summary["runtime"],
            "abstains": _abstains(summary["certainty"]),
            "edgevlm": summary["edgevlm_version"],
            "items": f"{summary['items']:,}",
        },
        "source": dict(_rows(summary["source"])),
        "precision": summary["precision"],
        "size": {part: quantity(size, Unit.BYTES) for part, size in summary["sizes"].items()}
        | {"in all": quantity(summary["bytes"], Unit.BYTES)},
        "checks": {"files digested": f"{checks['files_digested']:,}"}
        | dict(_rows({key: checks[key] for key in ("quantization", "verification")})),
    }
    style = "" if seal is None else ("green" if seal["deployable"] else "bold red")
    parts: list[Any] = []
    for title, rows in blocks.items():
        parts += [Text(title, "bold"), _columns(rows, {"seal": style}), Text("")]
    return _rendered(*parts[:-1])


def _abstains(certainty: Mapping[str, Any]) -> str:
    if not certainty["abstain"]:
        return "never"
    threshold = certainty["threshold"]
    return "always" if threshold is None else f"where {certainty['abstain']} is below {threshold:.3g}"


def package_text(made: Mapping[str, Any]) -> str:
    """What `edgevlm package` wrote, one fact a line; sections and comparison in short."""
    rows = {key: str(value) for key, value in made.items() if isinstance(value, (str, int))}
    rows["bytes"] = quantity(made["bytes"], Unit.BYTES)
    for section in made.get("sections", ()):
        rows[section["model"] or section["kind"]] = quantity(section["bytes"], Unit.BYTES)
    if "compared" in made:
        done = made["compared"]
        rows["like the runner"] = (
            f"{done['text_equal']} of {done['text_questions']} answers without a picture, "
            f"{done['picture_equal']} of {done['picture_questions']} with one (LiteRT-LM on this CPU)"
        )
    return _rendered(_columns(rows, {}))


def _rows(data: Mapping[str, Any]) -> list[tuple[str, str]]:
    found = inventory.facts(data)
    grid = [
        (name, "  ".join(f"{column} {cell}" for column, cell in zip(found.columns, cells, strict=True)))
        for name, cells in found.grid
    ]
    return [*found.rows, *grid]


def _columns(rows: Mapping[str, str], styles: Mapping[str, str]) -> Any:
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 2))
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for key, value in rows.items():
        table.add_row(Text(key, "dim"), Text(value, styles.get(key, "")))
    return table


def _rendered(*parts: Any) -> str:
    """Without trailing spaces. Rich honours NO_COLOR itself."""
    from rich.console import Console

    on_terminal = sys.stdout.isatty()
    width = shutil.get_terminal_size().columns if on_terminal else WIDTH
    out = io.StringIO()
    console = Console(
        file=out, width=width, force_terminal=on_terminal, color_system="auto" if on_terminal else None
    )
    for part in parts:
        console.print(part, soft_wrap=not on_terminal and isinstance(part, str))
    return "\n".join(line.rstrip() for line in out.getvalue().splitlines())
