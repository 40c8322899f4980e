"""What `summary.compute` returns: frozen, and JSON through `model_dump_json` / `model_validate_json`."""

from __future__ import annotations

from edgevlm_deploy.config import Frozen
from edgevlm_deploy.metrics.confidence import ReliabilityBin
from edgevlm_deploy.metrics.consistency import Flip
from edgevlm_deploy.metrics.statistics import Estimate
from edgevlm_deploy.metrics.taxonomy import Category


class Comparison(Frozen):
    """Reference and artifact on one set of items."""

    n: int
    reference_accuracy: Estimate
    artifact_accuracy: Estimate
    accuracy_drop: Estimate
    """Accuracy of the reference minus accuracy of the artifact, paired by item."""
    divergence_rate: Estimate
    negative_flip_rate: Estimate
    positive_flip_rate: Estimate


class GroupRow(Frozen):
    """Clean items of one kind of question."""

    group: str
    comparison: Comparison


class ConditionRow(Frozen):
    """Corrupted items of one corruption at one severity."""

    condition: str
    corruption: str
    severity: int
    comparison: Comparison
    robustness_gap: Estimate


class CorruptionRow(Frozen):
    """One corruption over all its severities. Corruption errors have the reference as base."""

    corruption: str
    comparison: Comparison
    robustness_gap: Estimate
    corruption_error: float | None
    relative_corruption_error: float | None


class PerturbationRow(Frozen):
    """One perturbation over all its levels."""

    perturbation: str
    comparison: Comparison


class NegationRow(Frozen):
    """One form of negation probe, on items whose clean question the reference answers correctly."""

    form: str
    asked: int
    """Probes, those of other items included."""
    comparison: Comparison
    """Accuracy is success by the strict scorer."""
    reference_lenient: Estimate
    """Success by the published scorer."""
    artifact_lenient: Estimate
    blind: Comparison | None
    """The same probes without pictures; None when they were not asked."""


class BlindRow(Frozen):
    """Clean items asked again without their picture, or about one grey area."""

    condition: str
    comparison: Comparison
    """Accuracy there is what the question alone gives away."""
    reference_prior_bias: Estimate
    """Share of items answered as with the picture."""
    artifact_prior_bias: Estimate
    prior_bias_increase: Estimate


class BackgroundRow(Frozen):
    """Questions of one kind on one background, originals and counterfactuals alike."""

    group: str
    background: str
    comparison: Comparison


class FlippedItem(Frozen):
    """An item that the artifact answered differently from the reference."""

    id: str
    group: str
    condition: str
    flip: Flip
    reference: str
    artifact: str
    first_divergence: int | None
    """Position of the first token that differs."""


class CategoryRow(Frozen):
    """Wrong answers of one category of `metrics.taxonomy`."""

    category: Category
    reference: int
    """Items that the reference fails so."""
    artifact: int
    increase: Estimate
    """Share of all items that the artifact fails so, minus that of the reference; paired by item."""


class Taxonomy(Frozen):
    """The failures among `n` items by category. An empty output is a failure without a category."""

    n: int
    rows: tuple[CategoryRow, ...]
    reference_empty: int
    artifact_empty: int


class FailedItem(Frozen):
    """An item that the artifact answered wrongly."""

    id: str
    group: str
    condition: str
    category: Category | None
    """None for an empty output, which is not judged."""
    rule: str
    """Of `metrics.taxonomy.RULES`."""
    reason: str


class Scaling(Frozen):
    """Temperature scaling of one model: fitted on items of their own, its effect on those that are judged."""

    temperature: float
    """Divides the log-odds of the confidence, or a classifier's logits; above 1 the model was too sure."""
    n: int
    """Items that it was fitted on."""
    ece_before: float
    ece_after: float
    """Both on the clean items."""
    shipped: bool = False
    """Whether it is the bundle's own, fitted when that was compiled."""
    all_before: float | None = None
    all_after: float | None = None
    """The same on clean and corrupted items; None without corrupted ones."""


class CoverageAtRisk(Frozen):
    """C@r: the share of items that can be answered at a risk of at most `risk`."""

    risk: float
    coverage: float
    threshold: float | None
    """Score from which on an item is answered; None: abstain on all."""


