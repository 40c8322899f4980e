"""A recipe: what one product needs of its model, in one YAML file.

It names precision per component, calibration, the evidence to gather and the gates that
the compiled artifact has to pass. It names no device; `plan.resolve` brings the two together.
"""

from __future__ import annotations

from enum import Enum
from typing import Annotated, Literal

from pydantic import Field, model_validator

from edgevlm_deploy.config import Frozen

Share = Annotated[float, Field(ge=0.0, le=1.0)]


class Component(str, Enum):
    VISION_ENCODER = "vision_encoder"
    PROJECTOR = "projector"
    EMBEDDING = "embedding"
    DECODER = "decoder"
    HEAD = "head"
    TEXT_ENCODER = "text_encoder"
    """Of a dual encoder; its projector is the projections into the common space."""


class Scheme(str, Enum):
    """Bits of weights (w) and activations (a); g is the number of columns that share a scale."""

    FP16 = "fp16"
    W8A8 = "w8a8"
    W8A16 = "w8a16"
    W4A16_G32 = "w4a16_g32"
    W4A16_G64 = "w4a16_g64"
    W4A16_G128 = "w4a16_g128"
    W4A16_CHANNEL = "w4a16_channel"
    W3A16_CHANNEL = "w3a16_channel"


class Algorithm(str, Enum):
    RTN = "rtn"
    GPTQ = "gptq"
    AWQ = "awq"
    SMOOTHQUANT = "smoothquant"
    HQQ = "hqq"
    MBQ = "mbq"
    AUTOROUND = "autoround"


class Quantizer(str, Enum):
    NEURAL_COMPRESSOR = "neural-compressor"
    TENSORRT = "tensorrt"
    """NVIDIA Model Optimizer, which is how TensorRT is quantised for today."""


class Corruption(str, Enum):
    GAUSSIAN_NOISE = "gaussian_noise"
    SHOT_NOISE = "shot_noise"
    IMPULSE_NOISE = "impulse_noise"
    DEFOCUS_BLUR = "defocus_blur"
    MOTION_BLUR = "motion_blur"
    FOG = "fog"
    BRIGHTNESS = "brightness"
    CONTRAST = "contrast"
    JPEG_COMPRESSION = "jpeg_compression"
    PIXELATE = "pixelate"
    GLASS_BLUR = "glass_blur"
    ZOOM_BLUR = "zoom_blur"
    SNOW = "snow"
    FROST = "frost"
    ELASTIC_TRANSFORM = "elastic_transform"
    LOW_LIGHT = "low_light"
    ROLLING_MOTION = "rolling_motion"
    LENS_DIRT = "lens_dirt"
    THERMAL_BANDING = "thermal_banding"
    BLOCK_LOSS = "block_loss"


EDGE_SUITE = tuple(Corruption)[:10]
"""The ten of EdgeVLM-Bench, in its order; then the other five of ImageNet-C, then the edge sensors."""
SENSOR_SUITE = tuple(Corruption)[15:]


class CorruptionProfile(str, Enum):
    """Which constants the five severities stand for."""

    IMAGENET_C = "imagenet-c"
    CIFAR_C = "cifar-c"
    """Milder. It has no edge sensors and no elastic transform."""


class Perturbation(str, Enum):
    SMALL_SHIFT = "small_shift"
    JPEG_QUALITY = "jpeg_quality"
    BRIGHTNESS_SHIFT = "brightness_shift"
    PARAPHRASE = "paraphrase"


class ProbeForm(str, Enum):
    """Negation probes; `docs/probes.md` has their words and which items they are made of."""

    IS_NOT = "is_not"
    ABSENT = "absent"
    FALSE_YN = "false_yn"
    COUNTER = "counter"
    TRUE_YN = "true_yn"
    """The affirmative control: no part of the success of negation."""


