"""What can be chosen, and what it weighs."""

from __future__ import annotations

import pytest

from edgevlm_deploy import resources
from edgevlm_deploy.errors import PlanError
from edgevlm_deploy.recipe import Algorithm, Component, Recipe, Scheme
from edgevlm_deploy.search import space
from edgevlm_deploy.search.space import Candidate, Space
from edgevlm_deploy.source import SourceModel


def test_a_block_is_a_part_of_a_layer_or_a_module_of_its_own(choices: Space, demo: SourceModel) -> None:
    names = [block.name for block in choices.blocks]
    assert len(names) == len(set(names)) == 2 * 5 + 1 + 1 + 2 * 5 + 1
    assert {"lm_head", "model.text_model.layers.3.mlp", "model.connector.modality_projection.proj"} <= {
        *names
    }
    members = [name for block in choices.blocks for name in block.modules]
    assert sorted(members) == sorted(name for names in demo.modules.values() for name in names)


def test_what_is_coarser_and_no_smaller_is_no_choice(choices: Space) -> None:
    """ONNX Runtime keeps 3 bits in 4 and writes a scale every 128 columns anyway."""
    decoder = next(block for block in choices.blocks if block.component is Component.DECODER)
    assert Scheme.W3A16_CHANNEL in decoder.schemes and Scheme.W4A16_CHANNEL in decoder.schemes
    assert decoder.choices == (
        Scheme.W4A16_G128,
        Scheme.W4A16_G64,
        Scheme.W4A16_G32,
        Scheme.W8A16,
        Scheme.FP16,
    )
    sizes = [decoder.sizes[one] for one in decoder.choices]
    assert sizes == sorted(sizes)


def test_an_embedding_takes_what_embeddings_take(choices: Space) -> None:
    embedding = next(block for block in choices.blocks if block.component is Component.EMBEDDING)
    assert embedding.choices == (Scheme.W8A16, Scheme.FP16)


def test_a_uniform_candidate_rounds_up_where_its_scheme_is_refused(choices: Space) -> None:
    uniform = choices.uniform(Scheme.W4A16_G64, Algorithm.GPTQ)
    taken = dict(zip((block.name for block in choices.blocks), uniform.schemes, strict=True))
    assert taken.pop("model.text_model.embed_tokens") is Scheme.W8A16
    assert set(taken.values()) == {Scheme.W4A16_G64}
    request = choices.request(uniform)
    assert request["model.text_model.layers.0.mlp.up_proj"].algorithm is Algorithm.GPTQ
    assert request["model.vision_model.encoder.layers.0.mlp.fc1"].algorithm is Algorithm.GPTQ
    assert request["model.text_model.embed_tokens"].algorithm is Algorithm.RTN


def test_equal_candidates_are_one(choices: Space) -> None:
    """Eight bits are rounded to nearest whatever was asked for."""
    assert choices.uniform(Scheme.W8A16, Algorithm.GPTQ) == choices.uniform(Scheme.W8A16, Algorithm.RTN)
    uniforms = choices.uniforms()
    assert len(uniforms) == len(set(uniforms)) == 9
    sizes = [choices.weight_bytes(one) for one in uniforms]
    assert sizes == sorted(sizes)


def test_fp16_weighs_two_bytes_a_parameter(choices: Space, demo: SourceModel) -> None:
    whole = Candidate(Algorithm.RTN, (Scheme.FP16,) * len(choices.blocks))
    assert choices.weight_bytes(whole) == 2 * demo.parameters
    assert choices.request(whole) == {}


@pytest.mark.parametrize("target", ["snapdragon-8-gen3", "orin", "jetson-nano"])
def test_every_choice_is_one_that_the_target_executes(target: str, demo: SourceModel, base: Recipe) -> None:
    known = resources.target(target)
    made = space.build(demo, base, known, ())
    for uniform in made.uniforms():
        assert all(
            one.format.bits == 8 or "int4-weights" in known.formats for one in made.request(uniform).values()
        )


def test_an_algorithm_that_fits_nowhere_is_said(demo: SourceModel, base: Recipe) -> None:
    with pytest.raises(PlanError, match="gptq is offered for no module of this model on jetson-nano"):
        space.build(demo, base, resources.target("jetson-nano"), (Algorithm.GPTQ,))
