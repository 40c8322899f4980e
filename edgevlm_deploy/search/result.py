"""What a search found, as one JSON object."""

from __future__ import annotations

from typing import Any

from edgevlm_deploy.config import Frozen
from edgevlm_deploy.errors import EXIT_GATES_FAILED, EXIT_INCONCLUSIVE, EXIT_PASSED
from edgevlm_deploy.recipe import GateName
from edgevlm_deploy.search.front import OBJECTIVES
from edgevlm_deploy.search.images import Seen
from edgevlm_deploy.search.proof import Proof
from edgevlm_deploy.search.sensitivity import Sensitivity
from edgevlm_deploy.search.study import Trial


class Found(Frozen):
    """Trials are named by their number; numbers of the front are smallest model first."""

    model: str
    target: str
    recipe: str
    emulated: bool
    """ONNX Runtime stood in for the target's runtime: gates of the device are open, nothing is sealed."""
    items: int
    """Questions that every candidate was asked."""
    share: float
    blocks: tuple[str, ...]
    seen: tuple[Seen, ...]
    """Fewer tiles and image tokens, without quantisation."""
    absent: tuple[str, ...]
    """Why a knob was not turned, a sentence each."""
    sensitivities: tuple[Sensitivity, ...] = ()
    trials: tuple[Trial, ...] = ()
    """None when the gates refuse the model before it is quantised."""
    front: tuple[int, ...] = ()
    """Non-dominated among the candidates that are predicted to pass."""
    proofs: tuple[Proof, ...] = ()
    best_uniform: int | None = None
    """The smallest uniform precision that was compiled and holds."""
    winner: int | None = None

    @property
    def exit_code(self) -> int:
        """As a verdict's: without the device the winner's stays open."""
        if self.winner is None:
            return EXIT_GATES_FAILED
        return EXIT_INCONCLUSIVE if self.emulated else EXIT_PASSED

    @property
    def winning_proof(self) -> Proof | None:
        return next((one for one in self.proofs if one.trial == self.winner), None)

    @property
    def deciding_gate(self) -> GateName | None:
        """The gate that refuses most candidates."""
        refused = [gate.metric for one in self.trials for gate in one.judged.gates if gate.excess > 0]
        names = [gate.metric for one in self.trials for gate in one.judged.gates]
        return max(dict.fromkeys(refused or names), key=(refused or names).count, default=None)

    def to_json(self) -> dict[str, Any]:
        deciding = self.deciding_gate
        return self.model_dump(mode="json") | {
            "objectives": list(OBJECTIVES),
            "deciding_gate": deciding.value if deciding else None,
            "passes": [one.number for one in self.trials if one.judged.passes],
        }
