"""One HTML page about two sets of answers, with the style, drawings and gallery of the report."""

from __future__ import annotations

from pathlib import Path

from edgevlm_deploy.artifacts import write_text_atomic
from edgevlm_deploy.comparison import MOVED, Compared, Side
from edgevlm_deploy.metrics.accuracy import RIGHT_FROM
from edgevlm_deploy.report import charts, gallery, heat_map, inventory, outcome
from edgevlm_deploy.report.html import content_policy, environment, inline
from edgevlm_deploy.report.names import WORDS, Names
from edgevlm_deploy.report.quantity import Unit, quantity

NAMES = Names("A", "B", "A", "B")
MOST_MOVED = 20
"""Items whose answer stayed, on the page; `--json` has them all."""
_SOURCE = ("name", "family", "digest")


def render(compared: Compared, out: Path) -> None:
    """Write the page to `out`.

    Raises BundleError when a bundle's recipe cannot be read, ImageError when a picture cannot,
    StorageError when `out` cannot be written.
    """
    a, b, found, metrics = compared.a, compared.b, compared.differences, compared.metrics
    style, script = inline("style.css"), inline("page.js")
    page = (
        environment()
        .get_template("comparison.html.j2")
        .render(
            style=style,
            script=script,
            policy=content_policy(style, script),
            a=a,
            b=b,
            found=found,
            metrics=metrics,
            headline=outcome.changes(found),
            remarks=outcome.comparability(compared),
            reworded=any(row.still_right for row in found.rows),
            drops=charts.interval_bars([row.comparison.accuracy_drop for row in found.rows]),
            moves=charts.interval_bars([row.confidence_change for row in found.rows]),
            heat=heat_map.build(metrics, NAMES),
            names=NAMES,
            words=WORDS[compared.b.bundle.model.kind],
            sides=(_facts(a), _facts(b)),
            gallery=gallery.build(b.bundle, a.answers, b.answers, metrics, stayed_wrong=False),
            MOVED=MOVED,
            MOST_MOVED=MOST_MOVED,
            RIGHT_FROM=RIGHT_FROM,
        )
    )
    write_text_atomic(out, page)


def _facts(side: Side) -> dict[str, str]:
    """The FP16 reference has a source, and neither graphs nor a machine."""
    bundle, evidence, manifest = side.bundle, side.evidence, side.bundle.manifest
    facts = {
        "answers": side.name,
        "in bundle": f"{manifest['name']} · {bundle.digest}",
        "source": " · ".join(str(manifest["source"][key]) for key in _SOURCE if key in manifest["source"]),
    }
    if evidence is None:
        return facts
    precision = inventory.precision(bundle).items()
    emulated = ", emulated" if evidence.get("emulated") else ""
    return facts | {
        "recipe": str(manifest["recipe"]["name"]),
        "target": str(manifest["target"]["name"]),
        "precision": " · ".join(f"{part.replace('_', ' ')} {scheme}" for part, scheme in precision),
        "size": quantity(sum(inventory.sizes(bundle).values()), Unit.BYTES),
        "answered on": f"{evidence['machine']['cpu']}, {evidence['runtime']['name']}{emulated}",
        "seal": str(bundle.seal["statement"]) if bundle.seal else "not sealed",
    }
