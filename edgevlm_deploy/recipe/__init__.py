"""A recipe: what one product needs of its model, in one YAML file.

It names precision per component, calibration, the evidence to gather and the gates that
the compiled artifact has to pass. It names no device; `plan.resolve` brings the two together.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from edgevlm_deploy.config import Frozen
from edgevlm_deploy.recipe.calibration import Calibration, Composition, Mixture, ObserverName
from edgevlm_deploy.recipe.evaluation import (
    EDGE_SUITE,
    SENSOR_SUITE,
    Corruption,
    CorruptionProfile,
    Evaluation,
    Negation,
    Perturbation,
    ProbeForm,
)
from edgevlm_deploy.recipe.gates import OF_CLASS_SCORES, Gate, GateName
from edgevlm_deploy.recipe.model import (
    AbstainBy,
    Abstention,
    Generation,
    Image,
    Reduction,
    ReductionMethod,
    ZeroShot,
)
from edgevlm_deploy.recipe.precision import Algorithm, Component, ModuleOverride, Precision, Quantizer, Scheme

__all__ = [
    "EDGE_SUITE",
    "OF_CLASS_SCORES",
    "SENSOR_SUITE",
    "AbstainBy",
    "Abstention",
    "Algorithm",
    "Calibration",
    "Component",
    "Composition",
    "Corruption",
    "CorruptionProfile",
    "Evaluation",
    "Gate",
    "GateName",
    "Generation",
    "Image",
    "Mixture",
    "ModuleOverride",
    "Negation",
    "ObserverName",
    "Perturbation",
    "Precision",
    "ProbeForm",
    "Quantizer",
    "Recipe",
    "Reduction",
    "ReductionMethod",
    "Scheme",
    "ZeroShot",
]


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
            GateName.NEGATION_DIVERGENCE_RATE: ("negation", asked.negation),
            GateName.PRIOR_BIAS: ("blind_items", asked.blind_items),
            GateName.PRIOR_BIAS_INCREASE: ("blind_items", asked.blind_items),
            GateName.BACKGROUND_GAP: ("background_items", asked.background_items),
            GateName.IMAGE_TO_TEXT_RECALL_AT_1_DROP: ("feature_items", asked.feature_items),
            GateName.TEXT_TO_IMAGE_RECALL_AT_1_DROP: ("feature_items", asked.feature_items),
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
