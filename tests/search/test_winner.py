"""A candidate, written as a recipe, asks for exactly the candidate."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgevlm_deploy import plan
from edgevlm_deploy.config import load_yaml
from edgevlm_deploy.recipe import Algorithm, Image, Recipe, Reduction, ReductionMethod, Scheme
from edgevlm_deploy.search import winner
from edgevlm_deploy.search.space import Candidate, Space
from edgevlm_deploy.source import SourceModel
from edgevlm_deploy.target import Target

IMAGES = (
    Image(),
    Image(max_tiles=5, reference_tiles=17),
    Image(max_tiles=1, reference_tiles=5, reduction=Reduction(method=ReductionMethod.TOME, keep=0.33)),
)


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_candidate_survives_the_file(
    data: st.DataObject, choices: Space, demo: SourceModel, base: Recipe, host: Target, tmp_path: Path
) -> None:
    schemes = tuple(data.draw(st.sampled_from(block.choices)) for block in choices.blocks)
    algorithm, image = (data.draw(st.sampled_from(one)) for one in (choices.algorithms, IMAGES))
    candidate = choices.canonical(Candidate(algorithm, schemes, image))
    made = winner.recipe(base, "found", "Found.", choices, candidate, demo, host)
    path = tmp_path / "found.yaml"
    path.write_text(winner.text(made, "Found by a test.\nIn two lines."))
    read = load_yaml(path, Recipe)
    assert read == made
    assert read.gates == base.gates and read.calibration == base.calibration
    assert read.image == candidate.image
    assert dict(plan.resolve(read, host, demo.modules).request) == choices.request(candidate)


def test_layers_are_named_together(choices: Space, demo: SourceModel, base: Recipe, host: Target) -> None:
    def scheme(name: str) -> Scheme:
        if "vision_model" in name:
            return Scheme.W8A8
        if ".mlp" in name:
            return Scheme.W4A16_G128
        if "layers" in name and name.split(".")[3] in "14":
            return Scheme.W4A16_G32
        return Scheme.W8A16

    candidate = Candidate(Algorithm.GPTQ, tuple(scheme(block.name) for block in choices.blocks))
    made = winner.recipe(base, "found", "Found.", choices, candidate, demo, host)
    assert [(one.pattern, one.scheme, one.algorithm) for one in made.modules] == [
        ("model.text_model.layers.[023].self_attn.*", Scheme.W8A16, Algorithm.RTN),
        ("model.text_model.layers.[14].self_attn.*", Scheme.W4A16_G32, Algorithm.GPTQ),
    ]


@pytest.mark.parametrize(
    ("numbers", "sets"),
    [(["3"], ["3"]), (["0", "2", "1"], ["[012]"]), (["9", "10", "12", "20"], ["9", "1[02]", "20"])],
)
def test_sets_of_digits(numbers: list[str], sets: list[str]) -> None:
    assert winner._digit_sets(numbers) == sets
