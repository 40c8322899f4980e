"""What counts as proved, and that nothing is compiled after it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from search_proofs import proof

from edgevlm_deploy.recipe import GateName
from edgevlm_deploy.search.proof import Proof, _holds, first_that_holds
from edgevlm_deploy.verdict import GateResult, Outcome, Verdict


def verdict(*outcomes: Outcome) -> Verdict:
    gates = tuple(
        GateResult(
            metric=GateName.ACCURACY,
            min=0.5,
            max=None,
            reason="",
            outcome=outcome,
            value=None,
            low=None,
            high=None,
            n=0,
            unit="items",
            method="",
            explanation="",
        )
        for outcome in outcomes
    )
    return Verdict(
        outcome=Outcome.PASS, exit_code=0, level=0.95, gates_looked_at=len(gates), note="", gates=gates
    )


@pytest.mark.parametrize(
    ("outcomes", "emulated", "holds"),
    [
        ((Outcome.PASS, Outcome.PASS), False, True),
        ((Outcome.PASS, Outcome.INCONCLUSIVE), False, False),
        ((Outcome.PASS, Outcome.SKIPPED), False, False),
        ((Outcome.PASS, Outcome.SKIPPED), True, True),
        ((Outcome.FAIL, Outcome.SKIPPED), True, False),
    ],
)
def test_only_gates_of_an_absent_device_may_stay_open(
    outcomes: tuple[Outcome, ...], emulated: bool, holds: bool
) -> None:
    assert _holds(verdict(*outcomes), emulated) is holds


def test_attempts_end_with_the_first_that_holds() -> None:
    def attempts() -> Iterator[Proof]:
        yield proof(3, False)
        yield proof(5, True)
        raise AssertionError("one more was compiled")

    best, made = first_that_holds(attempts())
    assert best is not None and best.trial == 5 and [one.trial for one in made] == [3, 5]
    assert first_that_holds(iter([proof(1, False)])) == (None, (proof(1, False),))