class GateName(str, Enum):
    """What can be gated. `metrics.md`-style definitions stand in the functions that compute them."""

    ACCURACY = "accuracy"
    ACCURACY_DROP = "accuracy_drop"
    DIVERGENCE_RATE = "divergence_rate"
    NEGATIVE_FLIP_RATE = "negative_flip_rate"
    RELATIVE_ROBUSTNESS = "relative_robustness"
    CORRUPTED_ACCURACY = "corrupted_accuracy"
    ROBUSTNESS_GAP = "robustness_gap"
    CORRUPTED_DIVERGENCE_RATE = "corrupted_divergence_rate"
    CORRUPTED_NEGATIVE_FLIP_RATE = "corrupted_negative_flip_rate"
    PERTURBED_DIVERGENCE_RATE = "perturbed_divergence_rate"
    NEGATION_SUCCESS = "negation_success"
    NEGATION_SUCCESS_DROP = "negation_success_drop"
    PRIOR_BIAS = "prior_bias"
    PRIOR_BIAS_INCREASE = "prior_bias_increase"
    BACKGROUND_GAP = "background_gap"
    WORST_GROUP_ACCURACY = "worst_group_accuracy"
    RELATIVE_SPURIOUS_GAP_INCREASE = "relative_spurious_gap_increase"
    OOD_AUROC = "ood_auroc"
    OOD_AUROC_DROP = "ood_auroc_drop"
    ECE = "ece"
    ECE_INCREASE = "ece_increase"
    ADAPTIVE_ECE_INCREASE = "adaptive_ece_increase"
    BRIER_INCREASE = "brier_increase"
    COVERAGE_AT_RISK_5 = "coverage_at_risk_5"
    COVERAGE_AT_RISK_5_DROP = "coverage_at_risk_5_drop"
    SELECTOR_COVERAGE_AT_RISK_1 = "selector_coverage_at_risk_1"
    SELECTOR_COVERAGE_AT_RISK_5 = "selector_coverage_at_risk_5"
    SELECTOR_GAIN_AT_RISK_1 = "selector_gain_at_risk_1"
    SELECTOR_GAIN_AT_RISK_5 = "selector_gain_at_risk_5"
    ANSWERED_SHARE = "answered_share"
    ANSWERED_RISK = "answered_risk"
    TIME_TO_FIRST_TOKEN_MS_P95 = "time_to_first_token_ms_p95"
    LATENCY_MS_P95 = "latency_ms_p95"
    PEAK_RSS_BYTES = "peak_rss_bytes"
    BUNDLE_BYTES = "bundle_bytes"


class Gate(Frozen):
    """A limit on one metric; passed only when the whole confidence interval is inside it."""

    metric: GateName
    min: float | None = None
    max: float | None = None
    reason: str = ""
    """Why this limit: shown in the report."""

    @model_validator(mode="after")
    def _exactly_one_limit(self) -> Gate:
        if (self.min is None) == (self.max is None):
            raise ValueError("a gate has exactly one of `min` and `max`")
        return self


class Precision(Frozen):
    scheme: Scheme = Scheme.FP16
    algorithm: Algorithm = Algorithm.RTN


class ModuleOverride(Frozen):
    """Mixed precision: modules whose name matches `pattern` (fnmatch) get their own scheme."""

    pattern: str
    scheme: Scheme
    algorithm: Algorithm = Algorithm.RTN


class Mixture(Frozen):
    """Shares of clean, dark, grey and noisy pictures among the calibration samples."""

    clean: Share = 1.0
    dark: Share = 0.0
    grey: Share = 0.0
    noise: Share = 0.0

    @model_validator(mode="after")
    def _sums_to_one(self) -> Mixture:
        total = self.clean + self.dark + self.grey + self.noise
        if abs(total - 1.0) > 1e-6:
            raise ValueError(f"shares must sum to 1, they sum to {total:g}")
        return self


class ObserverName(str, Enum):
    """How much of an activation's range 8 bits cover; see `quantize.observers`."""

    MINMAX = "minmax"
    PERCENTILE = "percentile"
    MSE = "mse"
    ENTROPY = "entropy"


