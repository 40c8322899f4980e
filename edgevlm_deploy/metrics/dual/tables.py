"""What `dual.compute` returns: frozen, and JSON through `model_dump_json` / `model_validate_json`."""

from __future__ import annotations

from edgevlm_deploy.config import Frozen
from edgevlm_deploy.metrics.statistics import Estimate
from edgevlm_deploy.metrics.tables import Metrics, Scaling


class DegradationRow(Frozen):
    """One shifted distribution: a corruption at a severity, or the clean pictures."""

    condition: str
    relative_degradation: float | None
    """δ(D) = (A_ref − A_art) / A_ref; None when the reference gets nothing right."""


class LogitScale(Frozen):
    """The logit scale of one model, fitted on items of their own, and its effect on the clean items."""

    before: float
    fitted: float
    n: int
    """Items that it was fitted on."""
    ece_before: float
    ece_after: float
    all_before: float | None = None
    all_after: float | None = None
    """The same on clean and corrupted items; None without corrupted ones."""
    shipped: bool = False
    """Whether it is the bundle's own, fitted when that was compiled."""

    @property
    def scaling(self) -> Scaling:
        """As a temperature, which divides the logits of all classes."""
        return Scaling(
            temperature=self.before / self.fitted,
            n=self.n,
            ece_before=self.ece_before,
            ece_after=self.ece_after,
            shipped=self.shipped,
            all_before=self.all_before,
            all_after=self.all_after,
        )


class Direction(Frozen):
    """Retrieval in one direction; queries are taken as independent."""

    estimates: dict[str, Estimate]
    """recall_at_1, _5, _10, median_rank; `reference_*` of the reference; recall_at_1_drop and so on."""


class Retrieval(Frozen):
    image_to_text: Direction
    text_to_image: Direction


class Band(Frozen):
    """Ranks `first` to `last` (from 1) of the reference's features."""

    first: int
    last: int
    sqnr_db: float | None
    """Of all its ranks together; None when nothing changed."""
    reference_accuracy: float
    artifact_accuracy: float
    """Zero-shot accuracy with the features projected on the band."""


class Spectral(Frozen):
    sqnr_db: tuple[float | None, ...]
    """SQNR_k per rank, from the largest singular value down; None when nothing changed."""
    share: tuple[float, ...]
    """σ_k² over their sum."""
    bands: tuple[Band, ...]


class DualMetrics(Frozen):
    """Every metric of a compiled dual encoder against its reference."""

    format_version: int = 1
    answers: Metrics
    """What a dual encoder shares with every model: its answer is the name of the best class."""
    estimates: dict[str, Estimate]
    """Of the artifact; `reference_*` of the reference; `*_drop` and `*_increase` between them."""
    degradations: tuple[DegradationRow, ...]
    logit_scale: dict[str, LogitScale] = {}
    """"reference" and "artifact"; a model is missing when all or none of its answers there were right."""
    retrieval: Retrieval | None = None
    spectral: Spectral | None = None