class Reliability(Frozen):
    """Effective reliability Φ_c: a right answer earns its accuracy, a wrong one costs `cost`.

    The pictures are dealt into two halves; each is answered with the threshold that is best on the
    other, so no item chooses its own.
    """

    cost: float
    value: float
    thresholds: tuple[float | None, float | None]
    """Score from which on each half is answered; None: abstain on all."""
    without_abstaining: float


class Selective(Frozen):
    """What one model can answer when it may abstain: items ranked by MaxProb or another score."""

    points: tuple[CoverageAtRisk, ...]
    auc: float
    """Area under risk over coverage × 100."""
    aurc: float
    reliability: tuple[Reliability, ...]
    curve: tuple[tuple[float, float], ...]
    """(coverage, risk), thinned out for drawing."""


class Gain(Frozen):
    """Coverage at one risk by either score."""

    risk: float
    max_prob: Estimate
    selector: Estimate
    gain: Estimate
    """The Selector's coverage minus MaxProb's, paired by picture."""


class SelectorComparison(Frozen):
    """The Selector beside MaxProb on some of the artifact's answers."""

    part: str
    """"clean" or "clean and corrupted"."""
    n: int
    accuracy: float
    max_prob: Selective
    selector: Selective
    gains: tuple[Gain, ...]
    """At 1 and 5 % risk."""


class MixtureRow(Frozen):
    """(coverage, risk) of either score when `shifted` of the items are; no risk where nothing is answered."""

    shifted: float
    max_prob: tuple[float, float | None]
    selector: tuple[float, float | None]


class Mixture(Frozen):
    """Thresholds chosen on familiar items for `risk`, on mixtures with shifted ones."""

    familiar: str
    shifted: str
    """What the items of either kind are."""
    familiar_items: int
    shifted_items: int
    risk: float
    rows: tuple[MixtureRow, ...]


class Metrics(Frozen):
    """Every metric of one artifact against its reference.

    `estimates` maps a metric's name to its estimate. The names of `recipe.GateName` that are about
    answers are among them; `reference_*` is the same metric of the reference. Names that speak of no
    other kind of item are about clean items.
    """

    format_version: int = 1
    level: float
    bootstrap_resamples: int
    clean_items: int
    corrupted_items: int
    perturbed_items: int = 0
    probed_items: int = 0
    """Negation probes with a picture."""
    background_items: int = 0
    foreign_items: int = 0
    """From another distribution; no other metric looks at them."""
    images: int
    estimates: dict[str, Estimate]
    mcnemar_p: float | None
    """Exact McNemar test on clean items, two-sided."""
    groups: tuple[GroupRow, ...]
    conditions: tuple[ConditionRow, ...]
    corruptions: tuple[CorruptionRow, ...]
    perturbations: tuple[PerturbationRow, ...] = ()
    negation: tuple[NegationRow, ...] = ()
    blind: tuple[BlindRow, ...] = ()
    backgrounds: tuple[BackgroundRow, ...] = ()
    reliability: dict[str, tuple[ReliabilityBin, ...]]
    """"reference" and "artifact" → ten bars, on clean items."""
    scaling: dict[str, Scaling] = {}
    """"reference" and "artifact"; a model is missing when all or none of its answers there were right."""
    selective: dict[str, Selective] = {}
    """"reference" and "artifact"; empty in files from before there was selective prediction."""
    selector: tuple[SelectorComparison, ...] = ()
    """On clean items, and on clean and corrupted ones; empty without a Selector."""
    mixture: Mixture | None = None
    flips: tuple[FlippedItem, ...]
    taxonomy: dict[str, Taxonomy] = {}
    """"clean", "corrupted" and "perturbed", where there are such items."""
    failures: tuple[FailedItem, ...] = ()
    """Of the artifact, in item order."""

    @property
    def counts(self) -> dict[str, int]:
        """Kind of item → how many of its answers are compared; corrupted ones also where there are none."""
        found = {
            "clean": self.clean_items,
            "corrupted": self.corrupted_items,
            "perturbed": self.perturbed_items,
            "negated": self.probed_items,
            "background": self.background_items,
        }
        return {kind: n for kind, n in found.items() if n or kind == "corrupted"}