class Composition(str, Enum):
    """Which part of a calibration sample the model is shown."""

    MIXED = "mixed"
    """Picture, question and answer, as in use."""
    TEXT_ONLY = "text_only"
    """Question and answer without the picture: the vision encoder sees nothing."""
    IMAGE_ONLY = "image_only"
    """The picture without question and answer."""


class Calibration(Frozen):
    samples: Annotated[int, Field(ge=1, le=4096)] = 128
    seed: int = 0
    mixture: Mixture = Mixture()
    modality_balanced: bool = True
    """Draw evenly over kinds of question (`group`), so that no modality or task dominates the ranges."""
    composition: Composition = Composition.MIXED
    observer: ObserverName = ObserverName.MINMAX
    """From the values of an activation to its calibrated range."""

    @model_validator(mode="after")
    def _text_has_no_pictures_to_mix(self) -> Calibration:
        if self.composition is Composition.TEXT_ONLY and self.mixture.clean < 1:
            raise ValueError("composition text_only shows no pictures; leave `mixture` out")
        return self


class ReductionMethod(str, Enum):
    """How image tokens are taken away."""

    FASTV = "fastv"
    VISIONZIP = "visionzip"
    TOME = "tome"


class Reduction(Frozen):
    """Fewer image tokens: a shorter prompt, less prefill, a smaller cache."""

    method: ReductionMethod
    """`visionzip` and `tome` shorten what the vision encoder gives, `fastv` prunes inside the decoder."""
    keep: Annotated[float, Field(gt=0.0, lt=1.0)]
    """Share of the image tokens that are left."""
    layer: Annotated[int, Field(ge=1)] | None = None
    """FastV prunes in front of this decoder layer, counted from 0; None: 2, as published."""

    @model_validator(mode="after")
    def _only_fastv_has_a_layer(self) -> Reduction:
        if self.method is not ReductionMethod.FASTV and self.layer is not None:
            raise ValueError(f"`layer` belongs to fastv; {self.method.value} has none")
        return self


class Image(Frozen):
    max_tiles: Annotated[int, Field(ge=1, le=64)] | None = None
    """Upper bound on tiles per picture, global view included; None keeps the model's own preprocessing."""
    usual_tiles: Annotated[int, Field(ge=1, le=64)] | None = None
    """Tiles of a usual picture, which engines are tuned for (TensorRT); None: as many as there can be."""
    reduction: Reduction | None = None
    """Fewer image tokens than the model makes of a tile; None keeps them all."""


class Generation(Frozen):
    max_new_tokens: Annotated[int, Field(ge=1, le=4096)] = 32
    max_context: Annotated[int, Field(ge=16, le=131072)] = 2048
    cache_lengths: tuple[Annotated[int, Field(ge=16)], ...] = ()
    """KV-cache lengths, where graphs have static shapes (LiteRT). Decoding costs what is allocated, so a
    question takes the shortest that holds it. `max_context` is always one; empty: also a quarter of it.
    """
    prefill_lengths: tuple[Annotated[int, Field(ge=2)], ...] = ()
    """Tokens that a static prefill graph takes at once; prompts go in pieces. Empty: 32 and 128."""
    usual_prompt: Annotated[int, Field(ge=1)] | None = None
    """Tokens of a usual prompt with its picture, which engines are tuned for (TensorRT); None: a picture of
    `usual_tiles` and a short question."""

    def static_lengths(self, max_context: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """(caches, prefills), ascending, for a context of `max_context` tokens (the model may have cut it).

        A prefill longer than the longest cache, and a cache beyond the context, are left out.
        """
        quarter = (max_context // 4,) if max_context // 4 > max(self.max_new_tokens, 63) else ()
        caches = sorted({n for n in self.cache_lengths or quarter if n < max_context} | {max_context})
        prefills = sorted({n for n in self.prefill_lengths or (32, 128) if n <= max_context})
        return tuple(caches), tuple(prefills)


class ZeroShot(Frozen):
    """What a dual encoder chooses among, in words."""

    classes: tuple[Annotated[str, Field(min_length=1)], ...] = ()
    """Names as the data has them; empty: the labels in the data, sorted."""
    templates: Annotated[tuple[str, ...], Field(min_length=1)] = ("a photo of a {}",)
    """Sentences with one `{}` where the class goes; their embeddings are averaged."""

    @model_validator(mode="after")
    def _templates_have_a_slot(self) -> ZeroShot:
        for template in self.templates:
            if template.count("{}") != 1:
                raise ValueError(f"a template has one {{}} where the class goes, got {template!r}")
        if len(set(self.classes)) != len(self.classes):
            raise ValueError("classes: a name stands twice")
        return self


class Negation(Frozen):
    """Probes that deny what a picture shows, on clean items (Erol, arXiv 2603.26769)."""

    items: Annotated[int, Field(ge=1)] = 100
    """At most this many clean items per form; 100 as published."""
    forms: Annotated[tuple[ProbeForm, ...], Field(min_length=1)] = tuple(ProbeForm)
    blind: bool = True
    """Whether each probe is asked without its picture too: what succeeds there does not come from seeing."""


class Evaluation(Frozen):
    clean_items: Annotated[int, Field(ge=1)] = 2000
    """At most this many clean items."""
    corruptions: tuple[Corruption, ...] = EDGE_SUITE
    corruption_profile: CorruptionProfile = CorruptionProfile.IMAGENET_C
    perturbations: tuple[Perturbation, ...] = ()
    """Changes that should change no answer; `severities` are their levels."""
    severities: tuple[Annotated[int, Field(ge=1, le=5)], ...] = (1, 2, 3, 4, 5)
    items_per_condition: Annotated[int, Field(ge=1)] = 50
    """Items per corruption or perturbation and severity, drawn from the clean ones."""
    negation: Negation | None = None
    """Negation probes; none by default."""
    blind_items: Annotated[int, Field(ge=0)] = 0
    """Clean items that are asked again without their picture."""
    grey_items: Annotated[int, Field(ge=0)] = 0
    """Clean items that are asked again about one grey area."""
    background_items: Annotated[int, Field(ge=0)] = 0
    """At most this many rows with `counterfactual_of` are asked: the clean item on another background."""
    ood_items: Annotated[int, Field(ge=0)] = 500
    """At most this many questions of another distribution are asked, when such are given (`--ood`)."""
    temperature_items: Annotated[int, Field(ge=0)] = 128
    """At most this many calibration questions are asked too, to fit the temperature of the confidence."""
    seed: int = 0
    confidence_level: Annotated[float, Field(gt=0.5, lt=1.0)] = 0.95
    bootstrap_resamples: Annotated[int, Field(ge=100)] = 10_000

    @model_validator(mode="after")
    def _profile_has_the_corruptions(self) -> Evaluation:
        lacking = {Corruption.ELASTIC_TRANSFORM, *SENSOR_SUITE} & set(self.corruptions)
        if self.corruption_profile is CorruptionProfile.CIFAR_C and lacking:
            names = ", ".join(sorted(corruption.value for corruption in lacking))
            raise ValueError(f"corruption_profile cifar-c has no constants for {names}; leave them out")
        return self

    @property
    def corruption_names(self) -> tuple[str, ...]:
        """As items' conditions have them: those of CIFAR-C are named so."""
        return self.named(self.corruptions)

    def named(self, corruptions: tuple[Corruption, ...]) -> tuple[str, ...]:
        prefix = "cifar-c:" if self.corruption_profile is CorruptionProfile.CIFAR_C else ""
        return tuple(prefix + corruption.value for corruption in corruptions)


class AbstainBy(str, Enum):
    """The score that decides whether an answer is given."""

    SELECTOR = "selector"
    """Two layers trained to tell how right an answer is; they ship in the bundle."""
    MAX_PROB = "maxprob"
    """The product of the token probabilities; nothing is trained."""


class Abstention(Frozen):
    """When an answer is withheld. Everything here is learnt on questions that no metric counts: calibration
    questions, each on its clean picture, and corrupted variants of as many.
    """

    by: AbstainBy = AbstainBy.SELECTOR
    risk: Annotated[float, Field(gt=0.0, lt=1.0)] | None = None
    """Share of wrong answers among those given; the threshold answers as many questions as it allows."""
    cost: Annotated[float, Field(gt=0.0)] | None = None
    """Instead: what a wrong answer costs when a right one earns 1, and the threshold earns the most."""
    questions: Annotated[int, Field(ge=1)] = 2000
    """At most this many; a Selector needs some hundred wrong answers to learn from."""
    corruptions: tuple[Corruption, ...] | None = None
    """Of the variants, at the evaluation's severities; None: the evaluation's own."""

    @model_validator(mode="after")
    def _risk_or_cost(self) -> Abstention:
        if (self.risk is None) == (self.cost is None):
            raise ValueError("abstain: give exactly one of `risk` and `cost`")
        return self


class Recipe(Frozen):
    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]*$")]
    description: str
    quantizer: Quantizer = Quantizer.NEURAL_COMPRESSOR
    components: dict[Component, Precision] = {}
    """Precision per component; a component that is not named stays fp16."""
    modules: tuple[ModuleOverride, ...] = ()
    calibration: Calibration = Calibration()
    image: Image = Image()
    generation: Generation = Generation()
    zero_shot: ZeroShot = ZeroShot()
    evaluation: Evaluation = Evaluation()
    abstain: Abstention | None = None
    """None: every question is answered, however unsure the model is."""
    gates: Annotated[tuple[Gate, ...], Field(min_length=1)]
    target_budgets: Literal["enforce", "report"] = "enforce"
    """Whether the target's latency and memory budgets become gates."""

    @model_validator(mode="after")
    def _caches_hold_an_answer(self) -> Recipe:
        wanted = self.generation
        for length in wanted.cache_lengths:
            if not wanted.max_new_tokens < length <= wanted.max_context:
                raise ValueError(
                    f"generation: cache_lengths lie between max_new_tokens = {wanted.max_new_tokens} and "
                    f"max_context = {wanted.max_context}, got {length}"
                )
        return self

    @model_validator(mode="after")
    def _one_gate_per_metric_and_side(self) -> Recipe:
        seen = [(gate.metric, gate.min is None) for gate in self.gates]
        if len(seen) != len(set(seen)):
            raise ValueError("two gates limit the same metric on the same side; keep the stricter one")
        return self

    @model_validator(mode="after")
    def _gates_have_their_items(self) -> Recipe:
        asked = self.evaluation
        fields = {
            GateName.NEGATION_SUCCESS: ("negation", asked.negation),
            GateName.NEGATION_SUCCESS_DROP: ("negation", asked.negation),
            GateName.PRIOR_BIAS: ("blind_items", asked.blind_items),
            GateName.PRIOR_BIAS_INCREASE: ("blind_items", asked.blind_items),
            GateName.BACKGROUND_GAP: ("background_items", asked.background_items),
        }
        for gate in self.gates:
            field, given = fields.get(gate.metric, ("", True))
            if not given:
                raise ValueError(f"the gate on {gate.metric.value} needs items: set evaluation.{field}")
        return self

    @model_validator(mode="after")
    def _gates_on_abstaining_have_it(self) -> Recipe:
        for gate in self.gates:
            kind = gate.metric.value.partition("_")[0]
            if (kind == "selector" and not self.has_selector) or (kind == "answered" and not self.abstain):
                raise ValueError(
                    f"the gate on {gate.metric.value} needs `abstain`, e.g. {{by: selector, risk: 0.05}}"
                )
        return self

    @property
    def has_selector(self) -> bool:
        return self.abstain is not None and self.abstain.by is AbstainBy.SELECTOR

    def precision(self, component: Component) -> Precision:
        return self.components.get(component, Precision())
